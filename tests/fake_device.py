"""Memory and streams of the fake GPU (cuda_host/cudart.cpp) as a caller of the engine holds them."""

from __future__ import annotations

import ctypes
import types
from typing import Any

import numpy as np

from pix2pix_fast import _core

LIBRARY = ctypes.CDLL(_core.__file__)
for _name in ("fake_malloc", "fake_stream"):
    getattr(LIBRARY, _name).restype = ctypes.c_void_p
for _name in ("fake_pending", "fake_device_bytes"):
    getattr(LIBRARY, _name).restype = ctypes.c_long


def counts() -> dict[str, int]:
    """Since the start: launches of kernels, living graphs, launches of graphs, changed nodes,
    programmatic edges, launches in clusters, waits of the host for a stream or an event."""
    names = ("launches", "graphs", "graph_launches", "updates", "edges", "clusters", "waits")
    words = (ctypes.c_long * len(names))()
    LIBRARY.fake_counts(words)
    return dict(zip(names, words, strict=True))


def device_bytes() -> int:
    return int(LIBRARY.fake_device_bytes())


class Stream:
    def __init__(self) -> None:
        self.handle = int(LIBRARY.fake_stream())

    def finish(self) -> None:
        LIBRARY.fake_finish(ctypes.c_void_p(self.handle))

    def pending(self) -> int:
        return int(LIBRARY.fake_pending(ctypes.c_void_p(self.handle)))


class Namespace:
    """What `__array_namespace__` gives; new arrays are on the prototype's stream."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return Array(np.empty(shape, dtype), self.stream)


class Array:
    """Device memory with `__cuda_array_interface__`, in any strides of `values`' axes."""

    def __init__(self, values: np.ndarray, stream: Stream | None = None) -> None:
        self.stream, self.shape, self.dtype = stream, values.shape, values.dtype
        order = sorted(range(values.ndim), key=lambda axis: -abs(values.strides[axis]))
        self._order = order  # the memory keeps the order of axes that `values` has
        packed = np.ascontiguousarray(values.transpose(order))
        self._bytes = packed.nbytes
        self.pointer = int(LIBRARY.fake_malloc(ctypes.c_size_t(packed.nbytes)))
        LIBRARY.fake_write(
            ctypes.c_void_p(self.pointer), packed.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_size_t(packed.nbytes),
        )  # fmt: skip
        self._packed_shape = packed.shape
        strides = [0] * values.ndim
        for place, axis in enumerate(order):
            strides[axis] = packed.strides[place]
        self.strides = tuple(strides)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "version": 3, "shape": self.shape, "typestr": self.dtype.str,
            "data": (self.pointer, False), "strides": self.strides,
        }  # fmt: skip
        if self.stream:
            found["stream"] = self.stream.handle
        return found

    def __array_namespace__(self) -> Namespace:
        return Namespace(self.stream)

    def get(self) -> np.ndarray:
        """The values now, whatever is still pending."""
        packed = np.empty(self._packed_shape, self.dtype)
        LIBRARY.fake_read(
            packed.ctypes.data_as(ctypes.c_void_p), ctypes.c_void_p(self.pointer),
            ctypes.c_size_t(self._bytes),
        )  # fmt: skip
        return packed.transpose(np.argsort(self._order))


def fake_torch(stream: Stream) -> Any:
    """A module `torch` with no more of a CUDA tensor than the engine asks for; all are on `stream`."""
    torch = types.ModuleType("torch")

    class Tensor:
        def __init__(self, array: Array) -> None:
            self.array, self.shape, self.layout = array, array.shape, "strided"
            self.dtype = f"torch.{array.dtype}"
            self.device = types.SimpleNamespace(type="cuda", index=0)

        def element_size(self) -> int:
            return int(self.array.dtype.itemsize)

        def data_ptr(self) -> int:
            return self.array.pointer

        def stride(self) -> tuple[int, ...]:
            return tuple(stride // self.element_size() for stride in self.array.strides)

    def empty(shape: tuple[int, ...], *, dtype: str, device: Any) -> Tensor:
        return Tensor(Array(np.empty(shape, dtype.removeprefix("torch."))))

    current = types.SimpleNamespace(cuda_stream=stream.handle)
    cuda = types.SimpleNamespace(current_stream=lambda device: current)
    for name, value in {"Tensor": Tensor, "empty": empty, "cuda": cuda, "strided": "strided"}.items():
        setattr(torch, name, value)
    return torch


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device", ctypes.c_int32 * 2), ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    ]  # fmt: skip


class DLPackArray:
    """The same memory through DLPack alone; remembers the stream that it was asked for."""

    def __init__(self, array: Array) -> None:
        self.array, self.asked = array, []  # type: ignore[var-annotated]

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, *, stream: int | None = None) -> object:
        self.asked.append(stream)
        a = self.array
        self._shape = (ctypes.c_int64 * len(a.shape))(*a.shape)
        self._strides = (ctypes.c_int64 * len(a.shape))(
            *(stride // a.dtype.itemsize for stride in a.strides)
        )
        self._tensor = _Tensor(
            a.pointer, (ctypes.c_int32 * 2)(2, 0), len(a.shape), 1 if a.dtype.kind == "u" else 2,
            8 * a.dtype.itemsize, 1, self._shape, self._strides, 0,
        )  # fmt: skip
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        self._name = b"dltensor"
        return new(ctypes.addressof(self._tensor), self._name, None)
