"""Our model file: round trips, the golden file, and that nothing malformed comes through."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import (
    compact,
    put_together,
    random_model,
    run_model,
    take_apart,
    with_header,
)

from pix2pix_fast import errors
from pix2pix_fast import model as model_file
from pix2pix_fast.architecture import Architecture
from pix2pix_fast.errors import ModelFormatError
from pix2pix_fast.model import Model, describe, load, save
from pix2pix_fast.tensorfile import atomic_file, read_header, read_raw

DATA = Path(__file__).parent / "data"
GOLDEN_DIGEST = "4e96159b5c23613f0d926ad1178b8482f0ed9c6e42d1f03bc8d9cd13b0c5d4c3"

TINY = Architecture(depth=2, ngf=2, in_channels=1, out_channels=1, norm="running", dropout=("d1",))
ARCHITECTURES = {
    "junyanz": Architecture(
        depth=5, ngf=3, in_channels=3, out_channels=3, norm="running", dropout=("d2",)
    ),
    "instance": Architecture(depth=3, ngf=4, in_channels=1, out_channels=2, affine=False),
    "no norm": Architecture(depth=2, ngf=4, in_channels=4, out_channels=1, norm="none"),
    "encoder-decoder": Architecture(depth=4, ngf=2, in_channels=3, out_channels=3, skips=False),
    "keras": Architecture(
        depth=3, ngf=2, in_channels=3, out_channels=3, eps=1e-3, bottleneck_norm=True, tanh=False
    ),
    "deepest": Architecture(depth=9, ngf=1, in_channels=2, out_channels=2, norm="running"),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a sound file of a few kilobytes."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save(random_model(TINY), path)
    return path.read_bytes()


def refused(data: bytes) -> str:
    """The message with which `load` refuses `data`."""
    with pytest.raises(ModelFormatError) as caught:
        load(data)
    return str(caught.value)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Architecture -------------------------------------------------------------------------------------


def test_unet256_has_the_published_shape() -> None:
    a = Architecture(depth=8, ngf=64, in_channels=3, out_channels=3)
    layers = {layer["name"]: layer for layer in a.layers()}
    assert list(layers) == [f"{s}{k}" for s in "ed" for k in range(1, 9)]
    assert [layers[n]["co"] for n in layers] == (
        [64, 128, 256, 512, 512, 512, 512, 512] + [512, 512, 512, 512, 256, 128, 64, 3]
    )
    assert [layers[f"d{k}"]["ci"] for k in range(1, 9)] == [512] + [1024] * 4 + [512, 256, 128]
    assert [n for n in layers if not layers[n]["norm"]] == ["e1", "e8", "d8"]
    assert [layers[f"d{k}"]["skip"] for k in (1, 2, 8)] == ["", "e7", "e1"]
    assert [layers[n]["slope"] for n in ("e1", "e2", "d1", "d8")] == [1.0, 0.2, 0.0, 0.0]
    assert layers["d8"]["tanh"] and not layers["d7"]["tanh"]
    count = sum(
        int(np.prod(shape))
        for name, shape in a.shapes().items()
        if name.count(".") == 2 or not name.endswith(".bias") or name == "d8.bias"
    )
    assert count == 54_413_955


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depth", 1),
        ("depth", 10),
        ("depth", True),
        ("depth", 8.0),
        ("ngf", 0),
        ("ngf", 5000),
        ("in_channels", -1),
        ("out_channels", "3"),
        ("skips", 1),
        ("affine", None),
        ("norm", "batch"),
        ("eps", 0.0),
        ("eps", float("nan")),
        ("eps", 2),
        ("eps", "1e-5"),
        ("dropout", ["d1"]),
        ("dropout", ("d1", "d1")),
        ("dropout", ("e2",)),
        ("dropout", ("d3",)),
        ("trained_norm", "none"),
        ("trained_norm", "running"),
        ("tanh", 0),
        ("bottleneck_norm", "no"),
    ],
)
def test_architecture_names_the_bad_field(field: str, value: Any) -> None:
    good = {"depth": 3, "ngf": 4, "in_channels": 3, "out_channels": 3}
    with pytest.raises(ModelFormatError, match=f"{field} must be "):
        Architecture(**{**good, field: value})


# Round trips --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_save_and_load(name: str, dtype: Any, tmp_path: Path) -> None:
    model = random_model(ARCHITECTURES[name], biases="last", card={"name": 'ä\n"\\/', "x": [1, {}]})
    digest = save(model, tmp_path / "m.safetensors", dtype=dtype)
    loaded = load(tmp_path / "m.safetensors")
    assert loaded.architecture == model.architecture
    assert loaded.card == model.card and loaded.digest == digest
    assert list(loaded.tensors) == list(model.tensors)
    for tensor in model.tensors:
        expected = model.tensors[tensor]
        if expected.ndim == 4 and dtype == "f16":
            expected = expected.astype(np.float16).astype(np.float32)
        if expected.ndim == 4 and dtype == "bf16":
            error = np.abs(loaded.tensors[tensor] - expected)
            assert (error <= np.abs(expected) * 2**-8).all()
            assert (loaded.tensors[tensor].view(np.uint32) & 0xFFFF == 0).all()
        else:
            assert np.array_equal(loaded.tensors[tensor], expected)
        assert not loaded.tensors[tensor].flags.writeable
    assert save(loaded, tmp_path / "again.safetensors", dtype=dtype) == digest
    assert load((tmp_path / "m.safetensors").read_bytes()).digest == digest
    assert names_in(tmp_path) == ["again.safetensors", "m.safetensors"]


def test_bfloat16_rounds_to_nearest_even() -> None:
    torch = pytest.importorskip("torch")
    from pix2pix_fast.tensorfile import from_float32, to_float32

    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint64).astype(np.uint32)
    bits[:4] = 0x3F808000, 0x3F818000, 0x3F808001, 0x00000001
    value = bits.view(np.float32)
    value = value[np.abs(value) < 3e38]  # drops NaN as well
    expected = torch.from_numpy(value).to(torch.bfloat16).float().numpy()
    assert np.array_equal(to_float32(from_float32(value, "BF16", "")), expected)
    with pytest.raises(ModelFormatError, match="too large for BF16"):
        from_float32(np.float32([3.4e38]), "BF16", "tensor")
    with pytest.raises(ModelFormatError, match="too large for F16"):
        from_float32(np.float32([1e5]), "F16", "tensor")


def test_the_safetensors_library_reads_our_files(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    model = random_model(ARCHITECTURES["junyanz"])
    save(model, tmp_path / "m.safetensors", dtype="f16")
    theirs = safetensors.load_file(tmp_path / "m.safetensors")
    assert set(theirs) == set(model.tensors)
    for name, value in load(tmp_path / "m.safetensors").tensors.items():
        assert np.array_equal(theirs[name].astype(np.float32), value)


def test_models_are_picklable(tiny: bytes) -> None:
    model = load(tiny)
    again = pickle.loads(pickle.dumps(model))
    assert again.architecture == model.architecture and again.digest == model.digest
    assert all(np.array_equal(again.tensors[n], model.tensors[n]) for n in model.tensors)


@pytest.mark.parametrize(
    "kind", [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
)
def test_errors_are_picklable(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.P2PError)
    again = pickle.loads(pickle.dumps(kind("what, expected, cure")))
    assert type(again) is kind and str(again) == "what, expected, cure"


def test_the_golden_file_of_format_1_loads_for_ever() -> None:
    spec = importlib.util.spec_from_file_location("make_format1", DATA / "make_format1.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    expected, found = script.golden_model(), load(DATA / "format1.safetensors")
    assert found.digest == GOLDEN_DIGEST
    assert found.architecture == expected.architecture and found.card == expected.card
    assert set(found.tensors) == set(expected.tensors)
    for name in expected.tensors:
        assert np.array_equal(found.tensors[name], expected.tensors[name]), name


def test_describe_reads_no_weights_and_checks_the_header(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "m.safetensors"
    data = bytearray(tiny)
    data[-1] ^= 1  # the last weight
    path.write_bytes(data)
    about = describe(path)
    assert about["format"] == 1 and about["architecture"]["depth"] == 2
    assert about["card"] == {"name": "random"} and about["dtypes"] == ["F32"]
    assert about["digest"] == load(tiny).digest and about["file_bytes"] == len(tiny)
    expected = sum(v.size for n, v in load(tiny).tensors.items() if n[-4:] not in ("mean", ".var"))
    assert about["parameters"] == expected
    json.dumps(about)
    with pytest.raises(ModelFormatError, match="does not match its SHA-256"):
        load(path)
    data[-1] ^= 1
    data[data.index(b'\\"ngf\\"') + 8] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFormatError, match="'digest' does not match"):
        describe(path)


# What the core gets -------------------------------------------------------------------------------


def test_running_statistics_fold_to_batch_norm_in_eval_mode() -> None:
    torch = pytest.importorskip("torch")
    from torch import nn

    model = random_model(ARCHITECTURES["junyanz"])
    tensors = {n: torch.from_numpy(np.array(v)).double() for n, v in model.tensors.items()}

    def layer(name: str, x: Any) -> Any:
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        if name[0] == "e":
            x = nn.functional.conv2d(x, weight, bias, 2, 1)
        else:
            x = nn.functional.conv_transpose2d(x, weight, bias, 2, 1)
        if f"{name}.norm.mean" not in tensors:
            return x
        mean, var, gamma, beta = (
            tensors[f"{name}.norm.{p}"] for p in ("mean", "var", "weight", "bias")
        )
        return nn.functional.batch_norm(x, mean, var, gamma, beta, False, 0.0, 1e-5)

    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    stack, y = [], x
    for k in range(1, 6):
        y = layer(f"e{k}", nn.functional.leaky_relu(y, 0.2) if k > 1 else y)
        stack.append(y)
    stack.pop()
    for k in range(1, 6):
        y = torch.cat([stack.pop(), y], 1) if k > 1 else y
        y = layer(f"d{k}", torch.relu(y))
    # weights are rounded to float32 after the fold: 2^-24 relative for each, over ten layers
    assert torch.allclose(run_model(model, x, "running"), torch.tanh(y), rtol=0, atol=1e-5)
    assert not torch.allclose(run_model(model, x, "image"), torch.tanh(y), rtol=0, atol=1e-2)
    assert not any(entry["norm"] for entry in model.layers("running"))
    assert not any(".norm." in name for name in model.core_tensors("running"))


def test_folding_without_bias_or_affine() -> None:
    a = Architecture(depth=2, ngf=2, in_channels=1, out_channels=1, norm="running", affine=False)
    model = random_model(a, biases="last")
    folded = model.core_tensors("running")
    mean, var = (model.tensors[f"d1.norm.{p}"].astype(np.float64) for p in ("mean", "var"))
    assert np.allclose(folded["d1.bias"], -mean / np.sqrt(var + 1e-5), rtol=1e-6)
    assert "e1.bias" not in folded and set(folded) >= {"e2.weight", "d1.weight", "d2.bias"}


@pytest.mark.parametrize(("name", "why"), [("instance", "trained with"), ("no norm", "no norms")])
def test_running_statistics_that_are_not_there(name: str, why: str) -> None:
    model = random_model(ARCHITECTURES[name])
    for call in (model.layers, model.core_tensors):
        with pytest.raises(ValueError, match=why) as caught:
            call("running")
        assert not isinstance(caught.value, ModelFormatError)
        with pytest.raises(ValueError, match="expected 'image' or 'running'"):
            call("batch")


@pytest.mark.parametrize("norm", ["image", "running"])
def test_released_tensors_are_seen_once(tmp_path: Path, norm: str) -> None:
    model = random_model(ARCHITECTURES["junyanz"])
    save(model, tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors")
    expected = model.core_tensors(norm)
    tensors = loaded.core_tensors(norm, release=True)
    assert list(tensors) == list(expected) and len(tensors) == len(expected)
    for name in list(tensors):
        assert np.array_equal(tensors[name], expected[name])
        assert name not in tensors
        with pytest.raises(KeyError):
            tensors[name]
    left = [] if norm == "running" else ["norm.mean", "norm.var"]
    assert {n.partition(".")[2] for n in loaded.tensors} == set(left)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda t: t.pop("e2.weight"), "tensor 'e2.weight' is missing, expected"),
        (lambda t: t.update({"e9.weight": t["e1.weight"]}), "tensor 'e9.weight' does not belong"),
        (lambda t: t.update({"e1.weight": t["e1.weight"][:1]}), r"'e1.weight' has shape \(1, 1"),
        (lambda t: t.pop("d1.norm.var"), "tensor 'd1.norm.var' is missing"),
        (lambda t: t["e2.weight"].__setitem__((0, 0, 0, 0), np.nan), "'e2.weight' has NaN"),
        (lambda t: t["d1.norm.var"].__setitem__(0, -1), "'d1.norm.var' is a variance with neg"),
        (lambda t: t.update({"d2.bias": np.array([1])}), "'d2.bias': dtype int64, expected float"),
    ],
)
def test_models_in_memory_are_checked(
    break_it: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    model = random_model(TINY)
    break_it(model.tensors)
    with pytest.raises(ModelFormatError, match=message):
        save(model, tmp_path / "m.safetensors")
    assert names_in(tmp_path) == []
    if "missing" in message or "shape" in message:
        with pytest.raises(ModelFormatError, match=message):
            model.core_tensors()
    if "NaN" in message:
        with pytest.raises(ModelFormatError, match=message):
            dict(model.core_tensors())


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ([], "card must be an object"),
        ({"direction": "AtoC"}, "'direction' must be 'AtoB' or 'BtoA'"),
        ({"size": 256}, r"'size' must be \[height, width\]"),
        ({"size": [0, 1]}, r"'size' must be \[height, width\]"),
        ({"value_range": [0, 1]}, r"'value_range' must be \[-1, 1\]"),
        ({"name": 3}, "'name' must be a text"),
        ({"training": "long"}, "'training' must be an object"),
        ({"x": "a" * 4097}, "'x' has 4097 characters, at most 4096"),
        ({"x": "\x1b[31m"}, "'x' has control characters"),
        ({"x\x07": 1}, "control characters"),
        ({"x": "\ud800"}, "control characters"),
        ({"x": float("inf")}, "the number inf"),
        ({"x": {1: 2}}, "key that is no text"),
        ({"x": (1, 2)}, "plain JSON values"),
        ({"x": [[[[[[1]]]]]]}, "nested more than"),
        ({"x": {"a": [{"b": [{"c": [1]}]}]}}, "nested more than"),
        ({str(i): "a" * 4000 for i in range(20)}, "the metadata takes"),
    ],
)
def test_cards_are_checked(card: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=message):
        save(random_model(TINY, card=card), tmp_path / "m.safetensors")
    assert names_in(tmp_path) == []


def test_a_card_at_its_limits_is_kept(tmp_path: Path) -> None:
    card = {"x": [[[[[1]]]]], "y": {"a": [{"b": [{}]}]}, "z": "a" * 4096}
    save(random_model(TINY, card=card), tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").card == card


# Writers and files under our feet -----------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    save(random_model(TINY), path)
    before = path.read_bytes()

    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(random_model(TINY, seed=1), path)
    assert path.read_bytes() == before and names_in(tmp_path) == ["m.safetensors"]


def test_an_error_without_a_number_keeps_its_words(tmp_path: Path) -> None:
    """Pillow's encoders raise such; only the system's own errors lack nothing but the name."""
    with pytest.raises(OSError, match=r"^encoder error -2$"), atomic_file(tmp_path / "a.png"):
        raise OSError("encoder error -2")
    assert names_in(tmp_path) == []


def test_a_file_that_is_cut_while_it_is_read(tiny: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(tiny)
    with path.open("rb", buffering=0) as stream:
        entry = read_header(stream, "m").tensors["d2.bias"]
        os.truncate(path, entry.end - 1)
        with pytest.raises(ModelFormatError, match="'d2.bias': the file became shorter"):
            read_raw(stream, entry, "m: tensor 'd2.bias'")


def test_what_was_written_is_read_back_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(["a" * 64, "b" * 64, "c" * 64])
    monkeypatch.setattr(model_file, "digest", lambda text, tensors: next(calls))
    with pytest.raises(ModelFormatError, match="'digest' does not match"):
        save(random_model(TINY), tmp_path / "m.safetensors")
    assert names_in(tmp_path) == []


def test_a_killed_writer_leaves_no_half_file(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from model_files import random_model\n"
        "from pix2pix_fast.model import Architecture, save\n"
        "m = random_model(Architecture(depth=5, ngf=16, in_channels=3, out_channels=3))\n"
        "print('ready', flush=True)\n"
        "while True: save(m, sys.argv[1])\n"
    )
    path = tmp_path / "m.safetensors"
    here = Path(__file__).parent
    command = [sys.executable, "-c", script, str(path), str(here), str(here.parent)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for _ in range(20):
        time.sleep(0.02)
        if path.exists():
            load(path)  # whole at every moment
    child.kill()
    child.wait()
    load(path)


def test_a_loaded_model_does_not_need_its_file(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(tiny)
    model = load(path)
    expected = {name: np.array(value) for name, value in load(tiny).tensors.items()}
    path.write_bytes(b"")
    path.unlink()
    assert all(np.array_equal(model.tensors[n], expected[n]) for n in expected)


def test_folders_and_pipes_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.safetensors")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        done = threading.Event()

        def attempt() -> None:
            with pytest.raises(ModelFormatError, match="not a regular file"):
                load(tmp_path / "pipe")
            done.set()

        threading.Thread(target=attempt, daemon=True).start()
        assert done.wait(5)


# Malformed files ----------------------------------------------------------------------------------

Parts = tuple[dict[str, Any], Any, bytes]


def header_case(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        header, document, blob = take_apart(data)
        change(header)
        return put_together(header, document, blob)

    return apply


def document_case(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        header, document, blob = take_apart(data)
        change(document)
        return put_together(header, document, blob)

    return apply


def raw_header(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        return with_header(change(data[8 : 8 + length]), data[8 + length :])

    return apply


def values_case(name: str, value: float) -> Callable[[bytes], bytes]:
    """The first value of a tensor replaced, every hash made to fit."""

    def apply(data: bytes) -> bytes:
        import hashlib

        header, document, blob = take_apart(data)
        begin, end = header[name]["data_offsets"]
        part = np.float32(value).tobytes() + blob[begin + 4 : end]
        document["sha256"][name] = hashlib.sha256(part).hexdigest()
        return put_together(header, document, blob[:begin] + part + blob[end:])

    return apply


def set_(name: str, key: str, value: Any) -> Callable[[bytes], bytes]:
    return header_case(lambda h: h[name].__setitem__(key, value))


def field_(key: str, value: Any) -> Callable[[bytes], bytes]:
    return document_case(lambda d: d["architecture"].__setitem__(key, value))


def swap_offsets(h: dict[str, Any]) -> None:
    a, b = h["e1.bias"], h["d2.bias"]
    a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]


def move(h: dict[str, Any], name: str, by: int) -> None:
    h[name]["data_offsets"] = [n + by for n in h[name]["data_offsets"]]


MALFORMED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    # the container
    "empty": (lambda d: b"", "0 bytes are too few"),
    "length only": (lambda d: d[:8], "header of .* bytes in a file of 8"),
    "truncated header": (lambda d: d[:100], "bytes in a file of 100"),
    "header length 2^63": (lambda d: b"\xff" * 7 + b"\x7f" + d[8:], "at most 262144 are accepted"),
    "header one byte short": (
        lambda d: (int.from_bytes(d[:8], "little") - 1).to_bytes(8, "little") + d[8:],
        "not JSON|leaves a hole|trailing",
    ),
    "no brace": (raw_header(lambda h: b" " + h), "does not begin with"),
    "header is a list": (raw_header(lambda h: b"[]"), "does not begin with"),
    "not UTF-8": (raw_header(lambda h: h.replace(b"random", b"rand\xff\xfe")), "not UTF-8 at byte"),
    "cut JSON": (raw_header(lambda h: h.rstrip()[:-1]), "not JSON"),
    "text after JSON": (raw_header(lambda h: h + b"x"), "not JSON"),
    "10,000 deep": (
        raw_header(lambda h: b'{"a":' + b"[" * 10000 + b"]" * 10000 + b"}"),
        "nested more than 4 deep",
    ),
    "10,000 deep metadata": (
        lambda d: put_together(take_apart(d)[0], "[" * 10000, take_apart(d)[2]),
        "nested more than 8 deep",
    ),
    "duplicate tensor": (
        raw_header(lambda h: h.rstrip()[:-1] + b',"e1.bias":{}}'),
        "'e1.bias' occurs twice",
    ),
    "duplicate metadata": (
        raw_header(lambda h: h.rstrip()[:-1] + b',"__metadata__":{}}'),
        "occurs twice",
    ),
    "NaN in JSON": (raw_header(lambda h: b'{"a":NaN}'), "NaN is not JSON"),
    "huge number": (raw_header(lambda h: b'{"a":' + b"9" * 100000 + b"}"), "out of range"),
    "huge float": (raw_header(lambda h: b'{"a":1e999}'), "out of range"),
    "trailing bytes": (lambda d: d + b"\0", "1 trailing bytes after tensor 'd2.bias'"),
    "missing bytes": (lambda d: d[:-1], "tensor 'd2.bias': data to byte"),
    "hole": (header_case(lambda h: move(h, "d2.bias", 1)), "data to byte|leaves a hole"),
    "hole at the start": (
        header_case(lambda h: h.pop("e1.weight")),
        "'e1.bias' leaves a hole after the header",
    ),
    "overlap": (
        header_case(lambda h: move(h, "d2.bias", -1)),
        "'d2.bias' overlaps tensor 'd2.weight'",
    ),
    "negative offset": (set_("e1.weight", "data_offsets", [-8, 120]), "'e1.weight': data_offsets"),
    "reversed offsets": (set_("e1.weight", "data_offsets", [8, 0]), "'e1.weight': data_offsets"),
    "float offsets": (set_("e1.weight", "data_offsets", [0.0, 128.0]), "'e1.weight': data_offsets"),
    "offset 2^62": (set_("e1.weight", "data_offsets", [0, 2**59]), "'e1.weight': data to byte"),
    "size mismatch": (
        set_("e1.weight", "shape", [2, 1, 4, 5]),
        "'e1.weight': 128 bytes of data, F32 .* takes 160",
    ),
    "overflowing product": (
        set_("e1.weight", "shape", [2**31 - 1] * 4),
        "'e1.weight': 128 bytes of data",
    ),
    "negative size": (set_("e1.weight", "shape", [-2, 1, 4, 4]), "'e1.weight': shape .* from 1 to"),
    "zero size": (set_("e1.weight", "shape", [0, 1, 4, 4]), "'e1.weight': shape .* from 1 to"),
    "size true": (set_("e1.weight", "shape", [True, 1, 4, 4]), "'e1.weight': shape"),
    "five axes": (set_("e1.weight", "shape", [2, 1, 4, 4, 1]), "'e1.weight': shape"),
    "unknown dtype": (
        set_("e1.weight", "dtype", "F8_E4M3"),
        "'e1.weight': dtype 'F8_E4M3', expected F32",
    ),
    "dtype list": (set_("e1.weight", "dtype", []), "'e1.weight': dtype"),
    "integer dtype": (
        header_case(lambda h: h["e1.bias"].update(dtype="I64", shape=[1])),
        "'e1.bias': dtype I64, expected F32",
    ),
    "missing offsets": (
        header_case(lambda h: h["e1.weight"].pop("data_offsets")),
        "'e1.weight': expected dtype, shape",
    ),
    "extra key": (set_("e1.weight", "stride", [1]), "'e1.weight': expected dtype, shape"),
    "entry is text": (
        header_case(lambda h: h.__setitem__("e1.weight", "x")),
        "'e1.weight': expected dtype, shape",
    ),
    # names, shapes and values against the architecture
    "missing tensor": (
        header_case(lambda h: h.__setitem__("e3.weight", h.pop("e2.weight"))),
        "'e3.weight' does not belong",
    ),
    "escape in a name": (
        header_case(lambda h: h.__setitem__("\x1b[2J", h.pop("e1.bias"))),
        r"'\\x1b\[2J' does not belong",
    ),
    "wrong rank": (
        set_("e1.weight", "shape", [2, 16]),
        r"'e1.weight' has shape \(2, 16\), expected \(2, 1, 4, 4\)",
    ),
    "wrong shape": (
        set_("e1.weight", "shape", [1, 2, 4, 4]),
        r"'e1.weight' has shape \(1, 2, 4, 4\), expected",
    ),
    "wrong dtype": (
        header_case(lambda h: h["e1.bias"].update(dtype="F16", shape=[4])),
        r"'e1.bias' has shape \(4,\)",
    ),
    "swapped tensors": (header_case(swap_offsets), "'(e1|d2).bias'"),
    "NaN": (values_case("e2.weight", float("nan")), "'e2.weight' has NaN or infinite"),
    "infinity": (values_case("d1.norm.mean", float("-inf")), "'d1.norm.mean' has NaN or infinite"),
    "negative variance": (values_case("d1.norm.var", -0.5), "'d1.norm.var' is a variance with neg"),
    "damaged weight": (lambda d: d[:-40] + b"\x11" + d[-39:], "does not match its SHA-256"),
    # metadata
    "no metadata": (
        raw_header(
            lambda h: compact(
                {k: v for k, v in json.loads(h).items() if k != "__metadata__"}
            ).encode()
        ),
        "without 'pix2pix_fast' in its metadata",
    ),
    "metadata is text": (
        raw_header(lambda h: h.replace(b'{"__metadata__":{', b'{"__metadata__":1,"x":{', 1)),
        "__metadata__ must map texts",
    ),
    "metadata of numbers": (
        raw_header(lambda h: b'{"__metadata__":{"pix2pix_fast":1}}'),
        "__metadata__ must map texts",
    ),
    "second entry": (
        raw_header(lambda h: h.replace(b'"__metadata__":{', b'"__metadata__":{"a":"b",')),
        "must hold 'pix2pix_fast' and 'digest' alone",
    ),
    "no digest": (
        raw_header(lambda h: h.replace(b'"digest":"', b'"digesT":"')),
        "must hold 'pix2pix_fast' and 'digest' alone",
    ),
    "wrong digest": (
        raw_header(lambda h: h.replace(b'"digest":"', b'"digest":"0')),
        "'digest' does not match",
    ),
    "text too long": (
        lambda d: put_together(take_apart(d)[0], '"' + "a" * 70000 + '"', take_apart(d)[2]),
        "metadata of 70002 bytes, at most 65536",
    ),
    "metadata list": (
        lambda d: put_together(take_apart(d)[0], "[]", take_apart(d)[2]),
        "metadata must be an object",
    ),
    "future version": (
        document_case(lambda d: d.update(format=2, new=1)),
        "format version 2 is newer than 1",
    ),
    "version zero": (
        document_case(lambda d: d.update(format=0)),
        "format must be 1 or more, got 0",
    ),
    "version text": (
        document_case(lambda d: d.update(format="1")),
        "format must be 1 or more, got '1'",
    ),
    "version true": (
        document_case(lambda d: d.update(format=True)),
        "format must be 1 or more, got True",
    ),
    "no card": (document_case(lambda d: d.pop("card")), "field 'card' is missing"),
    "unknown field": (document_case(lambda d: d.update(path="/etc")), "field 'path' is unknown"),
    "card is a list": (document_case(lambda d: d.update(card=[])), "card must be an object"),
    "card control characters": (
        document_case(lambda d: d["card"].update(name="\x9b1m")),
        "'name' has control",
    ),
    "hash missing": (
        document_case(lambda d: d["sha256"].pop("e1.bias")),
        "sha256 and tensors differ in 'e1.bias'",
    ),
    "hash is a number": (
        document_case(lambda d: d["sha256"].update({"e1.bias": 1})),
        "sha256 must map",
    ),
    "architecture list": (
        document_case(lambda d: d.update(architecture=[])),
        "architecture must be an object",
    ),
    "architecture field": (
        document_case(lambda d: d["architecture"].pop("eps")),
        "field 'eps' is missing",
    ),
    "architecture extra": (
        document_case(lambda d: d["architecture"].update(x=1)),
        "field 'x' is unknown",
    ),
    "depth 3": (field_("depth", 3), "'e3.weight' is missing|'e2.norm.weight' is missing"),
    "depth 10^9": (field_("depth", 10**9), "depth must be a whole number from 2 to 9"),
    "negative ngf": (field_("ngf", -2), "ngf must be a whole number"),
    "eps zero": (field_("eps", 0), "eps must be a number"),
    "dropout text": (field_("dropout", "d1"), "dropout must be a list"),
    "dropout place": (field_("dropout", ["d2"]), "dropout must be layers among d1..d1"),
    "dropout nested": (field_("dropout", [["d1"]]), "dropout must be layers"),
    "norm name": (field_("norm", "batch"), "norm must be 'image', 'running' or 'none'"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused_by_name(name: str, tiny: bytes, tmp_path: Path) -> None:
    change, message = MALFORMED[name]
    data = change(tiny)
    assert data != tiny
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(ModelFormatError, match=message) as caught:
        load(path)
    assert time.perf_counter() - start < 1  # the bar is 50 ms; a shared machine may stall
    assert str(caught.value).startswith(str(path)) and "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(path))
    assert refused(data) == str(caught.value).replace(str(path), "model", 1)


def test_the_unbroken_file_goes_through_the_same_builders(tiny: bytes) -> None:
    again = put_together(*take_apart(tiny))
    assert load(again).digest == load(tiny).digest


def test_every_sampled_prefix_is_refused(tiny: bytes) -> None:
    rng = np.random.default_rng(0)
    ends = {*range(0, 64), *rng.integers(0, len(tiny), 1500).tolist(), len(tiny) - 1}
    for end in ends:
        refused(tiny[:end])


def test_every_flipped_bit_is_refused(tiny: bytes) -> None:
    """All bits of a file would be 40,000 of them; the header's are the interesting ones."""
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(tiny[:8], "little")
    bits = np.concatenate(
        [rng.choice(header * 8, 3500, replace=False), rng.integers(header * 8, len(tiny) * 8, 1500)]
    )
    for bit in bits.tolist():
        data = bytearray(tiny)
        data[bit // 8] ^= 1 << bit % 8
        refused(bytes(data))


def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 243 + ".safetensors")  # 255 bytes; that of the unfinished file must fit too
    save(random_model(TINY), path)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_headers_that_the_library_refuses_are_refused(tiny: bytes) -> None:
    """5,000 mutants of a header: ours may be stricter than the library, never laxer."""
    safetensors = pytest.importorskip("safetensors")
    import io

    header, _, blob = take_apart(tiny)
    text = compact(header).encode()
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(5000):
        mutant = bytearray(text)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(len(mutant)))
            mutant[place] = rng.choice(np.frombuffer(b'0123456789[]{},:"- eF', np.uint8))
        data = with_header(bytes(mutant), blob)
        try:
            read_header(io.BytesIO(data), "mutant")
        except ModelFormatError:
            continue
        accepted += 1
        safetensors.deserialize(data)  # raises if the library disagrees
    assert accepted > 50  # changed names, mostly


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_refusing_costs_little_memory(tiny: bytes, tmp_path: Path) -> None:
    """Headers at the size limit that parse into as many objects as they can, and mutants."""
    limit = 1 << 18
    for index, text in enumerate(
        [
            b'{"a":[' + b"[]," * (limit // 3 - 10) + b"[]]}",
            b'{"a":[' + b"{}," * (limit // 3 - 10) + b"{}]}",
            b'{"a":"' + b"\\u0041" * (limit // 6 - 10) + b'"}',
            b'{"a":[' + b"1e5," * (limit // 4 - 10) + b"1]}",
            b"{" + b",".join(b'"%x":{}' % i for i in range(limit // 10)) + b"}",
            b"[" * limit,
            b'"' * limit,
            b'{"' + b'\\"' * (limit // 2 - 10) + b"}",
        ]
    ):
        (tmp_path / f"{index}.bin").write_bytes(with_header(text[:limit], bytes(64)))
    rng = np.random.default_rng(0)
    for index in range(500):
        mutant = bytearray(tiny)
        for _ in range(4):
            mutant[int(rng.integers(len(mutant)))] = int(rng.integers(256))
        (tmp_path / f"m{index}.bin").write_bytes(mutant)
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from pix2pix_fast import model, checkpoints\n"
        "def peak():\n"
        "    text = open('/proc/self/status').read()\n"
        "    return int(text[text.index('VmHWM'):].split()[1])\n"
        "before = peak()\n"
        "for name in sorted(os.listdir(sys.argv[1])):\n"
        "    for read in model.load, checkpoints.read:\n"
        "        try: read(os.path.join(sys.argv[1], name))\n"
        "        except model.ModelFormatError: pass\n"
        "        else: raise SystemExit(name + ' was accepted')\n"
        "print(peak() - before)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parents[1])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 16 * 1024  # KiB; the largest file has 256


def test_names_and_layers_stay_as_documented() -> None:
    """docs/model-file.md tells others how to write one: its example must load."""
    text = (Path(__file__).parents[1] / "docs" / "model-file.md").read_text()
    code = text[text.index("```python") + 9 :]
    scope: dict[str, Any] = {}
    exec(code[: code.index("```")], scope)
    model = load(scope["data"])
    assert isinstance(model, Model) and model.architecture.depth == 2
