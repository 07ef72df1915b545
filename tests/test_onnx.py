"""ONNX export: every kind of network through onnxruntime against the engine, what the file says of
itself, the reading by OpenVINO, and the errors."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from model_files import random_model
from PIL import Image
from tiny import noise, tiny_model

from pix2pix_fast import Engine, cli, model, onnx_export
from pix2pix_fast.architecture import Architecture
from pix2pix_fast.errors import BackendUnavailable, ModelFormatError
from pix2pix_fast.model import Model
from pix2pix_fast.onnx_export import OPSET, to_onnx

onnx = pytest.importorskip("onnx", reason="needs the onnx package")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnxruntime package")

SIZES = [(1, 1), (5, 3), (300, 200)]


def architecture(**changes: Any) -> Architecture:
    values = {"depth": 5, "ngf": 4, "in_channels": 3, "out_channels": 3, **changes}
    return Architecture(**values)


ARCHITECTURES = {
    "plain": architecture(),
    "depth 2": architecture(depth=2, ngf=8),
    "depth 8": architecture(depth=8),
    "no skips": architecture(skips=False),
    "not affine": architecture(affine=False),
    "no norm": architecture(norm="none"),
    "stored statistics": architecture(norm="running"),
    "norm at the bottleneck, eps of Keras": architecture(bottleneck_norm=True, eps=1e-3),
    "1 to 4 channels, no tanh": architecture(in_channels=1, out_channels=4, tanh=False),
}


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def infer(network: Any, pictures: np.ndarray) -> np.ndarray:
    """(n, h, w, ci) uint8 -> (n, h, w, co) uint8, whatever the pixels of the network are."""
    if network.get_inputs()[0].type == "tensor(uint8)":
        result: np.ndarray = network.run(None, {"image": pictures})[0]
        assert result.dtype == np.uint8
        return result
    image = (pictures.transpose(0, 3, 1, 2) / np.float32(127.5) - 1).astype(np.float32)
    result = network.run(None, {"image": image})[0]
    assert result.dtype == np.float32
    return to_levels(result)


def to_levels(translation: np.ndarray) -> np.ndarray:
    levels = np.clip(np.round((translation + 1) * 127.5), 0, 255).astype(np.uint8)
    return levels.transpose(0, 2, 3, 1)


def assert_within_a_level(a: np.ndarray, b: np.ndarray) -> None:
    """The same float32 sums in another order: only a value beside a half may round otherwise."""
    assert a.shape == b.shape
    difference = np.abs(a.astype(int) - b.astype(int))
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= 1 + 0.001 * difference.size


def rounded(source: Model) -> Model:
    """With the convolutions' weights that a float16 can hold."""
    tensors = {
        name: value.astype(np.float16).astype(np.float32) if np.ndim(value) == 4 else value
        for name, value in source.tensors.items()
    }
    return replace(source, tensors=tensors)


@pytest.mark.parametrize("pixels", ["float", "uint8"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_network_at_every_size(kind: str, pixels: Any, tmp_path: Path) -> None:
    source = random_model(ARCHITECTURES[kind])
    to_onnx(source, tmp_path / "net.onnx", pixels=pixels)
    network = session(tmp_path / "net.onnx")
    with Engine(source, size=(32, 32)) as engine:
        for h, w in SIZES:
            picture = noise((h, w, source.architecture.in_channels))
            ours = engine.translate(picture)
            assert_within_a_level(infer(network, picture[None])[0], ours)
            if h > 1:  # a test of equal greys would prove nothing
                assert ours.std() > 3


@pytest.mark.parametrize("pixels", ["float", "uint8"])
@pytest.mark.parametrize(
    "options",
    [{"weights": "f16"}, {"fused_norm": True}, {"norm": "running"}],
    ids=["weights f16", "fused norm", "running"],
)
def test_options(options: dict[str, Any], pixels: Any, tmp_path: Path) -> None:
    source = random_model(architecture(norm="running"))
    to_onnx(source, tmp_path / "net.onnx", pixels=pixels, **options)
    network = session(tmp_path / "net.onnx")
    same = rounded(source) if "weights" in options else source
    with Engine(same, norm=options.get("norm", "image"), size=(32, 32)) as engine:
        for h, w in SIZES:
            picture = noise((h, w, 3))
            assert_within_a_level(infer(network, picture[None])[0], engine.translate(picture))


def test_half_weights_halve_the_file(tmp_path: Path) -> None:
    source = random_model(architecture(ngf=16))
    to_onnx(source, tmp_path / "f32.onnx")
    to_onnx(source, tmp_path / "f16.onnx", weights="f16")
    sizes = [(tmp_path / f"{kind}.onnx").stat().st_size for kind in ("f32", "f16")]
    assert sizes[1] < 0.55 * sizes[0]


def test_without_padding(tmp_path: Path) -> None:
    """any_size=False: nothing but the network, for multiples of 2^depth."""
    source = random_model(architecture())
    to_onnx(source, tmp_path / "net.onnx", any_size=False)
    to_onnx(source, tmp_path / "any.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert not {"Gather", "Slice", "Shape", "Range"} & {node.op_type for node in graph.node}
    network = session(tmp_path / "net.onnx")
    with Engine(source, size=(32, 32)) as engine:
        for h, w in [(32, 32), (64, 32), (96, 160)]:
            picture = noise((h, w, 3))
            assert_within_a_level(infer(network, picture[None])[0], engine.translate(picture))
    with pytest.raises(Exception, match="concat|Concat|dimension"):
        infer(network, noise((1, 33, 35, 3)))


@pytest.mark.parametrize("pixels", ["float", "uint8"])
@pytest.mark.parametrize("fused_norm", [False, True])
def test_a_batch_is_its_pictures(fused_norm: bool, pixels: Any, tmp_path: Path) -> None:
    """Statistics per image: a dark, a noisy and a flat picture do not see each other."""
    source = random_model(architecture())
    to_onnx(source, tmp_path / "net.onnx", pixels=pixels, fused_norm=fused_norm)
    network = session(tmp_path / "net.onnx")
    batch = noise((3, 40, 56, 3))
    batch[0] //= 8
    batch[2] = batch[2] // 16 + 230
    together = infer(network, batch)
    alone = np.concatenate([infer(network, picture[None]) for picture in batch])
    np.testing.assert_array_equal(together, alone)
    with Engine(source, size=(40, 56)) as engine:
        assert_within_a_level(together, engine.translate(batch))


@pytest.fixture(scope="module")
def default_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model of `pix2pix-fast demo` and its ONNX file."""
    target = tmp_path_factory.mktemp("onnx") / "facades.onnx"
    asset = files("pix2pix_fast") / "assets" / "facades_labels2photo.safetensors"
    with as_file(asset) as path:
        to_onnx(path, target, pixels="uint8")
        return path, target


def test_the_shipped_model_on_real_pictures(
    default_model: tuple[Path, Path], shared_data: Any
) -> None:
    photos = sorted(
        path for path in shared_data("photos").iterdir() if path.suffix in (".png", ".jpg")
    )[:10]
    assert len(photos) == 10
    network = session(default_model[1])
    sizes = set()
    with Engine(default_model[0]) as engine:
        for k, path in enumerate(photos):
            with Image.open(path) as image:
                image.thumbnail((150 + 27 * k, 400 - 19 * k))  # another size for each
                picture = np.asarray(image.convert("RGB"))
            sizes.add(picture.shape)
            assert_within_a_level(infer(network, picture[None])[0], engine.translate(picture))
    assert len(sizes) == 10


def test_the_shipped_model_on_its_drawings(default_model: tuple[Path, Path]) -> None:
    network = session(default_model[1])
    drawings = files("pix2pix_fast") / "assets" / "pictures"
    with Engine(default_model[0]) as engine, as_file(drawings) as folder:
        for path in sorted(folder.iterdir())[:3]:
            picture = np.asarray(Image.open(path).convert("RGB"))
            assert_within_a_level(infer(network, picture[None])[0], engine.translate(picture))


# What the file says


@pytest.mark.parametrize("weights", ["f32", "f16"])
@pytest.mark.parametrize("pixels", ["float", "uint8"])
def test_the_file(pixels: Any, weights: Any, tmp_path: Path) -> None:
    card = {"name": "höfe", "direction": "BtoA", "size": [32, 64], "metrics": {"l1": 0.25}}
    model.save(random_model(architecture(), card=card), tmp_path / "net.safetensors")
    to_onnx(tmp_path / "net.safetensors", tmp_path / "net.onnx", pixels=pixels, weights=weights)
    proto = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", OPSET)]
    assert OPSET >= 17
    assert proto.producer_name == "pix2pix_fast"
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    source = model.load(tmp_path / "net.safetensors")
    assert json.loads(metadata["pix2pix_fast.card"]) == card
    assert metadata["pix2pix_fast.digest"] == source.digest != ""
    assert metadata["pix2pix_fast.norm"] == "image"

    layout = ["n", "h", "w", 3] if pixels == "uint8" else ["n", 3, "h", "w"]
    for value in (proto.graph.input[0], proto.graph.output[0]):
        shape = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        assert shape == layout
    nodes = {node.name: node for node in proto.graph.node}
    assert {layer["name"] for layer in source.layers()} <= set(nodes)
    kinds = {node.op_type for node in proto.graph.node}
    assert not {"BatchNormalization", "InstanceNormalization", "Dropout"} & kinds
    types = {i.name: i.data_type for i in proto.graph.initializer}
    f16 = {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT16}
    expected = {f"{layer['name']}.weight.f16" for layer in source.layers()}
    assert f16 == (expected if weights == "f16" else set())


def test_eps_is_the_models(tmp_path: Path) -> None:
    for fused_norm in (False, True):
        to_onnx(random_model(architecture(eps=0.5)), tmp_path / "net.onnx", fused_norm=fused_norm)
        proto = onnx.load(tmp_path / "net.onnx")
        values = [
            float(onnx.numpy_helper.to_array(i)) for i in proto.graph.initializer if "eps" in i.name
        ]
        values += [a.f for node in proto.graph.node for a in node.attribute if a.name == "epsilon"]
        assert len(values) == 7
        assert set(values) == {0.5}


def test_openvino_reads_it(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="needs the openvino package")
    source = random_model(architecture())
    core = openvino.Core()
    with Engine(source, size=(32, 32)) as engine:
        for pixels in ("float", "uint8"):
            to_onnx(source, tmp_path / "net.onnx", pixels=pixels)  # type: ignore[arg-type]
            compiled = core.compile_model(
                core.read_model(tmp_path / "net.onnx"),
                "CPU",
                {"INFERENCE_PRECISION_HINT": "f32"},
            )
            for shape in [(1, 5, 3, 3), (1, 70, 45, 3), (3, 40, 56, 3)]:
                pictures = noise(shape)
                if pixels == "uint8":
                    result = compiled([pictures])[0]
                else:
                    image = (pictures.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)
                    result = to_levels(compiled([image])[0])
                assert_within_a_level(result, engine.translate(pictures))


# Errors

TINY = tiny_model()


def test_without_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendUnavailable, match=r"onnx package.*pip install"):
        to_onnx(TINY, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pixels": "uint16"}, r"pixels: expected .*'uint8'.* got 'uint16'"),
        ({"weights": "bf16"}, r"weights: expected .*'f16'.* got 'bf16'"),
        ({"norm": "batch"}, r"norm: expected 'image' or 'running', got 'batch'"),
        ({"norm": "running"}, r"norm='running' needs stored statistics"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        to_onnx(TINY, tmp_path / "net.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_weights_too_large_for_half(tmp_path: Path) -> None:
    huge = {**TINY.tensors, "e2.weight": np.full((16, 8, 4, 4), 1e5, np.float32)}
    with pytest.raises(ValueError, match=r"e2\.weight.* too large for F16"):
        to_onnx(replace(TINY, tensors=huge), tmp_path / "net.onnx", weights="f16")
    assert list(tmp_path.iterdir()) == []


def test_weights_too_large_for_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(value.nbytes for value in TINY.tensors.values())
    monkeypatch.setattr(onnx_export, "MAX_BYTES", size // 2 + 10_000)  # room for what is no weight
    with pytest.raises(ValueError, match=r"at most .* GB of weights.*; weights='f16' halves them"):
        to_onnx(TINY, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []
    to_onnx(TINY, tmp_path / "net.onnx", weights="f16")
    monkeypatch.setattr(onnx_export, "MAX_BYTES", 0)
    with pytest.raises(ValueError, match=r"got 0\.\d\d GB$"):
        to_onnx(TINY, tmp_path / "other.onnx", weights="f16")


def test_an_unsound_model(tmp_path: Path) -> None:
    broken = dict(TINY.tensors)
    del broken["e2.weight"]
    with pytest.raises(ModelFormatError, match=r"'e2\.weight' is missing"):
        to_onnx(replace(TINY, tensors=broken), tmp_path / "net.onnx")
    (tmp_path / "bad.safetensors").write_bytes(b"no model")
    with pytest.raises(ModelFormatError):
        to_onnx(tmp_path / "bad.safetensors", tmp_path / "net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError):
        to_onnx(TINY, tmp_path / "no folder" / "net.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OSError, match=r"folder\.onnx"):
        to_onnx(TINY, tmp_path / "folder.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]

    (tmp_path / "old.onnx").write_bytes(b"old")

    def refuse(*_: Any, **__: Any) -> None:
        raise onnx.checker.ValidationError("planted")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(onnx.checker.ValidationError, match="planted"):
        to_onnx(TINY, tmp_path / "old.onnx")
    assert (tmp_path / "old.onnx").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.onnx", "old.onnx"]


# The verb


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model.save(TINY, "tiny.safetensors")

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli.main, ["export", *arguments])

    done = run("tiny.safetensors", "tiny.onnx", "--pixels", "uint8", "--weights", "f16")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("tiny.onnx  ")
    picture = noise((20, 24, 3))
    with Engine(rounded(TINY), size=(32, 32)) as engine:
        ours = engine.translate(picture)
    assert_within_a_level(infer(session(tmp_path / "tiny.onnx"), picture[None])[0], ours)

    again = run("tiny.safetensors", "tiny.onnx")
    assert again.exit_code == 1
    assert "exists; --overwrite" in again.stderr
    assert run("tiny.safetensors", "tiny.onnx", "--overwrite").exit_code == 0
    wrong = run("tiny.safetensors", "tiny.pb")
    assert wrong.exit_code == 2
    assert "ends in .onnx" in wrong.stderr
    running = run("tiny.safetensors", "other.onnx", "--norm", "running")
    assert running.exit_code == 1
    assert "stored statistics" in running.stderr
    assert not Path("other.onnx").exists()
