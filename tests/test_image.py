"""The border for pictures: every kind, dtype, axis order and memory layout gives the same pixels.

The yardstick is one contiguous NHWC call of the core itself; each test brings the same pixels by
another road and must get the same result, in the kind, dtype and axis order it came in.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import noise, tiny_model

from pix2pix_fast import Engine, images
from pix2pix_fast.model import Model

DTYPES = ("uint8", "uint16", "float16", "float32", "float64")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(tiny_model(), size=(32, 32)) as engine:
        yield engine


@pytest.fixture(scope="module")
def gray() -> Iterator[Engine]:
    with Engine(tiny_model(ci=1, co=1), size=(32, 32)) as engine:
        yield engine


def expected(engine: Engine, pixels: np.ndarray, co: int = 3) -> np.ndarray:
    """The core's own answer for (n, h, w, c) pixels: contiguous, native, one image per call."""
    dtype = pixels.dtype.newbyteorder("=")
    readable = dtype if dtype.kind == "u" else np.dtype(np.float32)
    src = np.ascontiguousarray(pixels.astype(readable))
    dst = np.empty((*src.shape[:3], co), readable)
    for one, room in zip(src, dst, strict=True):
        engine._core.run(one[None], room[None])
    return dst.astype(pixels.dtype)


class DLPackOnly:
    """An array of some other library: it speaks DLPack and nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


class InterfaceOnly:
    def __init__(self, array: np.ndarray) -> None:
        self.keep = array
        self.__array_interface__ = array.__array_interface__


class ArrayMethodOnly:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.array


# Arrays


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", ["HWC", "CHW", "NHWC", "NCHW"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_same_kind_dtype_and_axes(engine: Engine, kind: str, axes: str, dtype: str) -> None:
    n = 2 if axes[0] == "N" else 1
    pixels = noise((n, 21, 30, 3), dtype)
    want = expected(engine, pixels)
    given_axes = [{"N": 0, "H": 1, "W": 2, "C": 3}[axis] for axis in axes]
    array = pixels.transpose(0, *(axis for axis in given_axes if axis))
    want = want.transpose(0, *(axis for axis in given_axes if axis))
    if n == 1:
        array, want = array[0], want[0]
    image: Any = array if kind == "numpy" else torch.from_numpy(np.ascontiguousarray(array))
    layout: Any = axes.removeprefix("N")
    for result in (engine.translate(image, layout=layout), engine.translate(image)):
        assert type(result) is type(image)
        assert result.dtype == image.dtype
        assert result.shape == image.shape
        np.testing.assert_array_equal(np.asarray(result), want)


def test_torch_bfloat16_comes_back_as_bfloat16(engine: Engine) -> None:
    image = torch.rand(3, 20, 20).to(torch.bfloat16)
    result = engine.translate(image)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, engine.translate(image.float()).to(torch.bfloat16))


def test_torch_with_gradient_and_channels_last(engine: Engine) -> None:
    image = torch.rand(2, 3, 20, 24)
    want = engine.translate(image)
    assert torch.equal(engine.translate(image.clone().requires_grad_()), want)
    assert torch.equal(engine.translate(image.to(memory_format=torch.channels_last)), want)
    assert torch.equal(engine.translate(image.expand(2, 3, 20, 24)[:, :, :, ::1]), want)


@pytest.mark.parametrize("wrap", [DLPackOnly, InterfaceOnly, ArrayMethodOnly, memoryview])
def test_other_arrays_come_back_as_something_with_dlpack(engine: Engine, wrap: Any) -> None:
    pixels = noise((20, 24, 3))
    result = engine.translate(wrap(pixels))
    assert hasattr(result, "__dlpack__")
    np.testing.assert_array_equal(result, expected(engine, pixels[None])[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_what_the_core_cannot_read_is_copied(dtype: str) -> None:
    for wide in noise((20, 24, 4), dtype), noise((20, 24, 1), dtype):
        array = wide[::-1, ::2]
        copied = not np.shares_memory(images.take(array, 3).pixels, array)
        assert copied == (dtype in ("float16", "float64"))


def test_gray_and_alpha(engine: Engine, gray: Engine) -> None:
    flat = noise((20, 24))
    coloured = engine.translate(flat)
    assert coloured.shape == (20, 24, 3)
    np.testing.assert_array_equal(coloured, engine.translate(np.stack([flat] * 3, axis=2)))
    assert engine.translate(torch.from_numpy(flat)).shape == (3, 20, 24)
    assert gray.translate(flat).shape == (20, 24)
    assert gray.translate(flat[:, :, None]).shape == (20, 24, 1)
    assert gray.translate(torch.from_numpy(flat)).shape == (20, 24)
    with_alpha = noise((20, 24, 4))
    np.testing.assert_array_equal(
        engine.translate(with_alpha), engine.translate(with_alpha[:, :, :3])
    )
    with_alpha = noise((20, 24, 2))
    np.testing.assert_array_equal(gray.translate(with_alpha), gray.translate(with_alpha[:, :, :1]))


@pytest.mark.parametrize(("ci", "co"), [(2, 5), (1, 3), (3, 1), (4, 4), (7, 2)])
def test_any_channel_count_for_arrays(ci: int, co: int) -> None:
    with Engine(tiny_model(depth=2, ci=ci, co=co), size=(8, 8)) as engine:
        pixels = noise((1, 9, 12, ci), "uint16")
        result = engine.translate(pixels)
        assert result.shape == (1, 9, 12, co)
        np.testing.assert_array_equal(result, expected(engine, pixels, co))
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        assert engine.translate(tensor).shape == (1, co, 9, 12)


def test_habit_wins_where_both_readings_fit(engine: Engine) -> None:
    image = noise((3, 50, 3))
    np.testing.assert_array_equal(engine.translate(image), engine.translate(image, layout="HWC"))
    tensor = torch.from_numpy(image)
    assert torch.equal(engine.translate(tensor), engine.translate(tensor, layout="CHW"))
    assert not np.array_equal(engine.translate(image), engine.translate(image, layout="CHW"))


def test_range_by_dtype(engine: Engine) -> None:
    """The same picture in any dtype is the same picture, up to the rounding of its numbers."""
    levels = noise((24, 24, 3))
    want = engine.translate(levels).astype(float)
    sixteen = engine.translate(levels.astype("uint16") * 257)
    assert np.abs(sixteen / 257 - want).max() <= 0.51
    for dtype in ("float32", "float64"):
        unit = engine.translate((levels / 255).astype(dtype))
        assert np.abs(unit * 255 - want).max() <= 0.51
    signed = engine.translate((levels / 127.5 - 1).astype("float32"), value_range=(-1, 1))
    assert np.abs((signed + 1) * 127.5 - want).max() <= 0.51
    wide = engine.translate(levels.astype("float32"), value_range=(0, 255))
    assert np.abs(wide - want).max() <= 0.51


def test_float_pixels_are_never_sniffed(engine: Engine) -> None:
    """0..255 floats without value_range stay what they are: far above white."""
    levels = noise((24, 24, 3)).astype("float32")
    unsaid = engine.translate(levels)
    assert unsaid.max() <= 1
    assert not np.allclose(unsaid * 255, engine.translate(levels, value_range=(0, 255)), atol=2)


MEMORY = ("C", "F", "negative", "step", "broadcast", "swapped", "readonly", "offset")


def remember(array: np.ndarray, memory: str) -> np.ndarray:
    """The same values, or for broadcast the first row everywhere, laid out differently."""
    if memory == "F":
        return np.asfortranarray(array)
    if memory == "negative":
        flip = (slice(None, None, -1),) * array.ndim
        return array[flip].copy()[flip]
    if memory == "step":
        wide = np.zeros([2 * length for length in array.shape], array.dtype)
        view = wide[(slice(None, None, 2),) * array.ndim]
        view[...] = array
        return view
    if memory == "broadcast":
        return np.broadcast_to(array[:1], array.shape) if len(array) else array
    if memory == "swapped":
        return array.astype(array.dtype.newbyteorder("S"))
    if memory == "offset":
        raw = np.zeros(array.nbytes + 1, np.uint8)[1:]  # not aligned to its own numbers
        view = raw.view(array.dtype).reshape(array.shape)
        view[...] = array
        return view
    array = array.copy()
    array.flags.writeable = memory != "readonly"
    return array


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    n=st.integers(0, 3),
    h=st.integers(0, 40),
    w=st.integers(0, 40),
    dtype=st.sampled_from(DTYPES),
    axes=st.sampled_from(["HW", "HWC", "CHW", "NHWC", "NCHW"]),
    channels=st.sampled_from([1, 3, 3, 3, 4]),
    memory=st.sampled_from(MEMORY),
    kind=st.sampled_from(["numpy", "torch", "dlpack", "interface", "list"]),
    seed=st.integers(0, 1000),
)
def test_generated_arrays(
    n: int,
    h: int,
    w: int,
    dtype: str,
    axes: str,
    channels: int,
    memory: str,
    kind: str,
    seed: int,
) -> None:
    """Right, or a ValueError for a picture without pixels; and the input keeps every byte."""
    engine = generated_engine()
    size = {"N": n, "H": h, "W": w, "C": channels}
    array = remember(noise(tuple(size[axis] for axis in axes), dtype, seed), memory)
    image: Any = array
    if kind == "torch":
        image = torch.from_numpy(np.ascontiguousarray(array.astype(dtype)))
    elif kind == "dlpack" and memory not in ("swapped", "readonly", "broadcast", "offset"):
        image = DLPackOnly(array)
    elif kind == "interface":
        image = InterfaceOnly(array)
    elif kind == "list":
        image = [array, array]
    before = array.tobytes()
    layout: Any = "CHW" if "CHW" in axes else "HWC"
    if not (h and w):
        with pytest.raises(ValueError, match="at least 1 x 1 pixel"):
            engine.translate(image, layout=layout)
        return
    results = engine.translate(image, layout=layout)
    assert array.tobytes() == before
    nhwc = array[None] if axes[0] != "N" else array
    nhwc = nhwc[..., None] if axes == "HW" else nhwc
    nhwc = nhwc.transpose(0, 2, 3, 1) if "CHW" in axes else nhwc
    nhwc = np.repeat(nhwc, 3, axis=3) if nhwc.shape[3] == 1 else nhwc[..., :3]
    want = expected(engine, nhwc)
    want = want.transpose(0, 3, 1, 2) if "CHW" in axes else want
    if axes == "HW" and kind == "torch":
        want = want.transpose(0, 3, 1, 2) if layout == "CHW" else want
    want = want if axes[0] == "N" else want[0]
    for result in results if kind == "list" else [results]:
        if kind == "torch":
            assert isinstance(result, torch.Tensor)
            result = result.numpy() if axes != "HW" else result.permute(1, 2, 0).numpy()
        else:
            assert type(result) is np.ndarray
            assert result.dtype == array.dtype
        np.testing.assert_array_equal(result, want)


_generated: list[Engine] = []


def generated_engine() -> Engine:
    if not _generated:
        _generated.append(Engine(tiny_model(), size=(32, 32)))
    return _generated[0]


# out=


@pytest.mark.parametrize("dtype", DTYPES)
def test_out_decides_the_range(engine: Engine, dtype: str) -> None:
    image = noise((20, 24, 3))
    out = np.empty((20, 24, 3), dtype)
    assert engine.translate(image, out=out) is out
    levels = engine.translate(image).astype(float)
    white = np.iinfo(dtype).max if dtype.startswith("u") else 1
    np.testing.assert_allclose(out.astype(float) / white * 255, levels, atol=0.6)


def test_out_of_every_kind(engine: Engine) -> None:
    image = noise((20, 24, 3))
    want = engine.translate(image)
    wide = np.zeros((40, 48, 3), np.uint8)
    for view in (wide[::-2, ::2], np.zeros((21, 24, 3), np.uint8)[:20, ::-1, ::-1]):
        assert engine.translate(image, out=view) is view
        np.testing.assert_array_equal(view, want)
    assert not wide[:, 1::2].any()
    tensor = torch.empty(3, 20, 24, dtype=torch.uint8)
    assert engine.translate(torch.from_numpy(image).permute(2, 0, 1), out=tensor) is tensor
    np.testing.assert_array_equal(tensor.permute(1, 2, 0).numpy(), want)
    swapped = np.empty((20, 24, 3), ">u2")
    engine.translate(image, out=swapped)
    assert np.abs(swapped / 257 - want.astype(float)).max() <= 0.51
    buffer = bytearray(want.nbytes)
    engine.translate(image, out=np.frombuffer(buffer, np.uint8).reshape(want.shape))
    assert bytes(buffer) == want.tobytes()
    one = np.empty_like(want)[None]  # its first stride is 0, and no pixel lies twice
    np.testing.assert_array_equal(engine.translate(image[None], out=one)[0], want)
    outs = [np.empty_like(want) for _ in range(3)]
    results = engine.translate([image] * 3, out=outs)
    assert all(result is out for result, out in zip(results, outs, strict=True))
    assert all(np.array_equal(out, want) for out in outs)
    picture = Image.fromarray(image)
    assert engine.translate(picture, out=np.empty_like(want)).tobytes() == want.tobytes()


def test_a_tensor_is_written_where_dlpack_is_read_only(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = np.from_dlpack

    def read_only(producer: Any) -> np.ndarray:  # as NumPy before 2.1
        array = real(producer)
        array.flags.writeable = False
        return array

    monkeypatch.setattr(np, "from_dlpack", read_only)
    image, out = noise((20, 24, 3)), torch.empty(20, 24, 3, dtype=torch.uint8)
    assert engine.translate(image, out=out) is out
    np.testing.assert_array_equal(out.numpy(), engine.translate(image))


def test_out_may_be_the_input(engine: Engine) -> None:
    image = noise((2, 20, 24, 3))
    want = engine.translate(image)
    for shift in (0, 1):
        both = np.zeros((3, 20, 24, 3), np.uint8)
        source = both[:2]
        source[...] = image
        target = both[shift : shift + 2]
        engine.translate(source, out=target)
        np.testing.assert_array_equal(target, want)
    halves = noise((20, 48, 3))
    left = engine.translate(halves[:, :24].copy())
    engine.translate(halves[:, :24], out=halves[:, 24:])
    np.testing.assert_array_equal(halves[:, 24:], left)


# Picture files and PIL


def test_path_and_bytes_give_pil(engine: Engine, tmp_path: Path) -> None:
    pixels = noise((20, 24, 3))
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    want = engine.translate(pixels).tobytes()
    data = path.read_bytes()
    for image in (path, str(path), data, bytearray(data), memoryview(data), Image.open(path)):
        result: Any = engine.translate(image)
        assert isinstance(result, Image.Image)
        assert (result.mode, result.size) == ("RGB", (24, 20))
        assert result.tobytes() == want
    results = engine.translate([path, pixels, Image.open(path)])
    assert [type(result) for result in results] == [Image.Image, np.ndarray, Image.Image]
    assert type(engine.translate((pixels,))) is tuple


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "ppm"])
def test_every_format(engine: Engine, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise((20, 24, 3))).save(path)
    want = engine.translate(np.asarray(Image.open(path)))
    np.testing.assert_array_equal(np.asarray(engine.translate(path)), want)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_exif_turns(engine: Engine, tmp_path: Path, turn: int, suffix: str) -> None:
    """An arrow that points up stays up, whichever way the camera was held."""
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12] = 255  # the top left quarter is white
    upright[:8, 12:] = 90
    undo: Any = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"a.{suffix}"
    stored = Image.fromarray(np.ascontiguousarray(undo[turn](upright)))
    stored.save(path, exif=exif, **({"quality": 100} if suffix in ("jpg", "webp") else {}))
    for image in (path, Image.open(path), path.read_bytes()):
        picture = images.take(image, 3)
        assert picture.pixels.shape == (1, 16, 24, 3)
        assert np.abs(picture.pixels[0].astype(int) - upright).max() < 60
        assert np.abs(picture.pixels[0, 2:6, 2:10].astype(int) - 255).max() < 30
        result: Any = engine.translate(image)
        assert result.size == (24, 16)
        assert result.getexif().get(0x0112, 1) == 1  # nobody may turn it a second time


RGB_OF = {
    "1": lambda image: image.convert("RGB"),
    "L": lambda image: image.convert("RGB"),
    "LA": lambda image: image.convert("RGB"),
    "La": lambda image: image.convert("LA").convert("RGB"),
    "P": lambda image: image.convert("RGB"),
    "PA": lambda image: image.convert("RGB"),
    "RGB": lambda image: image,
    "RGBA": lambda image: image.convert("RGB"),
    "RGBa": lambda image: image.convert("RGBA").convert("RGB"),
    "RGBX": lambda image: image.convert("RGB"),
    "CMYK": lambda image: image.convert("RGB"),
    "YCbCr": lambda image: image.convert("RGB"),
    "HSV": lambda image: image.convert("RGB"),
}


def picture_of(mode: str) -> Image.Image:
    image = Image.fromarray(noise((20, 24, 4)), "RGBA")
    if mode in ("RGBa", "La"):
        return image.convert("RGBA" if mode == "RGBa" else "LA").convert(mode)
    if mode == "PA":
        return image.convert("RGB").convert("P").convert("PA")
    return image.convert("RGB").convert(mode) if mode != "RGBA" else image


@pytest.mark.parametrize("mode", RGB_OF)
def test_pil_modes(engine: Engine, gray: Engine, mode: str) -> None:
    image = picture_of(mode)
    assert image.mode == mode
    before = image.tobytes()
    rgb = RGB_OF[mode](image)
    result = engine.translate(image)
    assert (result.mode, result.size) == ("RGB", image.size)
    np.testing.assert_array_equal(np.asarray(result), engine.translate(np.asarray(rgb)))
    flat = gray.translate(image)
    assert (flat.mode, flat.size) == ("L", image.size)
    level = np.asarray(image.convert("L") if mode in ("1", "L", "LA") else rgb.convert("L"))
    np.testing.assert_array_equal(np.asarray(flat), gray.translate(level))
    assert image.tobytes() == before


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_pil_modes_refused_by_name(engine: Engine, mode: str) -> None:
    with pytest.raises(ValueError, match=f"PIL mode '{mode}'"):
        engine.translate(Image.new(mode, (20, 24)))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_gray_keeps_its_bits(
    engine: Engine, gray: Engine, tmp_path: Path, suffix: str
) -> None:
    pixels = noise((20, 24), "uint16")
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(pixels).save(path)
    result: Any = gray.translate(path)
    assert result.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(result), gray.translate(pixels))
    back = io.BytesIO()
    result.save(back, "PNG")
    np.testing.assert_array_equal(np.asarray(Image.open(back)), gray.translate(pixels))
    coloured: Any = engine.translate(path)  # PIL has no 16-bit colour
    assert coloured.mode == "RGB"
    out = np.empty((20, 24, 3), np.uint8)
    engine.translate(pixels, out=out)
    np.testing.assert_array_equal(np.asarray(coloured), out)
    big = Image.frombytes("I;16B", (24, 20), pixels.astype(">u2").tobytes())
    np.testing.assert_array_equal(np.asarray(gray.translate(big)), gray.translate(pixels))


def test_colour_into_gray_model_and_back(tmp_path: Path) -> None:
    """Sketch models read one channel and write three: kinds follow the model, not the input."""
    with Engine(tiny_model(ci=1, co=3), size=(32, 32)) as engine:
        image = Image.fromarray(noise((20, 24, 3)))
        assert engine.translate(image).mode == "RGB"
        assert engine.translate(noise((20, 24))).shape == (20, 24, 3)
    with Engine(tiny_model(ci=3, co=1), size=(32, 32)) as engine:
        assert engine.translate(image).mode == "L"
        assert engine.translate(noise((20, 24, 3))).shape == (20, 24, 1)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_is_no_reason_to_refuse(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(noise((20, 24, 3))).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert engine.translate(str(path)).size == (24, 20)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_picture_keeps_nothing_of_its_file(tmp_path: Path) -> None:
    """Pillow maps uncompressed files that it opens by path: a file cut short then was a SIGBUS."""
    for suffix in ("bmp", "tif", "ppm"):
        path, want = tmp_path / f"a.{suffix}", noise((16, 16))
        Image.fromarray(want).save(path)
        picture = images.open_picture(path)
        with path.open("r+b") as file:  # in place, as a camera's program rewrites it
            file.write(bytes(path.stat().st_size))
        np.testing.assert_array_equal(np.asarray(picture), want, suffix)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "I;16"])
@pytest.mark.parametrize("turn", [5, 6, 8])
def test_turned_tiffs_are_the_same_from_a_path(tmp_path: Path, mode: str, turn: int) -> None:
    path = tmp_path / "a.tif"
    levels = noise((9, 14, 4)) if mode == "CMYK" else noise((9, 14))
    if mode == "I;16":
        levels = levels.astype(np.uint16) * 257
    picture = Image.fromarray(levels, None if mode == "I;16" else mode)
    if mode == "P":
        picture.putpalette(bytes(range(256)) * 3)
    picture.save(path, tiffinfo={0x0112: turn})
    back = {5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 8: np.rot90}[turn]
    np.testing.assert_array_equal(np.asarray(images.open_picture(path)), back(levels))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_is_refused_without_waiting(engine: Engine, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png: expected a regular file, got a pipe"):
        engine.translate(tmp_path / "a.png")


def tiff(entries: dict[int, list[int]], data: bytes = b"") -> bytes:
    """A little-endian TIFF of 16 x 16 pixels; each entry is a list of 32-bit numbers."""
    entries = {256: [16], 257: [16], 258: [8], 259: [1], 262: [1], 277: [1], **entries}
    at = 8 + 2 + 12 * len(entries) + 4
    table, more = struct.pack("<2sHIH", b"II", 42, 8, len(entries)), data
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            packed, more = struct.pack("<I", at + len(more)), more + packed
        table += struct.pack("<HHI", tag, 4, len(values)) + packed
    return table + bytes(4) + more


def test_tiffs_that_unpack_beyond_their_picture_are_refused() -> None:
    side, unpacked = 4096, zlib.compress(bytes(1 << 24))
    data = {259: [8], 322: [side], 323: [side], 324: [134], 325: [len(unpacked)]}
    with pytest.raises(ValueError, match="tiles of at most 4194304 pixels .* got 4096 x 4096"):
        images.open_picture(tiff(data, unpacked))
    with pytest.raises(ValueError, match="at most 17 strips or tiles .* got 5000"):
        images.open_picture(tiff({278: [1], 273: [8] * 5000, 279: [4] * 5000}))
    data = {322: [16], 323: [16], 324: [134], 325: [256]}
    want = noise((16, 16))
    picture = images.open_picture(tiff(data, want.tobytes()))
    np.testing.assert_array_equal(np.asarray(picture), want)


def test_bytes_with_strides_are_bytes(engine: Engine, tmp_path: Path) -> None:
    Image.fromarray(noise((9, 9, 3))).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    spread = memoryview(bytes(byte for one in data for byte in (one, 0)))[::2]
    want = np.asarray(engine.translate(data))
    np.testing.assert_array_equal(np.asarray(engine.translate(spread)), want)


def test_an_empty_batch_fits_an_empty_out(engine: Engine) -> None:
    out = np.empty((0, 9, 9, 3), np.uint8)
    assert engine.translate(np.empty((0, 9, 9, 3), np.uint8), out=out) is out
    out = np.broadcast_to(np.uint8(0), (0, 9, 9, 3)).copy()
    assert engine.translate(np.empty((0, 9, 9, 3), np.uint8), out=out) is out


def test_a_damaged_picture_that_was_opened_already_is_said_to_be(engine: Engine) -> None:
    file = io.BytesIO()
    Image.fromarray(noise((40, 40, 3))).save(file, "PNG")
    for end in (200, 1000):
        with pytest.raises(ValueError, match="image: damaged: "):
            engine.translate(Image.open(io.BytesIO(file.getvalue()[:end])))


@pytest.mark.filterwarnings("error")
def test_memory_that_ran_out_is_no_damage(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    path = tmp_path / "a.png"
    Image.fromarray(noise((20, 24, 3))).save(path)
    with Image.open(path) as opened:
        monkeypatch.setattr(type(opened), "load", full)
        for picture in path, opened:
            with pytest.raises(MemoryError):
                engine.translate(picture)


def test_nothing_warns(engine: Engine) -> None:
    """What is meant: transparency dropped, numbers beyond float16 infinite."""
    file = io.BytesIO()
    picture = Image.fromarray(noise((9, 9)), "L").convert("P")
    picture.save(file, "PNG", transparency=bytes(range(256)))
    assert engine.translate(file.getvalue()).size == (9, 9)
    pixels = noise((9, 9, 3)).astype(np.float32) * 4e3
    for out in (np.empty((9, 9, 3), np.float16), np.empty((9, 9, 3), ">f2")):
        assert engine.translate(pixels, out=out, value_range=(0, 1e6)) is out
    assert np.isinf(out).any()


def test_mutated_files_fail_cleanly(engine: Engine) -> None:
    """Cut and flipped files of every format: a picture, or ValueError; nothing else."""
    rng = np.random.default_rng(3)
    refused = 0
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"):
        store = io.BytesIO()
        Image.fromarray(noise((20, 24, 3))).save(store, kind)
        whole = store.getvalue()
        for _ in range(40):
            data = bytearray(whole)
            for _ in range(rng.integers(1, 6)):
                data[rng.integers(len(data))] = rng.integers(256)
            if rng.integers(2):
                del data[rng.integers(len(data)) :]
            try:
                images.open_picture(bytes(data))
            except ValueError:
                refused += 1
    assert refused > 60


@pytest.mark.parametrize(("dtype", "half"), [("uint8", 127.5), ("uint16", 32767.5)])
def test_levels_become_floats_by_division(engine: Engine, dtype: str, half: float) -> None:
    """So that the largest is exactly 1: a product with the rounded 1 / 127.5 need not be."""
    for width in (24, 21):  # and padded columns
        pixels = noise((1, 32, width, 3), dtype)
        pixels[0, 0, 0] = np.iinfo(dtype).max
        floats = pixels / np.float32(half) - np.float32(1)
        got, want = np.empty(pixels.shape, np.float32), np.empty(pixels.shape, np.float32)
        engine._core.run(pixels, got, value_range=(-1.0, 1.0))
        engine._core.run(floats, want, value_range=(-1.0, 1.0))
        assert floats.dtype == np.float32 and floats.max() == 1
        np.testing.assert_array_equal(got, want)


def test_levels_are_the_rounded_floats_and_nothing_a_number_is_black() -> None:
    """In every lane of a vector and in the rest of a row, whatever instructions the loop was compiled
    for. Without the tanh at the end, which is free to turn a NaN into a number."""
    model = tiny_model()
    model = Model(replace(model.architecture, tanh=False), model.tensors, {"name": "open"})
    nan = np.uint32(0x7FC055AA).view(np.float32)  # the lowest bits, which arithmetic keeps, are no level
    with Engine(model, size=(32, 40)) as engine:
        for width in (1, 5, 31, 40):  # 3, 15, 93 and 120 values a row
            src = noise((1, 32, width, 3), "float32") * 4 - 2
            spoilt = src.copy()
            spoilt[0, 3, 0, 1] = nan
            for dtype, half in (("uint8", 127.5), ("uint16", 32767.5)):
                values, levels = np.empty(src.shape, np.float32), np.empty(src.shape, dtype)
                engine._core.run(src, values, value_range=(-1.0, 1.0))
                engine._core.run(src, levels, value_range=(-1.0, 1.0))
                want = np.rint((np.clip(values, -1, 1) + np.float32(1)) * np.float32(half))
                assert (values < -1).any() and (values > 1).any()
                assert np.array_equal(levels, want)
                engine._core.run(spoilt, values, value_range=(-1.0, 1.0))
                engine._core.run(spoilt, levels, value_range=(-1.0, 1.0))
                assert np.isnan(values).any() and np.all(levels[np.isnan(values)] == 0)
