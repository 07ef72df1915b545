"""From a trained network to the engine and back to junyanz's layout."""
# ruff: noqa: E402  (torch may be missing: the imports come after the skip)

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from click.testing import CliRunner
from PIL import Image
from pix2pix_fast.train import colour, export, junyanz, recipes, state
from pix2pix_fast.train.cli import colorize
from pix2pix_fast.train.cli import export as export_command
from pix2pix_fast.train.networks import NORMS, ResNet, UNet, image_twin, init_weights
from pix2pix_fast.train.trainer import Trainer

from pix2pix_fast import Engine, ModelFormatError
from pix2pix_fast import model as model_file

pytestmark = pytest.mark.usefixtures("one_thread")


def net_of(norm="batch", **overrides):
    net = UNet(**{"depth": 5, "ngf": 4, "norm": norm, "dropout": ("d1", "d2"), **overrides})
    init_weights(net, gain=0.2, generator=torch.Generator().manual_seed(3))
    if norm == "batch":  # running statistics that matter
        for _ in range(3):
            net.train()(torch.rand(1, net.in_channels, 64, 64) * 2 - 1)
    return net


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of two steps, made without the loop."""
    folder = tmp_path_factory.mktemp("run")
    trainer = Trainer(recipes.load("facades", depth=5, ngf=4, ndf=4, size=64, load_size=64))
    for _ in range(2):
        trainer.step([(torch.rand(1, 3, 64, 64) * 2 - 1, torch.rand(1, 3, 64, 64) * 2 - 1)])
    history = {
        "seconds": 7200.0,
        "metrics": {"epoch": 1, "split": "val", "l1": 0.1, "psnr": 20.0, "ssim": 0.5},
        "origin": {"command": ["/some/place/pix2pix-fast", "train"], "pairs": 2},
    }
    for name in ("last.pt", "best.pt"):
        state.save(folder / name, {**trainer.state_dict(), "history": history, "data_digest": "0"})
    return folder, trainer


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_a_network_survives_the_way_to_a_model_and_back(norm, skips):
    net = net_of(norm, skips=skips, bottleneck_norm=True, in_channels=2, out_channels=4, eps=1e-3)
    model = export.to_model(net)
    x = torch.rand(2, 2, 64, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(
            UNet.from_model(model)(x), image_twin(net)(x), rtol=1e-5, atol=1e-5
        )
        if norm == "batch":
            torch.testing.assert_close(
                UNet.from_model(model, norm="running")(x), net.eval()(x), rtol=1e-5, atol=1e-5
            )
    assert model.architecture.dropout == ("d1", "d2")
    assert model.architecture.eps == 1e-3


def test_a_run_becomes_a_model_with_a_card(run, tmp_path):
    folder, trainer = run
    model = export.to_model(folder)
    card = model.card
    assert (card["name"], card["direction"], card["size"]) == ("facades", "BtoA", [64, 64])
    assert card["training"]["values"] == trainer.values and card["training"]["hours"] == 2.0
    assert card["metrics"]["split"] == "val"
    assert card["training"]["command"] == "pix2pix-fast train"  # no paths of this machine
    assert model.architecture.trained_norm == "image"  # batch norm, but batches of one
    for which in ("last", "best"):
        export.to_model(folder, which=which)
    path = tmp_path / "a.safetensors"
    model_file.save(model, path, dtype="bf16")
    assert model_file.load(path).card == card


def test_the_engine_draws_what_pytorch_draws(run, tmp_path):
    pytest.importorskip("pix2pix_fast._core")
    from pix2pix_fast.engine import Engine

    model = export.to_file(run[0], tmp_path / "a.safetensors", dtype="f16")
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    with Engine(tmp_path / "a.safetensors") as engine:
        found = engine.translate(picture)
    x = torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32)) / 127.5 - 1
    with torch.no_grad():
        y = UNet.from_model(model).translate(x)[0]
    expected = ((y + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_the_engine_takes_a_run_and_a_module(run, tmp_path):
    folder, trainer = run
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with Engine(trainer.g) as of_module, Engine(folder) as of_run:
        assert np.array_equal(of_module.translate(picture), of_run.translate(picture))
        got = of_module.translate(picture).astype(int)
    x = torch.from_numpy(picture.transpose(2, 0, 1) / 127.5 - 1).float()[None]
    with torch.no_grad():
        want = ((image_twin(trainer.g)(x)[0] + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert abs(got - want).max() <= 1
    (tmp_path / "last.pt").write_bytes(b"damaged")
    with pytest.raises(ModelFormatError, match="damaged"):
        Engine(tmp_path)
    with pytest.raises(ValueError, match="the engine runs U-Nets; .* ResNet, .*--format junyanz"):
        Engine(ResNet(ngf=4, blocks=6))


def test_a_disagreement_writes_nothing(run, tmp_path, monkeypatch):
    pytest.importorskip("pix2pix_fast._core")
    export.to_file(run[0], tmp_path / "good.safetensors")
    good = (tmp_path / "good.safetensors").read_bytes()
    right = UNet.from_model.__func__
    monkeypatch.setattr(
        UNet,
        "from_model",
        classmethod(
            lambda cls, m: (
                right(cls, m)
                .requires_grad_(False)
                .apply(
                    lambda module: module.weight.mul_(1.1) if hasattr(module, "weight") else None
                )
            )
        ),
    )
    with pytest.raises(export.ExportError, match="disagree"):
        export.to_file(run[0], tmp_path / "a.safetensors")
    with pytest.raises(export.ExportError, match="disagree"):
        export.to_file(run[0], tmp_path / "good.safetensors", dtype="f16")
    assert [path.name for path in tmp_path.iterdir()] == ["good.safetensors"]
    assert (tmp_path / "good.safetensors").read_bytes() == good


def test_a_run_without_held_out_pictures_has_no_best_state(run, tmp_path):
    (tmp_path / "last.pt").symlink_to(run[0] / "last.pt")
    with pytest.raises(state.StateError, match=r"has no best\.pt: .*--which last takes"):
        export.to_model(tmp_path, which="best")


def test_both_networks_go_back_to_junyanz(run, tmp_path):
    export.to_junyanz(run[0], tmp_path / "latest_net_G.pth")
    g = torch.load(tmp_path / "latest_net_G.pth", weights_only=True)
    d = torch.load(tmp_path / "latest_net_D.pth", weights_only=True)
    assert g["model.model.0.weight"].shape == (4, 3, 4, 4)
    assert "model.model.1.model.2.num_batches_tracked" in g
    assert sorted(d)[0] == "model.0.bias" and d["model.11.weight"].shape == (1, 32, 4, 4)


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
def test_checkpoints_reads_what_we_write_for_junyanz(norm, tmp_path):
    checkpoints = pytest.importorskip("pix2pix_fast.checkpoints")
    net = net_of(norm, depth=6)
    export.to_junyanz(net, tmp_path / "latest_net_G.pth")
    again = UNet.from_model(checkpoints.read(tmp_path / "latest_net_G.pth"))
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(again(x), image_twin(net)(x), rtol=1e-4, atol=1e-4)


def test_a_discriminator_is_named_after_its_generator_and_replaces_nothing(run, tmp_path):
    def command(*arguments):
        return CliRunner().invoke(
            export_command, [str(run[0]), *arguments, "--format", "junyanz"]
        )

    assert command(str(tmp_path / "mine.pth")).exit_code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"mine.pth", "mine_D.pth"}
    theirs = tmp_path / "a_GAN_net_D.pth"
    theirs.write_text("somebody's")
    refused = command(str(tmp_path / "a_GAN_net_G.pth"))
    assert refused.exit_code == 1
    assert "a_GAN_net_D.pth exists; --overwrite replaces it" in refused.stderr
    assert theirs.read_text() == "somebody's" and not (tmp_path / "a_GAN_net_G.pth").exists()
    assert command(str(tmp_path / "a_GAN_net_G.pth"), "--overwrite").exit_code == 0
    assert "model.0.bias" in torch.load(theirs, weights_only=True)


def test_an_unconditional_discriminator_is_left_out_aloud(tmp_path, caplog):
    trainer = Trainer(recipes.load("facades", depth=5, ngf=4, ndf=4, size=64, conditional=False))
    written = export.to_junyanz(trainer, tmp_path / "latest_net_G.pth")
    assert written == [tmp_path / "latest_net_G.pth"] == list(tmp_path.iterdir())
    assert "D is left out: it sees the output alone" in caplog.text


def test_the_export_command_replaces_nothing_unasked(run, tmp_path):
    def command(*arguments):
        return CliRunner().invoke(export_command, [str(run[0]), *arguments])

    folder = tmp_path / "new" / "his"
    done = command(str(folder), "--format", "junyanz")
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in folder.iterdir()) == ["latest_net_D.pth", "latest_net_G.pth"]
    for target, form in ((folder, "junyanz"), (tmp_path / "a.safetensors", "safetensors")):
        (tmp_path / "a.safetensors").write_text("somebody's")
        refused = command(str(target), "--format", form)
        assert refused.exit_code == 1 and "--overwrite replaces it" in refused.stderr
    assert (tmp_path / "a.safetensors").read_text() == "somebody's"
    assert command(str(tmp_path / "a.safetensors"), "--overwrite").exit_code == 0
    assert command(str(tmp_path)).exit_code == 2  # a folder, for one file


def test_the_commands_take_a_model_of_the_package_by_its_name(tmp_path):
    arguments = ["edges2photo", str(tmp_path), "--format", "junyanz"]
    assert CliRunner().invoke(export_command, arguments).exit_code == 0
    assert (tmp_path / "latest_net_G.pth").is_file()
    Image.new("L", (8, 8)).save(tmp_path / "gray.png")
    arguments = ["edges2photo", str(tmp_path / "gray.png"), str(tmp_path / "colour.png")]
    refused = CliRunner().invoke(colorize, arguments)
    assert refused.exit_code == 1 and "reads 1 channel and writes 2" in refused.stderr


def test_a_damaged_model_file_is_one_line(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of a model")
    arguments = [str(tmp_path / "bad.safetensors"), str(tmp_path / "o.safetensors")]
    refused = CliRunner().invoke(export_command, arguments)
    assert refused.exit_code == 1 and "bad.safetensors" in refused.stderr
    assert isinstance(refused.exception, SystemExit) and refused.stderr.count("\n") == 1


def test_a_foreign_module_is_read_as_its_checkpoint():
    pytest.importorskip("pix2pix_fast.checkpoints")
    net = net_of("batch", depth=6)

    class Foreign(torch.nn.Module):
        def state_dict(self):
            return junyanz.generator_state(net)

    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        again = UNet.from_model(export.to_model(Foreign()))(x)
        torch.testing.assert_close(again, image_twin(net)(x), rtol=1e-4, atol=1e-4)


def test_what_the_engine_cannot_run_is_refused():
    with pytest.raises(ValueError, match="this generator is a ResNet"):
        export.to_model(ResNet(ngf=4, blocks=6))


def half_saved(self, file, *_):
    file.write(b"half")
    raise OSError(28, "No space left on device")


def test_a_colorization_model_colours_a_picture(tmp_path, monkeypatch):
    pytest.importorskip("pix2pix_fast._core")
    net = net_of("image", in_channels=1, out_channels=2)
    path = tmp_path / "colour.safetensors"
    export.to_file(net, path)
    photo = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    done = CliRunner().invoke(
        colorize, [str(path), str(tmp_path / "photo.png"), str(tmp_path / "out.png")]
    )
    assert done.exit_code == 0, done.output
    found = np.asarray(Image.open(tmp_path / "out.png"))
    lightness = colour.split(photo)[0]
    with torch.no_grad():
        ab = UNet.from_model(model_file.load(path)).translate(lightness[None])[0]
    assert found.shape == photo.shape
    assert np.abs(found.astype(int) - colour.join(lightness, ab)).max() <= 1
    again = [str(path), str(tmp_path / "photo.png"), str(tmp_path / "out.png")]
    before = (tmp_path / "out.png").read_bytes()
    refused = CliRunner().invoke(colorize, again)
    assert refused.exit_code == 1 and "out.png exists; --overwrite replaces it" in refused.stderr
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", half_saved)
        assert CliRunner().invoke(colorize, [*again, "--overwrite"]).exit_code == 1
    assert (tmp_path / "out.png").read_bytes() == before and not list(tmp_path.glob(".*"))
    assert CliRunner().invoke(colorize, [*again, "--overwrite"]).exit_code == 0
    assert CliRunner().invoke(colorize, [*again[:2], "x.picture"]).exit_code == 2
    export.to_file(net_of("image"), path)
    done = CliRunner().invoke(colorize, [str(path), str(tmp_path / "photo.png"), "x.png"])
    assert done.exit_code == 1 and "reads 1 channel and writes 2, this one 3 and 3" in done.stderr
