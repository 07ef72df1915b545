"""Engines of TensorRT at work: contexts, streams, graphs, buffers, and pixels to and from them.

Through the driver's own functions (tensorrt.Driver), so that no further package is needed. No GPU was
at hand: nothing in this file has ever run, and "auto" does not choose this back-end.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BackendUnavailable, ForkError
from .tensorrt import Driver, Form, Profile, cached, fingerprint, quiet_logger

if TYPE_CHECKING:
    from .backends import Options
    from .model import Model

log = logging.getLogger("pix2pix_fast")


class Executable:
    """A network ready to run: one engine per kind of pixels, built when such pictures first come,
    and one execution context, stream and graph per call in flight."""

    def __init__(self, trt: Any, cuda: Driver, model: Model, options: Options) -> None:
        if options.dropout is not None:
            raise BackendUnavailable(
                f"dropout={options.dropout}: TensorRT has no seeded dropout like the cpu "
                "back-end's; use backend='cpu', or dropout=None"
            )
        if options.tune or options.isa:
            raise BackendUnavailable("tune and isa choose kernels of the cpu back-end alone")
        precision = "f32" if options.precision == "auto" else options.precision
        self.form = Form(precision, norm=options.norm).checked()
        self.trt, self.cuda, self.model = trt, cuda, model
        self.gpu, self.context, self.pid = cuda.gpu(), cuda.retain(), os.getpid()
        self.digest = fingerprint(model, options.norm)
        self.multiple = model.architecture.multiple
        self.profile = Profile.around(options.size, self.multiple)
        self.runtime = trt.Runtime(quiet_logger(trt, deque(maxlen=4)))
        self.engines: dict[tuple[str, Profile], Any] = {}
        self.idle: dict[tuple[str, Profile], deque[_Slot]] = {}
        self.calls, self.closed = 0, False
        self.engine("uint8", self.profile)  # built now, not with the first picture

    def engine(self, pixels: str, profile: Profile) -> Any:
        known = self.engines.get((pixels, profile))
        if known is not None:
            return known
        form = self.form._replace(pixels=pixels)
        self.cuda("cuCtxSetCurrent", self.context)
        plan, path = cached(self.trt, self.gpu, self.model, form, profile, digest=self.digest)
        engine = self.runtime.deserialize_cuda_engine(plan)
        if engine is None:  # sound bytes that this library will not have, for reasons of its own
            log.warning("%s is refused by %s; building again", path, self.trt.__name__)
            path.unlink(missing_ok=True)
            plan, path = cached(self.trt, self.gpu, self.model, form, profile, digest=self.digest)
            engine = self.runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendUnavailable(
                f"{self.trt.__name__} {self.trt.__version__} built an engine for {self.gpu.name} "
                "and does not load it"
            )
        self.engines[pixels, profile] = engine
        return engine

    def run(
        self,
        src: np.ndarray,
        dst: np.ndarray,
        *,
        value_range: tuple[float, float] = (0.0, 1.0),
        frame: int = 0,
    ) -> None:
        """(n, h, w, ci) -> (n, h, w, co); uint8, uint16 or float32, any strides."""
        if self.closed:
            raise ValueError("this Executable is closed")
        if os.getpid() != self.pid:
            raise ForkError("a GPU cannot be used in a forked child; open an Engine there")
        h, w = src.shape[1:3]
        rows, columns = (reflect_indices(length, self.multiple) for length in (h, w))
        if not self.profile.holds(len(rows), len(columns)):
            self.profile = Profile.around((h, w), self.multiple)
        profile = self.profile
        pixels = "uint8" if src.dtype == dst.dtype == np.uint8 else "float"
        slot = self._take(pixels, profile)
        for start in range(0, len(src), profile.batch):
            part = src[start : start + profile.batch][:, rows][:, :, columns]
            if pixels == "uint8":
                dst[start : start + profile.batch] = slot.run(part)[:, :h, :w]
                continue
            signed = to_signed(part, value_range).transpose(0, 3, 1, 2)
            result = slot.run(signed).transpose(0, 2, 3, 1)[:, :h, :w]
            dst[start : start + profile.batch] = from_signed(result, dst.dtype, value_range)
        self.calls += 1
        self.idle[pixels, profile].append(slot)  # not after an error: its stream may hang

    def _take(self, pixels: str, profile: Profile) -> _Slot:
        idle = self.idle.setdefault((pixels, profile), deque())
        self.cuda("cuCtxSetCurrent", self.context)  # of this thread
        try:
            return idle.pop()
        except IndexError:
            return _Slot(self.cuda, self.engine(pixels, profile), self.model.architecture, pixels)

    def stats(self) -> dict[str, Any]:
        if self.closed:
            raise ValueError("this Executable is closed")
        slots = [slot for idle in tuple(self.idle.values()) for slot in tuple(idle)]
        return {
            "calls": self.calls,
            "workspace_bytes": sum(slot.bytes for slot in slots),
            "isa": f"sm_{self.gpu.capability.replace('.', '')}",
            "threads": 1,
            "precision": self.form.precision,
        }

    def close(self) -> None:
        if self.closed or os.getpid() != self.pid:
            return
        self.closed = True
        self.cuda("cuCtxSetCurrent", self.context)
        for idle in self.idle.values():
            while idle:
                idle.pop().close()
        self.engines.clear()
        self.runtime = None
        self.cuda("cuDevicePrimaryCtxRelease_v2", self.cuda.device)


class _Slot:
    """An execution context with a stream of its own, buffers and the graph of the last shape.

    The first call of a shape runs plainly (the library allocates and chooses then), the second is
    captured, later ones launch the graph. A library that refuses capture goes on without it.
    """

    def __init__(self, cuda: Driver, engine: Any, architecture: Any, pixels: str) -> None:
        self.cuda, self.pixels = cuda, pixels
        self.channels = (architecture.in_channels, architecture.out_channels)
        self.context = engine.create_execution_context()
        if self.context is None:
            raise BackendUnavailable("TensorRT has no execution context: too little GPU memory?")
        self.stream = cuda.new("cuStreamCreate", 1)  # 1: does not wait for the default stream
        self.host: list[Any] = []  # page-locked: in, out
        self.device: list[Any] = []
        self.room = [0, 0]  # bytes of each
        self.shape: tuple[int, ...] = ()
        self.graph: Any = None
        self.capture = True

    @property
    def bytes(self) -> int:
        return sum(self.room)

    def run(self, image: np.ndarray) -> np.ndarray:
        """uint8 (n, h, w, ci) or float32 (n, ci, h, w) -> the same with co; a view that lives until
        the next call."""
        fresh = image.shape != self.shape
        if fresh:
            self.prepare(image)
        self.view(0, image.shape)[...] = image
        if fresh:
            self.launch()
        elif self.graph is None and self.capture:
            self.record()
        if self.graph is not None:
            self.cuda("cuGraphLaunch", self.graph, self.stream)
        elif not fresh:
            self.launch()
        self.cuda("cuStreamSynchronize", self.stream)
        return self.view(1, self.output)

    def prepare(self, image: np.ndarray) -> None:
        self.drop_graph()
        self.shape = ()  # in case of an error below
        axis = 3 if self.pixels == "uint8" else 1
        self.output = (*image.shape[:axis], self.channels[1], *image.shape[axis + 1 :])
        size = 1 if self.pixels == "uint8" else 4
        sizes = [math.prod(shape) * size for shape in (image.shape, self.output)]
        if any(need > has for need, has in zip(sizes, self.room, strict=True)):
            self.free()
            self.host = [self.cuda.new("cuMemAllocHost_v2", ctypes.c_size_t(n)) for n in sizes]
            self.device = [self.cuda.new("cuMemAlloc_v2", ctypes.c_size_t(n)) for n in sizes]
            self.room = sizes
        self.sizes = [ctypes.c_size_t(n) for n in sizes]
        shape = tuple(image.shape)
        if not self.context.set_input_shape("image", shape):
            raise RuntimeError(f"TensorRT refuses the shape {shape}")
        for name, memory in zip(("image", "translation"), self.device, strict=True):
            if not self.context.set_tensor_address(name, memory.value):
                raise RuntimeError(f"TensorRT refuses the address of {name!r}")
        self.shape = shape

    def view(self, which: int, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(np.uint8 if self.pixels == "uint8" else np.float32)
        size = math.prod(shape) * dtype.itemsize
        raw = (ctypes.c_uint8 * size).from_address(self.host[which].value)
        pixels: np.ndarray = np.ctypeslib.as_array(raw).view(dtype).reshape(shape)
        return pixels

    def launch(self) -> None:
        """Upload, network, download, in order on the stream."""
        self.cuda("cuMemcpyHtoDAsync_v2", self.device[0], self.host[0], self.sizes[0], self.stream)
        if not self.context.execute_async_v3(self.stream.value):
            raise RuntimeError("TensorRT could not run the network")
        self.cuda("cuMemcpyDtoHAsync_v2", self.host[1], self.device[1], self.sizes[1], self.stream)

    def record(self) -> None:
        """Capture `launch` as a graph; on any refusal never try again."""
        graph = ctypes.c_void_p()
        try:
            self.cuda("cuStreamBeginCapture_v2", self.stream, 1)  # 1: this thread's calls alone
            try:
                self.launch()
            finally:
                self.cuda("cuStreamEndCapture", self.stream, ctypes.byref(graph))
            self.graph = self.cuda.new("cuGraphInstantiateWithFlags", graph, ctypes.c_ulonglong(0))
        except RuntimeError as error:
            log.info("TensorRT runs without a CUDA graph: %s", error)
            self.capture, self.graph = False, None
        finally:
            if graph.value:
                self.cuda("cuGraphDestroy", graph)

    def drop_graph(self) -> None:
        if self.graph is not None:
            self.cuda("cuGraphExecDestroy", self.graph)
        self.graph = None

    def free(self) -> None:
        for memory in self.host:
            self.cuda("cuMemFreeHost", memory)
        for memory in self.device:
            self.cuda("cuMemFree_v2", memory)
        self.host, self.device, self.room = [], [], [0, 0]

    def close(self) -> None:
        self.drop_graph()
        self.context = None
        self.free()
        self.cuda("cuStreamDestroy_v2", self.stream)


# Pixels: ../csrc/image.h says the rules


def reflect_indices(size: int, multiple: int) -> np.ndarray:
    """Of the pixels that fill an axis up to a multiple: 0, 1, .., size-1, size-2, .., 0, 1, .."""
    i = np.arange(-(-size // multiple) * multiple)
    period = max(2 * (size - 1), 1)
    forth = i % period
    index: np.ndarray = np.minimum(forth, period - forth)
    return index


def to_signed(pixels: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """To float32 in [-1, 1]."""
    if pixels.dtype.kind == "u":
        half = np.float32(np.iinfo(pixels.dtype).max / 2)
        signed: np.ndarray = pixels.astype(np.float32) / half - np.float32(1)
        return signed
    low, high = value_range
    scaled: np.ndarray = (pixels - np.float32(low)) * np.float32(2 / (high - low)) - np.float32(1)
    return scaled


def from_signed(
    values: np.ndarray, dtype: np.dtype[Any], value_range: tuple[float, float]
) -> np.ndarray:
    """The reverse, clamped; a NaN becomes the bottom of the range."""
    unit = np.fmin(np.fmax(values, np.float32(-1)), np.float32(1)) + np.float32(1)
    if dtype.kind == "u":
        levels: np.ndarray = np.rint(unit * np.float32(np.iinfo(dtype).max / 2)).astype(dtype)
        return levels
    low, high = value_range
    result: np.ndarray = unit * np.float32((high - low) / 2) + np.float32(low)
    return result
