"""Each wrong argument raises, and the text names the argument, what was expected and what came."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import noise, tiny_model

from pix2pix_fast import BackendUnavailable, Engine, ModelFormatError, backends

MODEL = tiny_model()
PIXELS = noise((20, 24, 3))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(MODEL, size=(32, 32)) as engine:
        yield engine


def check(call: Callable[[], Any], kind: type[Exception], words: str) -> None:
    """`words` must stand in the message in this order, whatever is between them."""
    pattern = ".*".join(re.escape(word) for word in words.split(" ... "))
    with pytest.raises(kind, match=pattern) as caught:
        call()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


class OnGpu:
    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("asked for the memory of another device")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)  # kDLCUDA


class BrokenDLPack:
    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("no")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class BrokenArray:
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise ValueError("no")


READ_ONLY = np.zeros((20, 24, 3), np.uint8)
READ_ONLY.flags.writeable = False

ENGINE_ARGUMENTS = [
    ({"backend": "gpu"}, ValueError, "backend: expected ... 'auto' ... 'cpu' ... got 'gpu'"),
    *([({"backend": "cuda"}, BackendUnavailable, "backend 'cuda' cannot run ... backend='cpu'")]
      if backends.available()["cuda"] else []),  # where it can run, it does
    ({"backend": "tensorrt"}, BackendUnavailable, "backend 'tensorrt' cannot run ... TensorRT"),
    ({"precision": "int8"}, ValueError, "precision: expected ... 'f32' ... got 'int8'"),
    ({"precision": "f16"}, BackendUnavailable, "precision='f16' ... cpu ... 'f32'"),
    ({"norm": "batch"}, ValueError, "norm: expected ... 'image', 'running' ... got 'batch'"),
    ({"norm": "running"}, ValueError, "norm='running' ... stored statistics"),
    ({"threads": 0}, ValueError, "threads: expected 1 to 1024, got 0"),
    ({"threads": -1}, ValueError, "threads: expected 1 to 1024, got -1"),
    ({"threads": 5000}, ValueError, "threads: expected 1 to 1024, got 5000"),
    ({"threads": 1.5}, TypeError, "threads: expected None or an int, got 1.5"),
    ({"threads": True}, TypeError, "threads: expected None or an int, got True"),
    ({"dropout": -1}, ValueError, "dropout: expected 0 to ... got -1"),
    ({"dropout": 2**64}, ValueError, "dropout: expected 0 to ... got 18446744073709551616"),
    ({"dropout": 0.5}, TypeError, "dropout: expected None or an int, got 0.5"),
    ({"dropout": True}, TypeError, "dropout: expected None or an int, got True"),
    ({"size": 256}, TypeError, "size: expected (height, width) ... got 256"),
    ({"size": (256,)}, TypeError, "size: expected (height, width) ... got (256,)"),
    ({"size": (True, 256)}, TypeError, "size: expected (height, width) ... got (True, 256)"),
    ({"size": (0, 256)}, ValueError, "size: expected at least 1 x 1 pixel, got height 0"),
    ({"size": (10**6, 10**6)}, ValueError, "size: expected at most 67108864 pixels"),
]


@pytest.mark.parametrize(("arguments", "kind", "words"), ENGINE_ARGUMENTS, ids=str)
def test_engine_arguments(arguments: dict[str, Any], kind: type[Exception], words: str) -> None:
    check(lambda: Engine(MODEL, **arguments), kind, words)


MODELS = [
    (None, TypeError, "model: expected the path ... got NoneType"),
    (b"bytes", TypeError, "model: expected the path ... got bytes"),
    (torch.nn.Conv2d(1, 1, 1), ModelFormatError, "Conv2d.pth: has the tensors of no network"),
    ("https://host/model.safetensors", ValueError, "model: expected a local file ... URL"),
    (Path("https://host/model.pth"), ValueError, "model: expected a local file ... URL"),
    ("no/such/file.safetensors", FileNotFoundError, "no/such/file.safetensors"),
]


@pytest.mark.parametrize(("model", "kind", "words"), MODELS, ids=lambda value: str(value)[:30])
def test_models(model: Any, kind: type[Exception], words: str) -> None:
    check(lambda: Engine(model), kind, words)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"not a model at all")
    check(lambda: Engine(path), ModelFormatError, "a.safetensors")


IMAGES: list[tuple[str, Any, dict[str, Any], type[Exception], str]] = [
    ("none", None, {}, TypeError, "image: expected a path ... got NoneType"),
    ("number", 3, {}, TypeError, "image: expected ... got int"),
    ("generator", (i for i in ()), {}, TypeError, "got generator; stream() takes iterables"),
    ("dict", {}, {}, TypeError, "image: expected ... got dict"),
    ("BytesIO", io.BytesIO(), {}, TypeError, "got BytesIO; pass what it holds: image.read()"),
    ("url", "https://host/a.png", {}, ValueError, "image: expected a local file ... download"),
    ("data url", "data:image/png;base64,AA", {}, ValueError, "image: expected a local file"),
    ("file url", "file:///a.png", {}, ValueError, "image: expected a local file"),
    ("empty path", "", {}, ValueError, "image: expected the path ... empty string"),
    ("no file", "no/such.png", {}, FileNotFoundError, "no/such.png"),
    ("NUL in path", "a\0.png", {}, ValueError, "image:"),
    ("folder", ".", {}, ValueError, "image: expected a picture file, got the folder"),
    ("no picture", __file__, {}, ValueError, "no picture file that we open (PNG, JPEG"),
    ("no bytes", b"", {}, ValueError, "0 bytes: no picture file"),
    ("gif", b"GIF89a" + bytes(40), {}, ValueError, "no picture file that we open"),
    ("cut png", None, {}, ValueError, "image: ... damaged"),
    ("bool", PIXELS > 9, {}, TypeError, "image: expected uint8 ... got bool; multiply"),
    ("int64", PIXELS.astype(int), {}, TypeError, "image: expected uint8 ... got int64"),
    ("int8", PIXELS.astype("i1"), {}, TypeError, "image: expected uint8 ... got int8"),
    ("uint32", PIXELS.astype("u4"), {}, TypeError, "image: expected uint8 ... got uint32"),
    ("complex", PIXELS.astype(complex), {}, TypeError, "got complex128"),
    ("object", PIXELS.astype(object), {}, TypeError, "got object"),
    ("structured", np.zeros((4, 4), "u1,u1"), {}, TypeError, "image: expected uint8 ... got"),
    ("masked", np.ma.masked_array(PIXELS), {}, TypeError, "masked array; fill it"),
    ("torch bool", torch.zeros(3, 4, 4, dtype=torch.bool), {}, TypeError, "got torch.bool; mul"),
    ("torch int", torch.zeros(3, 4, 4, dtype=torch.int32), {}, TypeError, "got torch.int32"),
    ("torch sparse", torch.zeros(3, 4).to_sparse(), {}, TypeError, "dense ... sparse_coo"),
    (
        "torch negated",
        torch.zeros(3, 4, 4, dtype=torch.complex64).conj().imag,
        {},
        TypeError,
        "plain numbers ... negates them; pass image.resolve_neg()",
    ),
    ("torch meta", torch.zeros(3, 4, 4, device="meta"), {}, ValueError, "on the CPU ... on meta"),
    ("gpu", OnGpu(), {}, ValueError, "image: expected memory of the CPU ... device (2, 0)"),
    ("bad dlpack", BrokenDLPack(), {}, TypeError, "BrokenDLPack cannot be read through DLPack"),
    ("bad array", BrokenArray(), {}, TypeError, "BrokenArray cannot be read as an array"),
    ("scalar", np.uint8(3), {}, ValueError, "expected axes HW, HWC or NHWC, got shape ()"),
    ("1-D", PIXELS[0, 0], {}, ValueError, "expected axes HW, HWC or NHWC, got shape (3,)"),
    ("5-D", PIXELS[None, None], {}, ValueError, "expected axes HW, HWC or NHWC, got shape (1, 1"),
    ("2 channels", PIXELS[:, :, :2], {}, ValueError, "expected 3 channels ... HWC, got shape"),
    ("5 channels", noise((9, 9, 5)), {}, ValueError, "expected 3 channels ... (9, 9, 5)"),
    (
        "torch HWC",
        torch.zeros(9, 9, 5),
        {},
        ValueError,
        "expected 3 channels ... CHW ... (9, 9, 5)",
    ),
    ("layout lies", PIXELS, {"layout": "CHW"}, ValueError, "3 channels ... in axes CHW, got shape"),
    ("layout", PIXELS, {"layout": "NHWC"}, ValueError, "layout: expected 'HWC' ... got 'NHWC'"),
    ("no rows", PIXELS[:0], {}, ValueError, "at least 1 x 1 pixel, got height 0, width 24"),
    ("no columns", PIXELS[:, :0], {}, ValueError, "at least 1 x 1 pixel, got height 20, width 0"),
    ("huge", np.broadcast_to(PIXELS[:1, :1], (9000, 9000, 3)), {}, ValueError, "at most 67108864"),
    ("out number", PIXELS, {"out": 3}, TypeError, "out: expected an array or tensor ... got int"),
    ("range order", PIXELS, {"value_range": (1, 0)}, ValueError, "value_range: ... got (1, 0)"),
    ("range nan", PIXELS, {"value_range": (0, np.nan)}, ValueError, "value_range: expected finite"),
    *(
        (f"range {pair}", PIXELS, {"value_range": pair}, ValueError, "value_range: ... in float32")
        for pair in (
            (0, 1e39), (0, 1e-45), (0, 1e-310), (-3.4e38, 3.4e38), (16777216, 16777217), (1e300, 1e301)
        )
    ),
    ("range one", PIXELS, {"value_range": 255}, TypeError, "value_range: expected two numbers"),
    ("range three", PIXELS, {"value_range": (0, 1, 2)}, TypeError, "value_range: ... two numbers"),
    ("range text", PIXELS, {"value_range": "ab"}, TypeError, "value_range: expected two numbers"),
    (
        "out shape",
        PIXELS,
        {"out": PIXELS[:9].copy()},
        ValueError,
        "out: expected shape (20, 24, 3)",
    ),
    ("out kind", PIXELS, {"out": [[1]]}, TypeError, "out: expected an array ... got list"),
    ("out PIL", PIXELS, {"out": Image.new("RGB", (24, 20))}, TypeError, "out: expected an array"),
    ("out int", PIXELS, {"out": PIXELS.astype(int)}, TypeError, "out: expected uint8 ... int64"),
    ("out read-only", PIXELS, {"out": READ_ONLY}, ValueError, "out: ... written ... read-only"),
    (
        "out broadcast",
        PIXELS,
        {"out": np.lib.stride_tricks.as_strided(PIXELS.copy(), (20, 24, 3), (0, 3, 1))},
        ValueError,
        "out: expected a place of its own for every pixel",
    ),
    (
        "out bfloat16",
        PIXELS,
        {"out": torch.zeros(20, 24, 3, dtype=torch.bfloat16)},
        TypeError,
        "out: expected uint8 ... got torch.bfloat16",
    ),
    ("out gpu", PIXELS, {"out": OnGpu()}, ValueError, "out: expected memory of the CPU"),
    ("out for list", [PIXELS], {"out": PIXELS}, ValueError, "out: expected a list of 1 arrays"),
    ("outs", [PIXELS], {"out": []}, ValueError, "a list of 1 arrays ... got a list of 0"),
    ("in a list", [PIXELS, 3], {}, TypeError, "image[1]: expected ... got int"),
    ("path in a list", [PIXELS, "no.png"], {}, FileNotFoundError, "image[1]: ... 'no.png'"),
    ("list in a list", [[PIXELS]], {}, TypeError, "image[0]: expected ... got list"),
]


@pytest.mark.parametrize(
    ("image", "arguments", "kind", "words"),
    [case[1:] for case in IMAGES],
    ids=[case[0] for case in IMAGES],
)
def test_images(
    engine: Engine, image: Any, arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    if "damaged" in words:
        store = io.BytesIO()
        Image.fromarray(PIXELS).save(store, "PNG")
        image = store.getvalue()[:300]
    check(lambda: engine.translate(image, **arguments), kind, words)


def test_a_refused_call_leaves_the_engine_as_it_was(engine: Engine) -> None:
    want = engine.translate(PIXELS)
    for _, image, arguments, kind, _ in IMAGES[:30]:
        with pytest.raises((kind, TypeError)):
            engine.translate(image, **arguments)
    np.testing.assert_array_equal(engine.translate(PIXELS), want)


def test_pictures_that_a_model_cannot_have() -> None:
    gray = Engine(tiny_model(ci=1, co=1), size=(8, 8))
    check(
        lambda: gray.translate(PIXELS),
        ValueError,
        "image: expected 1 channel ... got shape (20, 24, 3); convert the colours to gray",
    )
    many = Engine(tiny_model(ci=5, co=3), size=(8, 8))
    picture = Image.fromarray(PIXELS)
    check(
        lambda: many.translate(picture), ValueError, "reads 5 channels ... pass an array (H, W, 5)"
    )
    check(lambda: many.translate(PIXELS), ValueError, "image: expected 5 channels in axes HWC")
    check(lambda: many.translate(PIXELS[:, :, 0]), ValueError, "image: expected 5 channels")
    wide = Engine(tiny_model(ci=3, co=4), size=(8, 8))
    check(lambda: wide.translate(picture), ValueError, "writes 4 channels ... pass an array")
    assert wide.translate(PIXELS).shape == (20, 24, 4)


def test_picture_bombs_are_refused_before_decoding(engine: Engine) -> None:
    store = io.BytesIO()
    Image.new("1", (9000, 9000)).save(store, "PNG")
    check(lambda: engine.translate(store.getvalue()), ValueError, "at most 67108864 pixels")
    store = io.BytesIO()
    Image.new("1", (20000, 20000)).save(store, "PNG")  # which Pillow itself refuses
    check(lambda: engine.translate(store.getvalue()), ValueError, "at most 67108864 pixels")


def test_padding_counts() -> None:
    thin = np.broadcast_to(PIXELS[:1, :1], (1, 1 << 21, 3))
    words = "image padded to multiples of 64: expected at most"
    with Engine(tiny_model(depth=6, ngf=1), size=(64, 64), threads=2) as deep, deep.lanes() as lanes:
        check(lambda: deep.translate(thin), ValueError, words)
        check(lambda: deep.translate([PIXELS, thin]), ValueError, f"image[1]: {words}")
        check(lambda: lanes.submit(thin).result(), ValueError, words)


FRAMES = [
    ("a.png", TypeError, "frames: expected an iterable of pictures, got str; translate() takes"),
    (b"bytes", TypeError, "frames: expected an iterable of pictures, got bytes"),
    (Path("a.png"), TypeError, "frames: expected an iterable of pictures, got PosixPath"),
    (7, TypeError, "frames: expected an iterable of pictures, got int"),
    (PIXELS, TypeError, "frames: expected an iterable of pictures, got an array of 3 axes"),
    (torch.zeros(3, 9, 9), TypeError, "frames: ... got an array of 3 axes; translate()"),
    (Image.fromarray(PIXELS), TypeError, "frames: expected an iterable of pictures, got Image"),
]


@pytest.mark.parametrize(("frames", "kind", "words"), FRAMES, ids=lambda value: str(value)[:20])
def test_frames(engine: Engine, frames: Any, kind: type[Exception], words: str) -> None:
    check(lambda: engine.stream(frames), kind, words)


def test_an_engine_cannot_be_pickled(engine: Engine) -> None:
    import copy

    check(lambda: pickle.dumps(engine), TypeError, "cannot be pickled ... in each process")
    check(lambda: copy.copy(engine), TypeError, "cannot be pickled or copied")
    check(lambda: copy.deepcopy(engine), TypeError, "cannot be pickled or copied")


def test_a_closed_engine_says_so() -> None:
    engine = Engine(MODEL, size=(8, 8))
    stream = engine.stream([PIXELS])
    engine.close()
    check(lambda: engine.translate(PIXELS), ValueError, "this Engine is closed")
    check(lambda: engine.stream([PIXELS]), ValueError, "this Engine is closed")
    check(lambda: next(stream), ValueError, "frame 0: this Engine is closed")


def test_errors_survive_pickling() -> None:
    for kind in (BackendUnavailable, ModelFormatError):
        again = pickle.loads(pickle.dumps(kind("text")))
        assert type(again) is kind
        assert str(again) == "text"
