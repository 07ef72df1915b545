"""The border for pictures: whatever the caller holds goes in, the same kind comes out.

The core reads and writes (n, h, w, c) arrays of uint8, uint16 or float32 with any strides. This
file turns a path, the bytes of a picture file, PIL, NumPy, torch, DLPack and array-like objects
into such a view (`take`), and makes the room for the result in the caller's kind, dtype and axis
order (`Picture.room`). Pixels are copied only where the core cannot read them as they lie: float16,
float64, byte-swapped and unaligned numbers, and PIL, whose memory is its own. torch is never
imported: a tensor comes from somebody who already did. Next: engine.py calls these two.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

Layout = Literal["HWC", "CHW"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 1 << 26  # 64 megapixels: 8192 x 8192

_DTYPES = ("uint8", "uint16", "float16", "float32", "float64")
_KINDS = (
    "a path, the bytes of a picture file, a PIL image, a NumPy array, a torch tensor, or a list"
)
# EXIF orientation -> Image.Transpose that puts the picture upright (1 is upright already).
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


@dataclass(frozen=True)
class Room:
    """Where a result goes: `pixels` (n, h, w, co), then `finish()` gives the caller's kind."""

    pixels: np.ndarray
    finish: Callable[[], Any]


@dataclass(frozen=True)
class Picture:
    """One caller's picture or batch: `pixels` (n, h, w, ci) uint8 | uint16 | float32, only read.

    `kind` is the family that the result goes back to, `axes` how the caller orders them, `dtype`
    what the result is made of.
    """

    pixels: np.ndarray
    kind: Literal["pil", "array", "torch", "torch.bfloat16"]
    axes: str  # "HW", "HWC", "CHW", "NHWC" or "NCHW"
    dtype: np.dtype[Any]
    owned: bool  # the pixels are ours already: the caller can no longer change them

    def room(self, co: int, out: Any = None) -> Room:
        """Room for the result of `co` channels: new, or `out` when the caller gives one.

        Errors: TypeError or ValueError when `out`, or this kind of picture, cannot hold the result.
        """
        n, h, w, _ = self.pixels.shape
        axes, dtype = self.axes, self.dtype
        if axes == "HW" and co > 1:
            axes = "CHW" if self.kind.startswith("torch") else "HWC"
        size = {"N": n, "H": h, "W": w, "C": co}
        shape = tuple(size[axis] for axis in axes)
        if out is not None:
            return _room_in(out, shape, axes)
        if self.kind == "pil" and co not in (1, 3):
            raise ValueError(
                f"image: this model writes {co} channels, which a PIL image cannot hold; "
                "pass an array instead"
            )
        if self.kind == "pil" and co == 3:
            dtype = np.dtype(np.uint8)  # PIL has no 16-bit colour
        result = np.empty(shape, _readable(dtype))

        def finish() -> Any:
            with np.errstate(over="ignore"):
                return _give(result.astype(dtype, copy=False), self.kind)

        return Room(_nhwc(result, axes), finish)

    def snapshot(self) -> Picture:
        """The same in memory of its own, for a caller who may refill his buffer before we read."""
        return self if self.owned else replace(self, pixels=self.pixels.copy(), owned=True)

    def reads(self, target: np.ndarray) -> bool:
        """Whether writing into `target` might change these pixels (the memory bounds meet)."""
        return bool(np.may_share_memory(self.pixels, target))


def take(image: Any, ci: int, layout: Layout | None = None) -> Picture:
    """Read one picture (or one 4-D batch) for a model of `ci` input channels.

    image: path or bytes of a PNG, JPEG, WebP, BMP, TIFF or PPM file; PIL image; array (H, W), (H,
    W, C) or (N, H, W, C); torch tensor (H, W), (C, H, W) or (N, C, H, W); uint8, uint16, float16,
    float32 or float64 each. RGB order. A fourth channel (alpha) is dropped; one channel serves a
    three-channel model as gray.
    layout: "HWC" or "CHW" for arrays and tensors; None takes the kind's own habit, or the other
        order if only that one fits.
    Errors: TypeError for a kind or dtype that is not a picture; ValueError for a shape, size, mode
    or file that cannot serve.
    """
    if layout not in (None, "HWC", "CHW"):
        raise ValueError(f"layout: expected 'HWC', 'CHW' or None, got {layout!r}")
    pil = sys.modules.get("PIL.Image")
    if isinstance(image, (str, os.PathLike, bytes, bytearray)) or _is_byte_string(image):
        return _from_pil(open_picture(image), ci, owned=True)
    if pil is not None and isinstance(image, pil.Image):
        return _from_pil(image, ci, owned=False)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(image, torch.Tensor):
        kind = "torch.bfloat16" if image.dtype == torch.bfloat16 else "torch"
        return _from_array(_read_torch(image), ci, layout, kind)
    return _from_array(_read_array(image), ci, layout, "array")


def open_picture(source: Any) -> Image.Image:
    """Open and decode a picture file (path, or its bytes) as an upright PIL image.

    Errors: OSError when the file cannot be read; ValueError for a URL, a pipe or device, another
    format, a damaged file, more than 64 megapixels.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        refuse_url("image", name)
        if not name:
            raise ValueError("image: expected the path of a picture file, got an empty string")
        if Path(name).is_dir():
            raise ValueError(
                f"image: expected a picture file, got the folder {name!r}; "
                "`pix2pix-fast translate` takes folders"
            )
    else:
        name = f"{len(source)} bytes"
    try:
        # Never by its path: Pillow then maps what is not compressed, and a file that is rewritten
        # changes the picture or kills the process; mapped TIFFs that are turned come out scrambled.
        with _stream(source) as stream, Image.open(stream, formats=FORMATS) as image:
            check_size(image.height, image.width)
            if image.format == "TIFF":
                _check_tiff(image)
            return upright(image)
    except UnidentifiedImageError:
        raise ValueError(
            f"image: {name}: no picture file that we open ({', '.join(FORMATS)})"
        ) from None
    except Image.DecompressionBombError:  # its text names Pillow's limit, which is not ours
        raise ValueError(
            f"image: {name}: expected at most {MAX_PIXELS} pixels, got far more; "
            "make it smaller or cut it"
        ) from None
    except MemoryError:
        raise
    except ValueError as error:
        raise ValueError(f"image: {name}: {str(error).removeprefix('image: ')}") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file system's word: no such file, no permission
        raise ValueError(f"image: {name}: damaged: {error}") from error


def _stream(source: Any) -> BinaryIO:
    """The bytes of a picture to read; ValueError for a path that is no regular file."""
    from .tensorfile import open_regular

    if not isinstance(source, (str, os.PathLike)):
        return BytesIO(bytes(source))  # BytesIO takes no memoryview with strides
    stream = open_regular(os.fsdecode(source))
    if stream is None:
        raise ValueError("expected a regular file, got a pipe or device; pass the bytes that it gives")
    return stream


def refuse_url(argument: str, name: str) -> None:
    """Raise ValueError if `name` is a URL: nothing in this package reaches for the network."""
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:/?/|data:", name):
        raise ValueError(
            f"{argument}: expected a local file, got the URL {name[:80]!r}; "
            "download it first, then pass its path"
        )


def check_size(h: int, w: int, what: str = "image") -> None:
    """Raise ValueError unless 1 <= h, 1 <= w and h * w stays within 64 megapixels."""
    if h < 1 or w < 1:
        raise ValueError(f"{what}: expected at least 1 x 1 pixel, got height {h}, width {w}")
    if h * w > MAX_PIXELS:
        raise ValueError(
            f"{what}: expected at most {MAX_PIXELS} pixels, got {h} x {w} = {h * w}; "
            "make it smaller or cut it"
        )


# Picture files and PIL


def _check_tiff(image: Any) -> None:
    """Raise ValueError for a TIFF that unpacks to far more than its picture, or in too many parts."""
    tags, (w, h) = image.tag_v2, image.size
    wide, high = -(-w // 16), -(-h // 16)  # in tiles of the least size that TIFF has
    tile = tags.get(322, 0), tags.get(323, 0)
    if all(isinstance(side, int) for side in tile):
        most = max(MAX_PIXELS // 16, wide * high * 256)
        if tile[0] * tile[1] > most:
            raise ValueError(
                f"expected tiles of at most {most} pixels for a picture of {h} x {w}, "
                f"got {tile[1]} x {tile[0]}; save it again"
            )
    most = (h + wide * high) * tags.get(277, 1)  # strips of one row, tiles of 16 x 16, each channel
    if len(image.tile) > most:
        raise ValueError(
            f"expected at most {most} strips or tiles for a picture of {h} x {w}, "
            f"got {len(image.tile)}; save it again"
        )


def upright(image: Image.Image) -> Image.Image:
    """The picture as it is meant to be looked at: EXIF orientation applied."""
    from PIL import Image

    # Load first: TIFF turns itself then and forgets the tag; PNG may carry EXIF behind its pixels.
    image.load()
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(Image.Transpose(turn))


def orientation(image: Image.Image) -> Any:
    """EXIF's, of a picture whose pixels may still be unread: 1 to 8, or whatever the file says."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF: the picture stays as it lies, as in every viewer
        return 1


def _from_pil(image: Image.Image, ci: int, owned: bool) -> Picture:
    if ci not in (1, 3):
        raise ValueError(
            f"image: this model reads {ci} channels, which a picture or PIL image cannot hold; "
            f"pass an array (H, W, {ci})"
        )
    check_size(image.height, image.width)
    if not owned:
        try:
            image = upright(image)
        except MemoryError:
            raise
        except Exception as error:  # it was opened but not decoded, and Pillow raises nearly anything
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(f"image: damaged: {error}") from error
    mode = image.mode
    if mode in ("I", "F", "LAB"):
        raise ValueError(
            f"image: PIL mode {mode!r} has no agreed range or colours; "
            "convert it to 'RGB', 'L' or 'I;16', or pass float pixels as an array with value_range="
        )
    if mode != "L" and not mode.startswith("I;16"):  # gray, 8 or 16 bits deep, is read as it is
        if mode in ("RGBa", "La"):
            image = image.convert(mode.replace("a", "A"))  # undo the premultiplied alpha
        elif mode not in ("1", "LA"):
            # Pillow warns of transparency that RGB drops, though dropping alpha is what is wanted
            seen = isinstance(image.info.get("transparency"), bytes)
            image = image.convert("RGBA" if seen else "RGB")
        image = image.convert("L" if ci == 1 else "RGB")
    return replace(_from_array(np.asarray(image), ci, "HWC", "pil"), owned=True)


# Arrays and tensors


def _is_byte_string(image: Any) -> bool:
    return isinstance(image, memoryview) and image.ndim == 1 and image.itemsize == 1


def _readable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What the core reads or writes for `dtype`: itself in our byte order, or float32."""
    return dtype.newbyteorder("=") if dtype.kind == "u" else np.dtype(np.float32)


def _give(result: np.ndarray, kind: str) -> Any:
    """A result array in the caller's axes and dtype -> the caller's kind."""
    if kind == "array":
        return result
    if kind == "pil":  # (H, W) uint8 -> "L", uint16 -> "I;16"; (H, W, 3) uint8 -> "RGB"
        from PIL import Image

        return Image.fromarray(
            result if result.ndim == 2 or result.shape[2] == 3 else result[:, :, 0]
        )
    torch = sys.modules["torch"]
    tensor = torch.from_dlpack(result)
    return tensor.to(torch.bfloat16) if kind == "torch.bfloat16" else tensor


def _read_torch(tensor: Any) -> np.ndarray:
    torch = sys.modules["torch"]
    if tensor.device.type != "cpu":
        raise ValueError(
            f"image: expected a tensor on the CPU, where this engine runs, "
            f"got one on {tensor.device}; pass image.cpu()"
        )
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise TypeError(
            f"image: expected a dense tensor, got layout {tensor.layout}; pass image.to_dense()"
        )
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # NumPy has no such number
        tensor = tensor.to(torch.float32)
    if str(tensor.dtype).removeprefix("torch.") not in _DTYPES:
        raise TypeError(_dtype_message(tensor.dtype))
    if tensor.is_neg():  # its memory is without the sign
        raise TypeError(
            "image: expected plain numbers, got a view that negates them; pass image.resolve_neg()"
        )
    array: np.ndarray = tensor.numpy()  # through DLPack NumPy before 2.1 could not write
    return array


def _read_array(image: Any) -> np.ndarray:
    if isinstance(image, np.ndarray):
        if type(image).__name__ == "MaskedArray":
            raise TypeError(
                "image: expected plain pixels, got a masked array; fill it first: image.filled(0)"
            )
        return np.asarray(image)
    if hasattr(image, "__dlpack__") and hasattr(image, "__dlpack_device__"):
        device = image.__dlpack_device__()
        if int(device[0]) != 1:  # kDLCPU
            raise ValueError(
                f"image: expected memory of the CPU, where this engine runs, "
                f"got DLPack device {tuple(map(int, device))}; copy it to the host first"
            )
        try:
            return np.from_dlpack(image)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(
                f"image: this {type(image).__name__} cannot be read through DLPack: {error}"
            ) from error
    doors = ("__array_interface__", "__array__")
    if _has_buffer(image) or any(hasattr(image, door) for door in doors):
        try:
            return np.asarray(image)
        except (TypeError, ValueError, BufferError, NotImplementedError) as error:
            raise TypeError(
                f"image: this {type(image).__name__} cannot be read as an array: {error}"
            ) from error
    advice = ""
    if hasattr(image, "read"):
        advice = "; pass what it holds: image.read()"
    elif hasattr(image, "__iter__"):
        advice = "; stream() takes iterables"
    raise TypeError(f"image: expected {_KINDS}, got {type(image).__name__}{advice}")


def _has_buffer(image: Any) -> bool:
    try:
        memoryview(image)
    except TypeError:
        return False
    return True


def _dtype_message(dtype: Any) -> str:
    cure = {
        "bool": "; multiply the mask: image.astype('uint8') * 255",
        "torch.bool": "; multiply the mask: image.to(torch.uint8) * 255",
    }.get(str(dtype), "; convert it, so that its range is known")
    return f"image: expected {', '.join(_DTYPES)}, got {dtype}{cure}"


def _from_array(array: np.ndarray, ci: int, layout: Layout | None, kind: Any) -> Picture:
    dtype = array.dtype
    if dtype.newbyteorder("=").name not in _DTYPES:
        raise TypeError(_dtype_message(dtype))
    axes = axes_of(array.shape, ci, layout, "CHW" if kind.startswith("torch") else "HWC")
    pixels = _nhwc(array, axes)
    n, h, w, c = pixels.shape
    check_size(h, w)
    if c > ci:
        pixels = pixels[..., :ci]  # alpha is dropped
    elif c < ci:
        pixels = np.broadcast_to(pixels, (n, h, w, ci))  # gray serves as R, G and B, uncopied
    readable = _readable(dtype)
    if dtype == readable and pixels.flags.aligned:
        return Picture(pixels, kind, axes, dtype, owned=False)
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, and stays in its picture
        return Picture(pixels.astype(readable), kind, axes, dtype, owned=True)


def axes_of(shape: tuple[int, ...], ci: int, layout: Layout | None, habit: str) -> str:
    """Which axis is which: as asked for, else the kind's habit, else the only other reading."""
    wanted = layout or habit
    if len(shape) == 2:
        if ci in (1, 3):
            return "HW"
        raise ValueError(f"image: expected {ci} channels in axes {wanted}, got shape {shape}")
    if len(shape) not in (3, 4):
        raise ValueError(f"image: expected axes HW, {wanted} or N{wanted}, got shape {shape}")
    batch = "N" if len(shape) == 4 else ""
    channels = shape[-1] if wanted == "HWC" else shape[-3]
    if channels == ci or (ci in (1, 3) and channels in (1, ci + 1)):
        return batch + wanted
    other = "CHW" if wanted == "HWC" else "HWC"
    if layout is None and ci == (shape[-1] if other == "HWC" else shape[-3]):
        return batch + other
    can = {
        1: "1 channel (or 2, gray and alpha)",
        3: "3 channels (or 1, gray; or 4, RGB and alpha)",
    }.get(ci, f"{ci} channels")
    cure = "; convert the colours to gray first" if ci == 1 and channels in (3, 4) else ""
    raise ValueError(f"image: expected {can} in axes {batch}{wanted}, got shape {shape}{cure}")


def _nhwc(array: np.ndarray, axes: str) -> np.ndarray:
    """An (n, h, w, c) view of an array whose axes are named by `axes`."""
    if axes == "HW":
        return array[None, :, :, None]
    batch = array if len(axes) == 4 else array[None]
    return batch if axes.endswith("HWC") else batch.transpose(0, 2, 3, 1)


def _room_in(out: Any, shape: tuple[int, ...], axes: str) -> Room:
    """The room that the caller brought; its dtype decides the range of the result."""
    torch = sys.modules.get("torch")
    is_tensor = torch is not None and isinstance(out, torch.Tensor)
    if not (
        is_tensor or isinstance(out, np.ndarray) or hasattr(out, "__dlpack__") or _has_buffer(out)
    ):
        raise TypeError(f"out: expected an array or tensor to write into, got {type(out).__name__}")
    if is_tensor and out.dtype == sys.modules["torch"].bfloat16:
        raise TypeError(f"out: expected {', '.join(_DTYPES)}, got {out.dtype}")
    try:
        array = _read_torch(out) if is_tensor else _read_array(out)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("image", "out", 1)) from None
    dtype = array.dtype
    if dtype.newbyteorder("=").name not in _DTYPES:
        raise TypeError(f"out: expected {', '.join(_DTYPES)}, got {dtype}")
    if array.shape != shape:
        raise ValueError(f"out: expected shape {shape}, got {array.shape}")
    if not array.flags.writeable:
        raise ValueError("out: expected memory that can be written, got a read-only array")
    strides = zip(array.strides, shape, strict=True)
    if array.size and any(stride == 0 and length > 1 for stride, length in strides):
        raise ValueError("out: expected a place of its own for every pixel, got a broadcast array")
    readable = _readable(dtype)
    if dtype == readable and array.flags.aligned:
        return Room(_nhwc(array, axes), lambda: out)
    result = np.empty(shape, readable)

    def finish() -> Any:
        with np.errstate(over="ignore"):  # float32 beyond float16 becomes inf, as in a new result
            np.copyto(array, result, casting="same_kind")
        return out

    return Room(_nhwc(result, axes), finish)
