"""Training runs: resume, interruption, bad moments, processes, reports, recipes and the command.

Networks are as narrow as they can be; pairs are real facades where they are at hand, drawn ones
where the test does not care. The two torchrun tests are the slowest (about ten seconds each on a
busy core).
"""

# ruff: noqa: E402  (torch may be missing: the imports come after the skip)
from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from click.testing import CliRunner
from PIL import Image
from pix2pix_fast.train import benchmark, colour, distributed, export, recipes, report, state
from pix2pix_fast.train import train as loop
from pix2pix_fast.train.cli import train as command
from pix2pix_fast.train.data import DataError
from pix2pix_fast.train.evaluation.pixel import pixel_metrics
from pix2pix_fast.train.train import Trainer, TrainingStopped, learning_rate, read_log, train

FACADES = Path(__file__).resolve().parents[2] / "shared" / "data" / "facades"
TINY = {
    "depth": 6,  # junyanz's dropout on d2
    "ngf": 4,
    "ndf": 4,
    "size": 64,
    "load_size": 72,
    "epochs": 2,
    "decay_epochs": 1,
    "log_every": 2,
    "evaluate_every": 1,
    "evaluate_count": 2,
}


pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(**overrides):
    return recipes.load("facades", **{**TINY, **overrides})


def draw(path, h=64, w=128, seed=0):
    """A house of rectangles and its colours, side by side: learnable, and nobody's picture."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((h, w, 3), np.uint8)
    for _ in range(6):
        y, x = rng.integers(0, h - 8), rng.integers(0, w // 2 - 8)
        pixels[y : y + 8, x : x + 8] = rng.integers(0, 256, 3)
    pixels[:, w // 2 :] = 255 - pixels[:, : w // 2]
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Five pairs to train on, two held out: real facades, or drawn ones without them."""
    root = tmp_path_factory.mktemp("pairs")
    for split, count in (("train", 5), ("val", 2)):
        (root / split).mkdir()
        real = sorted((FACADES / split).glob("*.jpg"))[:count] if FACADES.is_dir() else []
        for i in range(count):
            if real:
                (root / split / real[i].name).symlink_to(real[i])
            else:
                draw(root / split / f"{i}.png", seed=i)
    return root


@pytest.fixture(scope="session")
def facades(pairs):
    if not FACADES.is_dir():
        pytest.skip("no ../shared/data/facades")
    return pairs


def assert_same(a, b, path=""):
    """Two states, bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}/{i}")
    else:
        assert a == b, path


# ---- resume ----


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("stop", [3, 5, 8])
def test_a_stopped_and_resumed_run_equals_one_that_was_not(pairs, tmp_path, precision, stop):
    values = tiny(precision=precision)
    whole = train(values, pairs, tmp_path / "whole", max_steps=12, quiet=True)
    train(values, pairs, tmp_path / "parts", max_steps=stop, quiet=True)
    torch.manual_seed(99)
    parts = train(values, pairs, tmp_path / "parts", resume=True, max_steps=12, quiet=True)
    assert_same(whole.state_dict(), parts.state_dict())
    files = [state.load(tmp_path / name / "last.pt") for name in ("whole", "parts")]
    for key in ("g", "d", "opt_g", "opt_d", "random", "step"):
        assert_same(files[0][key], files[1][key])


def test_the_same_seed_gives_the_same_run_and_another_another(pairs, tmp_path):
    runs = [
        train(tiny(seed=seed), pairs, tmp_path / str(i), max_steps=3, quiet=True).state_dict()["g"]
        for i, seed in enumerate((1, 1, 2))
    ]
    assert_same(runs[0], runs[1])
    assert not torch.equal(runs[0]["d1.conv.weight"], runs[2]["d1.conv.weight"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_saves_and_the_run_goes_on(pairs, tmp_path, monkeypatch, number):
    whole = train(tiny(), pairs, tmp_path / "whole", max_steps=7, quiet=True)
    shown = report.Report.step

    def interrupt(self, step, *rest):
        shown(self, step, *rest)
        if step == 4:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(report.Report, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), pairs, tmp_path / "run", quiet=True)
    assert state.load(tmp_path / "run" / "last.pt")["step"] == 4
    monkeypatch.undo()
    again = train(tiny(), pairs, tmp_path / "run", resume=True, max_steps=7, quiet=True)
    assert_same(whole.state_dict(), again.state_dict())


def test_a_run_is_neither_overwritten_nor_turned_into_another(pairs, tmp_path):
    with pytest.raises(state.StateError, match="nothing to resume"):
        train(tiny(), pairs, tmp_path, resume=True, quiet=True)
    train(tiny(), pairs, tmp_path, max_steps=1, quiet=True)
    with pytest.raises(state.StateError, match="--resume continues it"):
        train(tiny(), pairs, tmp_path, quiet=True)
    with pytest.raises(state.StateError, match=r"not the run that was saved: lr 0\.0002 -> 0\.1"):
        train(tiny(lr=0.1), pairs, tmp_path, resume=True, quiet=True)
    other = tmp_path / "other"
    (other / "train").mkdir(parents=True)
    for i in range(3):
        draw(other / "train" / f"{i}.png", seed=i)
    with pytest.raises(state.StateError, match="not the data that"):
        train(tiny(), other, tmp_path, resume=True, quiet=True)
    train(
        tiny(epochs=3), pairs, tmp_path, resume=True, max_steps=2, quiet=True
    )  # longer is the same


# ---- bad moments ----


def write_arrays(root, count=4, poison=None):
    (root / "train").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        array = rng.random((64, 128, 3), dtype=np.float32)
        if i == poison:
            array[5, 5, 0] = np.nan
        np.save(root / "train" / f"pair{i}.npy", array)


def test_nan_names_step_and_pair_and_leaves_the_last_state(tmp_path):
    write_arrays(tmp_path / "good")
    values = tiny()
    train(values, tmp_path / "good", tmp_path / "run", max_steps=2, quiet=True)
    before = (tmp_path / "run" / "last.pt").read_bytes()
    for file in (tmp_path / "good" / "train").iterdir():
        np.save(file, np.full((64, 128, 3), np.nan, np.float32))
    with pytest.raises(TrainingStopped) as error:
        train(values, tmp_path / "good", tmp_path / "run", resume=True, quiet=True)
    third = int(np.random.default_rng([0, 0]).permutation(4)[2])
    assert f"step 2, train/pair{third}.npy" in str(error.value)
    assert "a loss is not finite" in str(error.value) and "last.pt" in str(error.value)
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
    assert read_log(tmp_path / "run")[-1]["event"] == "stopped"


def test_an_overflowing_gradient_names_the_pair_before(tmp_path, monkeypatch):
    write_arrays(tmp_path / "data")
    step = Trainer.step

    def poisoned(self, batches):
        losses = step(self, batches)
        if self.step_count == 2:
            next(self.g.parameters()).data.fill_(float("inf"))
        return losses

    monkeypatch.setattr(Trainer, "step", poisoned)
    second = int(np.random.default_rng([0, 0]).permutation(4)[1])
    with pytest.raises(TrainingStopped, match=rf"step 2, train/pair{second}\.npy: a loss is not"):
        train(tiny(), tmp_path / "data", tmp_path / "run", quiet=True)


@pytest.mark.parametrize("number", [1, 2])
def test_an_overflow_of_this_steps_d_names_its_pairs_too(tmp_path, monkeypatch, number):
    write_arrays(tmp_path / "data")
    move = Trainer._move

    def poisoned(self, optimiser, scaler, name):
        move(self, optimiser, scaler, name)
        if name == "D" and self.step_count == number - 1:
            next(self.d.parameters()).data.fill_(float("inf"))

    monkeypatch.setattr(Trainer, "_move", poisoned)
    order = np.random.default_rng([0, 0]).permutation(4)[:number]
    named = ", ".join(f"train/pair{i}.npy" for i in order)
    with pytest.raises(TrainingStopped, match=rf"step {number - 1}, {named}: a loss is not finite"):
        train(tiny(), tmp_path / "data", tmp_path / "run", quiet=True)


def test_weights_that_overflow_at_the_end_of_an_epoch_are_not_saved(tmp_path, monkeypatch):
    write_arrays(tmp_path / "data")
    step = Trainer.step

    def poisoned(self, batches):
        losses = step(self, batches)
        if self.step_count == 8:
            next(self.g.parameters()).data.fill_(float("inf"))
        return losses

    monkeypatch.setattr(Trainer, "step", poisoned)
    eighth = int(np.random.default_rng([0, 1]).permutation(4)[3])
    with pytest.raises(TrainingStopped, match=rf"step 8, train/pair{eighth}\.npy: a gradient over"):
        train(tiny(), tmp_path / "data", tmp_path / "run", quiet=True)
    saved = state.load(tmp_path / "run" / "last.pt")
    assert saved["step"] == 4
    assert all(t.isfinite().all() for t in saved["g"].values())


def test_a_picture_that_breaks_later_costs_nothing(pairs, tmp_path):
    data = tmp_path / "data"
    (data / "train").mkdir(parents=True)
    for i in range(4):
        draw(data / "train" / f"{i}.bmp", seed=i)
    order = np.random.default_rng([0, 0]).permutation(4)
    bad = data / "train" / f"{order[2]}.bmp"
    size = bad.stat().st_size
    bad.write_bytes(bad.read_bytes()[: size // 2] + b"")  # the header still reads
    with pytest.raises(DataError, match=rf"{bad.name}: not a readable picture"):
        train(tiny(), data, tmp_path / "run", quiet=True)
    assert state.load(tmp_path / "run" / "last.pt")["step"] == 2
    draw(bad, seed=int(order[2]))
    assert bad.stat().st_size == size
    with pytest.raises(
        state.StateError, match=rf"1 of another size \(train/{bad.name}\); --changed-data goes on"
    ):
        train(tiny(), data, tmp_path / "run", resume=True, quiet=True)
    bad.unlink()
    with pytest.raises(state.StateError, match=rf"1 gone \(train/{bad.name}\); --changed-data"):
        train(tiny(), data, tmp_path / "run", resume=True, quiet=True)
    values = tiny()
    train(values, data, tmp_path / "run", resume=True, changed_data=True, quiet=True)
    epochs = [(e["epoch"], e["step"]) for e in read_log(tmp_path / "run") if e["event"] == "epoch"]
    assert epochs == [(1, 3), (2, 6), (3, 9)]  # three pairs now: one of them after the two steps
    draw(data / "train" / "new.bmp", seed=9)  # five steps of an epoch of four pairs
    longer = tiny(epochs=3)
    train(longer, data, tmp_path / "run", resume=True, changed_data=True, max_steps=11, quiet=True)
    train(longer, data, tmp_path / "run", resume=True, quiet=True)
    saved = state.load(tmp_path / "run" / "last.pt")
    assert saved["step"] == 13
    changes = export.to_model(tmp_path / "run").card["training"]["data_changes"]
    assert [(c["step"], c["pairs"]) for c in changes] == [(2, 3), (9, 4)]


def test_a_bad_picture_is_one_line_from_a_worker_too(tmp_path):
    (tmp_path / "train").mkdir()
    for i in range(2):
        draw(tmp_path / "train" / f"{i}.bmp", seed=i)
    for file in (tmp_path / "train").iterdir():
        file.write_bytes(file.read_bytes()[:9000])  # the headers still read
    said = []
    for workers in (0, 1):
        with pytest.raises(DataError) as error:
            train(tiny(workers=workers), tmp_path, tmp_path / f"run{workers}", quiet=True)
        said.append(str(error.value))
    assert said[0] == said[1] and ".bmp: not a readable picture" in said[0] and "\n" not in said[0]


def test_changed_data_that_was_never_saved_is_still_named(tmp_path, monkeypatch):
    data, run = tmp_path / "data", tmp_path / "run"
    write_arrays(data)
    train(tiny(), data, run, max_steps=1, quiet=True)
    np.save(data / "train" / "new.npy", np.zeros((64, 128, 3), np.float32))

    def killed(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        with pytest.raises(MemoryError):
            train(tiny(), data, run, resume=True, changed_data=True, quiet=True)
    with pytest.raises(state.StateError, match=r"1 new \(train/new\.npy\); --changed-data goes on"):
        train(tiny(), data, run, resume=True, quiet=True)
    train(tiny(), data, run, resume=True, changed_data=True, max_steps=2, quiet=True)
    train(tiny(), data, run, resume=True, max_steps=3, quiet=True)
    files = loop.Pairs(data, "train", tiny()).sizes()
    assert json.loads((run / "data.json").read_text()) == files
    assert loop.difference(run / "data.json", files) == ""


def test_a_run_that_is_killed_goes_on_from_the_last_saved_step(pairs, tmp_path, monkeypatch):
    values = tiny(save_every=3)
    whole = train(values, pairs, tmp_path / "whole", max_steps=8, quiet=True)
    step = Trainer.step

    def killed(self, batches):
        if self.step_count == 4:
            raise MemoryError
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(MemoryError):
        train(values, pairs, tmp_path / "run", quiet=True)
    assert state.load(tmp_path / "run" / "last.pt")["step"] == 3
    monkeypatch.undo()
    again = train(values, pairs, tmp_path / "run", resume=True, max_steps=8, quiet=True)
    assert_same(whole.state_dict(), again.state_dict())


def test_a_value_that_is_newer_than_the_run_had_its_default(pairs, tmp_path):
    train(tiny(), pairs, tmp_path, max_steps=1, quiet=True)
    saved = state.load(tmp_path / "last.pt")
    for name in ("eps", "mirrored"):
        del saved["values"][name]
    state.save(tmp_path / "last.pt", {k: v for k, v in saved.items() if k != "format"})
    with pytest.raises(state.StateError, match=r"saved: eps 1e-05 -> 0\.001$"):
        train(tiny(eps=1e-3), pairs, tmp_path, resume=True, quiet=True)
    train(tiny(), pairs, tmp_path, resume=True, max_steps=2, quiet=True)


def test_trouble_with_a_held_out_picture_costs_neither_epoch_nor_run(tmp_path, caplog):
    write_arrays(tmp_path / "data")
    (tmp_path / "data" / "val").mkdir()
    for i in range(2):
        draw(tmp_path / "data" / "val" / f"{i}.bmp", seed=i)
    bad = tmp_path / "data" / "val" / "1.bmp"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])  # the header still reads
    with caplog.at_level("WARNING", "pix2pix_fast.train"):
        train(tiny(), tmp_path / "data", tmp_path / "run", quiet=True)
    assert "1.bmp: not a readable picture" in caplog.text
    assert state.load(tmp_path / "run" / "last.pt")["step"] == 12
    events = [e["event"] for e in read_log(tmp_path / "run")]
    assert events.count("held_out_trouble") == 3 and "evaluate" not in events


def test_a_held_out_nan_is_named_and_the_run_still_exports(tmp_path, caplog):
    write_arrays(tmp_path / "data")
    write_arrays(tmp_path / "other", count=2, poison=1)
    (tmp_path / "other" / "train").rename(tmp_path / "data" / "val")
    with caplog.at_level("WARNING", "pix2pix_fast.train"):
        train(tiny(), tmp_path / "data", tmp_path / "run", quiet=True)
    assert "val/pair1.npy: a value is not finite" in caplog.text
    assert "evaluate" not in [e["event"] for e in read_log(tmp_path / "run")]
    assert export.to_model(tmp_path / "run").card["metrics"] == {}


def test_figures_that_are_not_finite_are_never_the_best(pairs, tmp_path, monkeypatch):
    figures = iter([{"l1": float("nan")}, {"l1": 0.5}])
    monkeypatch.setattr(loop, "evaluate", lambda *_: next(figures) | {"psnr": 9.0, "ssim": 0.1})
    values = tiny(epochs=2, decay_epochs=0, sample_every=0)
    train(values, pairs, tmp_path, quiet=True)
    saved = state.load(tmp_path / "best.pt")
    assert saved["step"] == 10 and saved["history"]["best_l1"] == 0.5


def test_the_log_is_strict_json(tmp_path):
    shown = report.Report(tmp_path, tiny(), 9, 1, quiet=True)
    shown.event("steps", l1=float("nan"), values={"lr": float("inf"), "many": [1.5, -float("inf")]})
    event = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)
    assert event["l1"] is None and event["values"] == {"lr": None, "many": [1.5, None]}


def test_the_state_is_saved_before_the_held_out_pictures_are_looked_at(
    pairs, tmp_path, monkeypatch
):
    def broken(*_, **__):
        raise MemoryError

    monkeypatch.setattr(loop, "sample", broken)
    with pytest.raises(MemoryError):
        train(tiny(), pairs, tmp_path / "run", quiet=True)
    assert state.load(tmp_path / "run" / "last.pt")["step"] == 5


def test_a_run_of_no_epochs_is_refused(pairs, tmp_path):
    with pytest.raises(ValueError, match="epochs and decay_epochs are 0: nothing to train"):
        train(tiny(epochs=0, decay_epochs=0), pairs, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_killed_before_its_last_look_takes_it_when_resumed(pairs, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise MemoryError

    values = tiny(epochs=1, decay_epochs=0)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(loop, "look", killed)
        train(values, pairs, tmp_path, quiet=True)
    assert state.load(tmp_path / "last.pt")["step"] == 5
    assert export.to_model(tmp_path).card["metrics"] == {}
    for _ in range(2):
        train(values, pairs, tmp_path, resume=True, quiet=True)
    assert [e["event"] for e in read_log(tmp_path)].count("evaluate") == 1
    assert export.to_model(tmp_path).card["metrics"]["epoch"] == 1
    assert export.to_model(tmp_path, which="best").card["metrics"]["epoch"] == 1


def test_no_look_is_taken_where_none_is_wanted(pairs, tmp_path):
    values = tiny(sample_every=0, evaluate_every=0, epochs=1, decay_epochs=0)
    train(values, pairs, tmp_path, quiet=True)
    assert "evaluate" not in [e["event"] for e in read_log(tmp_path)]
    assert not (tmp_path / "samples").exists() and not (tmp_path / "best.pt").exists()


def test_the_best_figure_survives_a_resume(pairs, tmp_path):
    train(tiny(), pairs, tmp_path, max_steps=5, quiet=True)
    saved = [state.load(tmp_path / f"{name}.pt")["history"] for name in ("last", "best")]
    assert saved[0]["best_l1"] == saved[1]["best_l1"] < 1
    assert saved[0]["metrics"] == saved[1]["metrics"]


def test_a_grown_held_out_set_starts_the_gallery_anew(tmp_path):
    for split, count in (("train", 5), ("val", 2)):
        (tmp_path / split).mkdir()
        for i in range(count):
            draw(tmp_path / split / f"{i}.png", seed=i)
    run = tmp_path / "run"
    train(tiny(), tmp_path, run, max_steps=5, quiet=True)
    draw(tmp_path / "val" / "2.png", seed=2)
    train(tiny(), tmp_path, run, resume=True, quiet=True)
    page = (run / "gallery.html").read_text()
    assert page.count("<img") == 3 * (2 + 2) and "epoch 1<" not in page


def test_the_gallery_shows_epochs_in_order_and_no_other_picture(tmp_path):
    (tmp_path / "samples").mkdir()
    for name in ("0002", "10000", "9999", "notes"):
        draw(tmp_path / "samples" / f"{name}.png", h=16, w=48)
    page = report.gallery(tmp_path, tiny())
    assert [page.index(f"<th>epoch {n}<") for n in (2, 9999, 10000)] == sorted(
        page.index(f"<th>epoch {n}<") for n in (2, 9999, 10000)
    )
    assert page.count("<th>") == 2 + 3


def test_pictures_too_small_for_figures_cost_them_with_a_warning(tmp_path, caplog):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (8, 4)).save(tmp_path / split / "a.png")
    values = tiny(size=4, load_size=4, depth=2, d_layers=0, epochs=1, decay_epochs=0)
    train(values, tmp_path, tmp_path / "run", quiet=True)
    assert "4x4 (height x width), but SSIM's window needs 6" in caplog.text
    values = tiny(size=8, load_size=8, generator="resnet6", d_layers=0, epochs=1, decay_epochs=0)
    train(values, tmp_path, tmp_path / "least", quiet=True)
    assert "evaluate" in [e["event"] for e in read_log(tmp_path / "least")]


def test_a_full_disk_keeps_the_earlier_state(pairs, tmp_path, monkeypatch):
    train(tiny(), pairs, tmp_path, max_steps=2, quiet=True)
    before = (tmp_path / "last.pt").read_bytes()

    def full(value, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(state.StateError, match=r"No space left.*earlier last\.pt is untouched"):
        train(tiny(), pairs, tmp_path, resume=True, max_steps=3, quiet=True)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_a_full_disk_costs_tensorboard_and_not_the_run(pairs, tmp_path, monkeypatch, caplog):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for name in ("add_scalar", "add_image", "close"):
        with monkeypatch.context() as patch, caplog.at_level("WARNING", "pix2pix_fast.train"):
            caplog.clear()
            patch.setattr(tensorboard.SummaryWriter, name, full)
            train(tiny(epochs=1, decay_epochs=0), pairs, tmp_path / name)
        assert caplog.text.count("no TensorBoard logs from here on") == 1
        assert read_log(tmp_path / name)[-1]["event"] == "end"


def test_half_a_line_of_the_log_costs_that_line_alone(tmp_path):
    shown = report.Report(tmp_path, tiny(), 9, 1, quiet=True)
    shown.event("start")
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "ste')
    shown.event("epoch")
    shown.event("end")
    assert [e["event"] for e in read_log(tmp_path)] == ["start", "epoch", "end"]


def test_a_damaged_state_is_named(tmp_path, pairs):
    train(tiny(), pairs, tmp_path, max_steps=1, quiet=True)
    whole = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(state.StateError, match=r"last\.pt is damaged"):
        train(tiny(), pairs, tmp_path, resume=True, quiet=True)
    torch.save({"format": 99}, tmp_path / "last.pt")
    with pytest.raises(state.StateError, match="has format 99, this version reads 1"):
        state.load(tmp_path / "last.pt")


# ---- schedule, reports ----


def test_schedules_of_junyanz_and_of_the_paper():
    junyanz = recipes.load("facades")
    assert learning_rate(junyanz, 0) == learning_rate(junyanz, 99) == 2e-4
    assert learning_rate(junyanz, 100) == pytest.approx(2e-4 * 100 / 101)
    assert learning_rate(junyanz, 199) == pytest.approx(2e-4 / 101)
    assert learning_rate(recipes.load("table1_l1_cgan"), 199) == 2e-4


def test_a_run_leaves_log_grids_gallery_and_scalars(pairs, tmp_path):
    pytest.importorskip("tensorboard")
    trainer = train(tiny(), pairs, tmp_path)
    assert trainer.step_count == 15
    log = read_log(tmp_path)
    assert [e["epoch"] for e in log if e["event"] == "epoch"] == [1, 2, 3]
    start = log[0]
    assert start["values"]["recipe"] == "facades" and start["pairs"] == 5
    assert {"command", "versions", "data_digest", "threads", "device"} <= set(start)
    steps = [e for e in log if e["event"] == "steps"]
    assert {"d_fake", "d_real", "g_gan", "l1", "per_second", "rate"} <= set(steps[0])
    held = [e for e in log if e["event"] == "evaluate"]
    assert len(held) == 3 and {"l1", "psnr", "ssim"} <= set(held[0])
    with Image.open(tmp_path / "samples" / "0003.png") as grid:
        assert grid.size == (3 * 64, 2 * 64)
    page = (tmp_path / "gallery.html").read_text()
    assert page.count("<img") == 2 * (2 + 3) and "http" not in page
    assert "epoch 3" in page and "facade labels to photo" in page
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert (tmp_path / "best.pt").exists()
    stored = state.load(tmp_path / "best.pt")
    assert stored["history"]["best_l1"] == min(e["l1"] for e in held)


def test_pictures_per_second_count_training_alone(pairs, tmp_path, monkeypatch):
    """On a clock of our own: a step takes 1 s, a look 100."""
    clock = [0.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: clock[0])

    def takes(owner, name, seconds):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            clock[0] += seconds
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    takes(Trainer, "step", 1.0)
    takes(loop, "sample", 100.0)
    takes(loop, "evaluate", 100.0)
    takes(state, "save", 100.0)
    train(tiny(log_every=3, save_every=2), pairs, tmp_path, quiet=True)
    speeds = [e["per_second"] for e in read_log(tmp_path) if e["event"] == "steps"]
    assert speeds == [1.0] * 5
    shown = report.Report(tmp_path, tiny(log_every=1), 9, 6, quiet=True)  # two processes of three
    clock[0] += 2
    shown.step(1, 0, {}, 0.1)
    assert read_log(tmp_path)[-1]["per_second"] == 3.0


def test_the_time_remaining_is_shown_on_a_slow_machine_and_after_a_resume(tmp_path, monkeypatch):
    """A step takes 20 s: between two reports of the losses lie more than 16 minutes."""
    import rich.console

    terminal = rich.console.Console(force_terminal=True, file=io.StringIO())
    monkeypatch.setattr(rich.console, "Console", lambda **_: terminal)
    values = tiny(log_every=50)
    with report.Report(tmp_path, values, 1000, 1, done=900) as shown:
        shown.progress.stop()
        clock = [0.0]
        shown.progress.get_time = lambda: clock[0]
        (task,) = shown.progress.tasks
        task._get_time = shown.progress.get_time
        for step in range(901, 911):
            clock[0] += 20
            shown.step(step, 0, {}, 0.1)
        assert task.completed == 910 and task.time_remaining == 90 * 20


def test_training_learns(tmp_path):
    """L1 of held-out drawings halves: the sign of every part of the loop is right."""
    for split, count in (("train", 8), ("val", 2)):
        (tmp_path / split).mkdir()
        for i in range(count):
            draw(tmp_path / split / f"{i}.png", seed=i + 100 * (split == "val"))
    values = tiny(
        direction="AtoB",
        epochs=12,
        decay_epochs=0,
        ngf=8,
        lr=2e-3,
        evaluate_every=4,
        dropout="none",
    )
    train(values, tmp_path, tmp_path / "run", quiet=True)
    figures = [e["l1"] for e in read_log(tmp_path / "run") if e["event"] == "evaluate"]
    first = Trainer(values)
    held = loop.Pairs(tmp_path, "val", values)
    assert figures[-1] < 0.5 * loop.evaluate(first, held, 2)["l1"]


def test_a_colorization_is_judged_in_rgb(tmp_path):
    (tmp_path / "val").mkdir()
    for i in range(2):
        draw(tmp_path / "val" / f"{i}.png", w=64, seed=i)
    values = recipes.load("colorization", **{**TINY, "load_size": 64})
    held = loop.Pairs(tmp_path, "val", values)
    trainer = Trainer(values)
    trainer.translate = lambda x: torch.zeros(1, 2, 64, 64)  # gray
    found = loop.evaluate(trainer, held, 2)
    errors = []
    for i in range(2):
        with Image.open(tmp_path / "val" / f"{i}.png") as image:
            photo = np.asarray(image) / 255
        lab = colour.rgb_to_lab(photo)
        lab[..., 1:] = 0
        errors.append(np.abs(colour.lab_to_rgb(lab) - photo).mean())
    assert found["l1"] == pytest.approx(np.mean(errors), rel=1e-3)


def test_samples_are_lab_for_a_colorization_alone(tmp_path):
    rows = [(torch.zeros(1, 8, 8), torch.full((2, 8, 8), 0.5), torch.zeros(2, 8, 8))]
    for form, colourless in (("folders", True), ("colorization", False)):
        values = tiny(data_form=form, in_channels=1, out_channels=2)
        (tmp_path / form).mkdir()
        report.Report(tmp_path / form, values, 9, 1, quiet=True).samples(1, rows)
        with Image.open(tmp_path / form / "samples" / "0001.png") as image:
            output = np.asarray(image)[:, 8:16]
        assert (output == output[:, :, :1]).all() == colourless


def test_pixel_figures_against_numpy():
    rng = np.random.default_rng(0)
    y, t = (rng.uniform(-1, 1, (2, 3, 40, 48)).astype(np.float32) for _ in range(2))
    t = (0.7 * t + 0.3 * y).astype(np.float32)
    found = pixel_metrics(
        (torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(y, t, strict=True)
    )
    y, t = (y.astype(np.float64) + 1) / 2, (t.astype(np.float64) + 1) / 2
    error = (y - t) ** 2
    assert found["l1"] == pytest.approx(np.abs(y - t).mean(), rel=1e-5)
    psnr = [10 * np.log10(1 / e.mean()) for e in error]
    assert found["psnr"] == pytest.approx(np.mean(psnr), rel=1e-5)
    # SSIM of Wang et al. 2004: Gaussian window 11, sigma 1.5, k 0.01 and 0.03; borders reflected
    taps = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    window = np.outer(taps, taps) / taps.sum() ** 2

    def blur(a):
        a = np.pad(a, [(0, 0), (0, 0), (5, 5), (5, 5)], mode="reflect")
        views = np.lib.stride_tricks.sliding_window_view(a, (11, 11), axis=(-2, -1))
        return (views * window).sum((-2, -1))

    mu_y, mu_t = blur(y), blur(t)
    var_y, var_t = blur(y * y) - mu_y**2, blur(t * t) - mu_t**2
    cov = blur(y * t) - mu_y * mu_t
    ssim = ((2 * mu_y * mu_t + 1e-4) * (2 * cov + 9e-4)) / (
        (mu_y**2 + mu_t**2 + 1e-4) * (var_y + var_t + 9e-4)
    )
    assert found["ssim"] == pytest.approx(ssim.mean(), abs=2e-4)


def test_only_a_perfect_picture_has_100_decibels():
    y = torch.zeros(3, 16, 16)
    assert pixel_metrics([(y, y)])["psnr"] == 100
    bad = y.clone()
    bad[0, 0, 0] = torch.nan
    assert np.isnan(pixel_metrics([(y, y), (bad, y)])["psnr"])


# ---- recipes and the command ----


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_trains(name, facades, tmp_path):
    """Two steps on real pairs at width 2; 128 pixels are enough for every discriminator."""
    recipe = recipes.load(name)
    values = recipes.load(
        name,
        ngf=2,
        ndf=2,
        depth=7,
        size=128,
        load_size=max(128, recipe["load_size"] // 2),
        batch=min(2, recipe["batch"]),
        evaluate_count=1,
    )
    trainer = train(values, facades, tmp_path, max_steps=2, quiet=True)
    assert trainer.step_count == 2
    assert (trainer.d is None) == (recipe["gan_weight"] == 0)
    assert trainer.g.skips == ("encdec" not in name)


TO_LABELS = {"task": "street photo to labels", "direction": "AtoB"}


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        ("table1_l1", {"gan_weight": 0.0}),
        ("table1_gan", {"l1_weight": 0.0, "conditional": False}),
        ("table1_cgan", {"l1_weight": 0.0}),
        ("table1_l1_gan", {"conditional": False}),
        ("table2_encdec_l1_cgan", {"generator": "encdec", "batch": 10}),
        ("table3_pixel", {"d_layers": 0}),
        ("table3_16", {"d_layers": 1}),
        ("table3_286", {"d_layers": 5}),
        ("table6_l1_cgan", TO_LABELS),
        ("table6_cgan", {"l1_weight": 0.0, **TO_LABELS}),
        ("table6_l1", {"gan_weight": 0.0, **TO_LABELS}),
    ],
)
def test_ablations_differ_from_the_method_as_the_paper_says(name, differs):
    method, row = recipes.load("table1_l1_cgan"), recipes.load(name)
    assert {k: row[k] for k in row if row[k] != method[k]} == {"recipe": name, **differs}


def test_recipes_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="no recipe 'facade'; there are: .*facades"):
        recipes.load("facade")
    with pytest.raises(ValueError, match="no value is called ngff"):
        recipes.load("facades", ngff=3)
    with pytest.raises(ValueError, match="ngf is of type int, got 'wide'"):
        recipes.load("facades", ngf="wide")
    with pytest.raises(ValueError, match="follows only labels a recipe"):
        recipes.load("facades", follows="paper")
    assert recipes.load("facades", ngf="16", mirror="false")["mirror"] is False


@pytest.mark.parametrize("name", ["batch", "accumulate", "evaluate_count", "log_every"])
def test_what_must_be_counted_is_at_least_one(name):
    with pytest.raises(ValueError, match=f"{name} is at least 1, got 0"):
        recipes.load("facades", **{name: 0})
    with pytest.raises(ValueError, match="evaluate_every is at least 0, got -1"):
        recipes.load("facades", evaluate_every=-1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"ngf": 16.7}, "ngf is of type int, got 16.7"),
        ({"ngf": 0}, "ngf is at least 1, got 0"),
        ({"l1_weight": -1.0}, r"l1_weight is at least 0, got -1\.0"),
        ({"lr": "nan"}, "lr is at least 0, got nan"),
        ({"size": 100}, r"size 100: a unet takes multiples of 64 \(2\^depth, depth 6\)"),
        ({"size": 62, "generator": "resnet6"}, "a resnet6 takes multiples of 4"),
        ({"size": 4, "generator": "resnet6", "d_layers": 0}, "size 4: a resnet6 needs 8 or more"),
        ({"d_layers": 5}, "size 64: with d_layers 5 the discriminator needs 96 or more"),
        ({"gan_weight": 0.0, "l1_weight": 0.0}, "nothing to train"),
    ],
)
def test_values_that_no_network_can_have_are_refused_by_name(wrong, words):
    with pytest.raises(ValueError, match=words):
        Trainer(tiny(**wrong))


def test_the_smallest_map_of_each_discriminator_is_allowed():
    for n in range(7):
        values = tiny(d_layers=n, size=64 if n < 5 else 3 * 2**n, depth=5)
        d = Trainer(values).d
        assert d(torch.zeros(1, 6, values["size"], values["size"])).numel() >= 1


def test_the_command(facades, tmp_path):
    arguments = ["facades", str(facades), "-o", str(tmp_path / "run"), "--smoke", "--threads", "1"]
    arguments += [
        item for key in ("depth", "size", "load_size") for item in ("--set", f"{key}={TINY[key]}")
    ]
    runner = CliRunner()
    assert runner.invoke(command, [*arguments, "--max-steps", "2"]).exit_code == 0
    assert "evaluate" in [e["event"] for e in read_log(tmp_path / "run")]  # within an epoch, too
    assert (tmp_path / "run" / "gallery.html").exists()
    refused = runner.invoke(command, arguments)
    assert refused.exit_code == 1 and "--resume continues it" in refused.stderr
    resumed = runner.invoke(command, [*arguments, "--resume", "--set", "log_every=1"])
    assert resumed.exit_code == 0
    assert "5 steps done; a model of them: " in resumed.stdout
    assert "epoch 1, step 3 of 5: d_fake" in resumed.stderr and "pictures/s" in resumed.stderr
    assert "epoch 1, held out: l1" in resumed.stderr
    assert read_log(tmp_path / "run")[-1]["step"] == 5  # one epoch of five pairs
    assert (tmp_path / "run" / "samples" / "0001.png").exists()
    resnet = [*arguments, "-o", str(tmp_path / "resnet"), "--set", "generator=resnet6", "--max-steps", "1"]
    assert "/resnet FOLDER --format junyanz" in runner.invoke(command, resnet).stdout
    alone = runner.invoke(command, [*arguments, "--changed-data"])
    assert alone.exit_code == 2 and "belongs to --resume" in alone.stderr
    wrong = runner.invoke(command, ["facade", str(facades), "-o", str(tmp_path / "x")])
    assert wrong.exit_code == 2 and "no recipe 'facade'" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_an_early_interruption_does_not_claim_a_state(pairs, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "Pairs", interrupt)
    stopped = CliRunner().invoke(command, ["facades", str(pairs), "-o", str(tmp_path / "run")])
    assert stopped.exit_code == 130 and "stopped; nothing was saved" in stopped.stderr


def test_a_process_whose_others_are_gone_says_so(pairs, tmp_path, monkeypatch):
    def closed(*_):
        raise RuntimeError("[pair.cc:553] Connection closed by peer. This is typically caused by")

    monkeypatch.setattr(distributed, "world", lambda: 2)
    for call in ("all_gather_object", "all_reduce"):
        monkeypatch.setattr(distributed.dist, call, closed)
    gone = CliRunner().invoke(command, ["facades", str(pairs), "-o", str(tmp_path / "run"), "--smoke"])
    assert gone.exit_code == 1 and gone.stderr.splitlines()[-1] == (
        "pix2pix-fast: process 0 cannot reach the others; the first that ended says why "
        "([pair.cc:553] Connection closed by peer)"
    )
    net = torch.nn.Linear(1, 1)
    net(torch.ones(1)).backward()
    with pytest.raises(distributed.ProcessLost):
        distributed.average_gradients(net)


# ---- devices ----


@pytest.mark.parametrize(("rooms", "warned"), [(["scalar", "avx2"], True), (["avx512bf16"], False)])
def test_emulated_bfloat16_is_not_silently_slow(pairs, tmp_path, monkeypatch, caplog, rooms, warned):
    monkeypatch.setattr(loop.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(loop._core, "cpu", lambda: {"runnable": rooms})
    with caplog.at_level("WARNING", "pix2pix_fast.train"):
        train(tiny(precision="bf16"), pairs, tmp_path / "run", max_steps=1, device="cpu", quiet=True)
    assert ("no bfloat16 instructions" in caplog.text) == warned


@pytest.mark.parametrize("device", ["foo", "mps", "meta"])
def test_a_device_that_is_none(device):
    with pytest.raises(ValueError, match=f"expected auto, cpu or cuda, got '{device}'"):
        distributed.start(device)


def test_cuda_is_the_gpu_of_this_process(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert distributed.start("cuda") == "cuda:0" and distributed.start("cuda:3") == "cuda:3"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.start("cuda") == distributed.start("auto") == "cuda:1"
    assert chosen == ["cuda:0", "cuda:3", "cuda:1", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed.start("auto") == "cpu"
    with pytest.raises(ValueError, match="device cuda:1: PyTorch .* sees no GPU"):
        distributed.start("cuda")


def test_only_the_generator_of_this_process_is_saved(monkeypatch):
    kept = {}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda d: torch.tensor([d.index]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda s, d: kept.update({d.index: s}))
    saved = state.random_state(torch.device("cuda:1"))
    state.restore_random_state(saved, torch.device("cuda:1"))
    assert kept.keys() == {1} and kept[1].item() == 1
    assert "cuda" not in state.random_state(torch.device("cpu"))
    state.restore_random_state(saved, torch.device("cpu"))  # a GPU's run goes on without one


def test_the_benchmark_waits_for_the_device_and_leaves_plain_adam_alone(monkeypatch):
    plain, ours = (benchmark.make(name, 2, 2, 1, "cpu") for name in list(benchmark.VARIANTS)[:2])
    assert plain.opt_g.defaults["fused"] is plain.opt_d.defaults["fused"] is None
    assert ours.opt_g.defaults["fused"] is True
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    for device in ("cpu", "cuda:1"):
        benchmark.wait(device)
    assert waited == ["cuda:1"]


# ---- several processes (slowest) ----

RANK = """
import json, sys, torch
from pix2pix_fast.train import distributed, recipes
from pix2pix_fast.train.trainer import Trainer
torch.set_num_threads(1)
distributed.start("cpu")
trainer = Trainer(json.loads(sys.argv[1]))
trainer.g.double(); trainer.d.double()
x, t = torch.load(sys.argv[2], weights_only=True)
r = distributed.rank()
trainer.step([(x[r:r + 1], t[r:r + 1])])
grads = [[p.grad for p in net.parameters()] for net in (trainer.g, trainer.d)]
torch.save(grads, f"{sys.argv[3]}/{r}.pt")
"""


def torchrun(arguments, cwd):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--standalone",
            *arguments,
        ],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_two_processes_give_the_gradients_of_the_joined_batch(tmp_path):
    values = tiny(depth=5, norm="image", dropout="none", channels_last=False)
    x, t = (torch.rand(2, 3, 64, 64).double() * 2 - 1 for _ in range(2))
    torch.save((x, t), tmp_path / "batch.pt")
    (tmp_path / "rank.py").write_text(RANK)
    torchrun(["rank.py", json.dumps(values), "batch.pt", "."], tmp_path)
    joined = Trainer({**values, "batch": 2})
    joined.g.double()
    joined.d.double()
    joined.step([(x, t)])
    for rank in (0, 1):
        grads = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for net, found in zip((joined.g, joined.d), grads, strict=True):
            for p, grad in zip(net.parameters(), found, strict=True):
                torch.testing.assert_close(grad, p.grad, rtol=1e-8, atol=1e-10)


def test_the_command_under_torchrun_makes_one_run(pairs, tmp_path):
    arguments = ["-m", "pix2pix_fast.train", "facades", str(pairs), "-o", str(tmp_path / "run")]
    alike = {**TINY, "norm": "image", "dropout": "none", "epochs": 1, "decay_epochs": 0}
    for key, value in alike.items():
        arguments += ["--set", f"{key}={value}"]
    torchrun([*arguments, "--threads", "1", "--device", "cpu"], tmp_path)
    log = read_log(tmp_path / "run")
    assert [e["event"] for e in log].count("start") == 1 and log[0]["processes"] == 2
    saved = state.load(tmp_path / "run" / "last.pt")
    assert saved["step"] == 2  # five pairs, two per step, the fifth left for another epoch
    assert len(saved["random"]) == 2
    # one process with the joined batch: both start from the same weights and see the same pairs
    train(tiny(**alike, batch=2), pairs, tmp_path / "joined", device="cpu", quiet=True)
    losses = [
        {name: one[name] for name in ("d_fake", "d_real", "g_gan", "l1")}
        for one in (*log, *read_log(tmp_path / "joined"))
        if one["event"] == "steps"
    ]
    assert len(losses) == 2 and losses[0] == pytest.approx(losses[1], abs=2e-5)  # of five digits
