"""The border for pictures that lie in the memory of a GPU: in and out without a copy.

A CUDA engine reads and writes uint8 and float32 in any strides where they lie. A torch tensor is
served on torch's current stream, an object with `__cuda_array_interface__` on the stream that it
names; then the call returns before the result is there, as every call on a stream does. What names
no stream (DLPack, or an interface without one) is served on a stream of ours, and the call waits.
Next: engine.py treats a DevicePicture as it does an images.Picture.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from . import images

_TYPES = {"|u1": "uint8", "<u1": "uint8", "<f4": "float32"}
_KDL_CUDA = 2


@dataclass(frozen=True)
class View:
    """Device memory as (n, h, w, c); strides in bytes. `keep` owns it."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str  # "uint8" or "float32"
    stream: int | None  # None: a stream of the engine's own, and the call waits
    keep: Any

    def __len__(self) -> int:
        return self.shape[0]

    def bounds(self) -> tuple[int, int]:
        """The first byte and the one after the last."""
        reach = [(n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)]
        item = 1 if self.dtype == "uint8" else 4
        first = self.pointer + sum(r for r in reach if r < 0)
        return first, self.pointer + sum(r for r in reach if r > 0) + item

    def described(self) -> dict[str, Any]:
        """What _core.Engine.run_on takes."""
        return {
            "pointer": self.pointer,
            "shape": self.shape,
            "strides": self.strides,
            "dtype": self.dtype,
        }


class Room(NamedTuple):
    pixels: View
    finish: Callable[[], Any]


@dataclass(frozen=True)
class DevicePicture:
    """A caller's picture or batch on the device; images.Picture's counterpart."""

    pixels: View
    axes: str
    image: Any  # as the caller gave it
    own_stream: int  # the engine's, for DLPack

    def room(self, co: int, out: Any = None) -> Room:
        """Room for the result: `out`, or new memory of the image's kind.

        Errors: TypeError where the kind cannot be made new (pass out=), ValueError for an `out`
        that does not fit.
        """
        axes = self.axes
        if axes == "HW" and co > 1:
            axes = "CHW" if _is_torch(self.image) else "HWC"
        n, h, w, _ = self.pixels.shape
        size = {"N": n, "H": h, "W": w, "C": co}
        shape = tuple(size[axis] for axis in axes)
        if out is None:
            out = _new(self.image, shape)
        elif not on_device(out):
            raise TypeError(
                f"out: expected device memory, as the image is, got {type(out).__name__}"
            )
        view = _read(out, "out", self.own_stream)
        if view.shape != shape:
            raise ValueError(f"out: expected shape {shape}, got {view.shape}")
        if any(s == 0 and length > 1 for s, length in zip(view.strides, shape, strict=True)):
            raise ValueError(
                "out: expected a place of its own for every pixel, got a broadcast array"
            )
        return Room(_nhwc(view, axes), lambda: out)

    def reads(self, target: View) -> bool:
        """Never in the way: of one picture, and of a batch in place, the last kernel alone writes,
        after all have read. A large batch goes in parts, so other overlaps are refused.

        Errors: ValueError.
        """
        mine, theirs = self.pixels, target
        if len(mine) > 1 and (mine.pointer, mine.strides) != (theirs.pointer, theirs.strides):
            (first, end), (low, high) = mine.bounds(), theirs.bounds()
            if first < high and low < end:
                raise ValueError(
                    "out: overlaps the batch without being the same memory in the same strides"
                )
        return False

    def snapshot(self) -> DevicePicture:
        raise TypeError(
            "frames: stream() reads ahead and takes pictures of the CPU; "
            "translate() takes those on the GPU"
        )


def on_device(image: Any) -> bool:
    """Whether `image` says that it lies in a GPU's memory."""
    if _is_torch(image):
        return str(image.device.type) == "cuda"
    if hasattr(image, "__cuda_array_interface__"):
        return True
    if not hasattr(image, "__dlpack_device__"):
        return False
    return int(image.__dlpack_device__()[0]) == _KDL_CUDA


def take(image: Any, ci: int, layout: images.Layout | None, own_stream: int) -> DevicePicture:
    """As images.take, of what on_device() accepts. own_stream: the engine's, for DLPack."""
    if layout not in (None, "HWC", "CHW"):
        raise ValueError(f"layout: expected 'HWC', 'CHW' or None, got {layout!r}")
    view = _read(image, "image", own_stream)
    axes = images.axes_of(view.shape, ci, layout, "CHW" if _is_torch(image) else "HWC")
    pixels = _nhwc(view, axes)
    n, h, w, c = pixels.shape
    images.check_size(h, w)
    if c > ci:
        pixels = replace(pixels, shape=(n, h, w, ci))  # alpha is dropped
    elif c < ci:  # gray serves as R, G and B
        pixels = replace(pixels, shape=(n, h, w, ci), strides=(*pixels.strides[:3], 0))
    return DevicePicture(pixels, axes, image, own_stream)


def _is_torch(image: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)


def _new(image: Any, shape: tuple[int, ...]) -> Any:
    if _is_torch(image):
        return sys.modules["torch"].empty(shape, dtype=image.dtype, device=image.device)
    if hasattr(image, "__array_namespace__"):
        return image.__array_namespace__().empty(shape, dtype=image.dtype)
    raise TypeError(
        f"out: a {type(image).__name__} cannot be made new from here; pass device memory of shape "
        f"{shape} as out="
    )


def _read(image: Any, name: str, own_stream: int) -> View:
    """The memory as it lies, in the caller's axes."""
    if _is_torch(image):
        torch = sys.modules["torch"]
        if image.layout != torch.strided:
            raise TypeError(f"{name}: expected a dense tensor, got layout {image.layout}")
        size = image.element_size()
        return _checked(
            name,
            image.data_ptr(),
            tuple(image.shape),
            tuple(stride * size for stride in image.stride()),
            str(image.dtype).removeprefix("torch."),
            torch.cuda.current_stream(image.device).cuda_stream,
            image,
        )
    if hasattr(image, "__cuda_array_interface__"):
        found = image.__cuda_array_interface__
        if found.get("mask") is not None:
            raise TypeError(f"{name}: expected plain pixels, got a masked array")
        pointer, read_only = found["data"]
        if name == "out" and read_only:
            raise ValueError("out: expected memory that can be written, got a read-only array")
        shape = tuple(found["shape"])
        dtype = _TYPES.get(found["typestr"], found["typestr"])
        strides = found.get("strides")
        if strides is None:
            size = {"uint8": 1, "float32": 4}.get(dtype, 1)
            strides = [size * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        stream = found.get("stream")
        return _checked(name, pointer, shape, tuple(strides), dtype, stream, image)
    capsule = image.__dlpack__(stream=own_stream)
    from . import _core

    found = _core.dlpack(capsule)
    if int(found["device"][0]) != _KDL_CUDA:
        raise ValueError(f"{name}: expected CUDA memory, got DLPack device {found['device']}")
    return _checked(
        name, found["pointer"], found["shape"], found["strides"], found["dtype"], None,
        (image, capsule),
    )  # fmt: skip


def _checked(
    name: str, pointer: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str,
    stream: int | None, keep: Any,
) -> View:  # fmt: skip
    if dtype not in ("uint8", "float32"):
        raise TypeError(
            f"{name}: on a GPU expected uint8 or float32, got {dtype}; convert it, so that its "
            "range is known"
        )
    return View(pointer or 0, shape, strides, dtype, stream, keep)


def _nhwc(view: View, axes: str) -> View:
    """The same memory with its axes in the order (n, h, w, c); an axis that is missing is 1."""

    def ordered(values: tuple[int, ...], otherwise: int) -> tuple[int, ...]:
        return tuple(values[axes.index(axis)] if axis in axes else otherwise for axis in "NHWC")

    return replace(view, shape=ordered(view.shape, 1), strides=ordered(view.strides, 0))
