"""Engines of TensorRT at work: contexts, streams, graphs, buffers, and pixels to and from them.

Through the driver's own functions (tensorrt.Driver), so that no further package is needed. No GPU was
at hand: this has run on the memory, streams and networks of tests/fake_driver.py and fake_tensorrt.py
alone, and "auto" does not choose this back-end.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BackendUnavailable, DeviceError, ForkError
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
        self.multiple, self.closed = model.architecture.multiple, False
        self.engines: dict[tuple[str, Profile], Any] = {}
        self.idle: dict[tuple[str, Profile], deque[_Slot]] = {}
        self.slots: deque[_Slot] = deque()  # all, those at work included
        self.calls = 0  # of slots that are gone
        self.profiles: tuple[Profile, ...] = (Profile.around(options.size, self.multiple),)
        self.complaints = deque[str](maxlen=4)
        try:
            self.digest = fingerprint(model, options.norm)
            try:
                with cuda.current(self.context):
                    self.runtime = trt.Runtime(quiet_logger(trt, self.complaints))
            except TypeError as error:  # pybind11's way to say that the library gave none
                why = "; ".join(self.complaints) or error
                raise BackendUnavailable(f"{trt.__name__} has no runtime: {why}") from error
            self.warm_up(options.size)
        except BaseException:
            self.close()
            raise

    def warm_up(self, size: tuple[int, int]) -> None:
        """Two calls: one on which the library allocates and chooses, one that becomes the graph."""
        a = self.model.architecture
        src, dst = (np.zeros((1, *size, c), np.uint8) for c in (a.in_channels, a.out_channels))
        for _ in range(2):
            self.run(src, dst)

    def engine(self, pixels: str, profile: Profile) -> Any:
        known = self.engines.get((pixels, profile))
        if known is not None:
            return known
        form = self.form._replace(pixels=pixels)

        def load() -> tuple[Any, Path | None]:
            plan, path = cached(
                self.trt, self.gpu, self.model, form, profile, digest=self.digest
            )
            return self.runtime.deserialize_cuda_engine(plan), path

        engine, path = load()
        if engine is None and path:  # sound bytes that this library will not have, for reasons of its own
            log.warning("%s is refused by %s; building again", path, self.trt.__name__)
            path.unlink(missing_ok=True)
            engine, path = load()
        if engine is None:
            raise BackendUnavailable(
                f"{self.trt.__name__} {self.trt.__version__} built an engine for {self.gpu.name} "
                f"and does not load it: {'; '.join(self.complaints) or 'it does not say why'}"
            )
        return self.engines.setdefault((pixels, profile), engine)  # another thread's, if first

    def profile(self, h: int, w: int) -> Profile:
        """One that takes pictures of h x w, the first of those that are there."""
        padded = [-(-length // self.multiple) * self.multiple for length in (h, w)]
        for profile in self.profiles:
            if profile.holds(*padded):
                return profile
        profile = Profile.around((h, w), self.multiple)
        self.profiles = (*self.profiles, profile)
        return profile

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
        profile = self.profile(h, w)
        pixels = "uint8" if src.dtype == dst.dtype == np.uint8 else "float"
        with self.cuda.current(self.context):
            self._run(src, dst, value_range, pixels, profile)

    def _run(
        self,
        src: np.ndarray,
        dst: np.ndarray,
        value_range: tuple[float, float],
        pixels: str,
        profile: Profile,
    ) -> None:
        h, w = src.shape[1:3]
        slot = self._take(pixels, profile)
        try:
            for start in range(0, len(src), profile.batch):
                part = reflect(src[start : start + profile.batch], self.multiple)
                if pixels == "uint8":
                    dst[start : start + profile.batch] = slot.run(part)[:, :h, :w]
                    continue
                signed = to_signed(part, value_range).transpose(0, 3, 1, 2)
                result = slot.run(signed).transpose(0, 2, 3, 1)[:, :h, :w]
                dst[start : start + profile.batch] = from_signed(result, dst.dtype, value_range)
            slot.calls += 1
        except BaseException:  # its stream may hang, or its graph be half made
            self.calls += slot.calls
            self.slots.remove(slot)
            slot.close()
            raise
        self.idle[pixels, profile].append(slot)

    def _take(self, pixels: str, profile: Profile) -> _Slot:
        try:
            return self.idle.setdefault((pixels, profile), deque()).pop()
        except IndexError:
            engine = self.engine(pixels, profile)
            slot = _Slot(self.cuda, engine, self.model.architecture, pixels)
            self.slots.append(slot)
            return slot

    def stats(self) -> dict[str, Any]:
        if self.closed:
            raise ValueError("this Executable is closed")
        slots = tuple(self.slots)
        return {
            "calls": self.calls + sum(slot.calls for slot in slots),
            "workspace_bytes": sum(slot.bytes for slot in slots),
            "isa": f"sm_{self.gpu.capability.replace('.', '')}",
            "threads": 1,
            "precision": self.form.precision,
        }

    def close(self) -> None:
        if self.closed or os.getpid() != self.pid:
            return
        self.closed = True
        with ExitStack() as stack:
            with suppress(DeviceError):  # a broken context gives everything back by itself
                stack.enter_context(self.cuda.current(self.context))
            self.idle.clear()
            while self.slots:
                self.slots.pop().close()
            self.engines.clear()
            self.runtime = None
        with suppress(DeviceError):
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
        self.workspace = int(engine.device_memory_size_v2)  # bytes that the library keeps for it
        self.stream = cuda.new("cuStreamCreate", 1)  # 1: does not wait for the default stream
        self.calls = 0
        self.host: list[Any] = []  # page-locked: in, out
        self.device: list[Any] = []
        self.room = [0, 0]  # bytes of each
        self.shape: tuple[int, ...] = ()
        self.graph: Any = None
        self.capture = True

    @property
    def bytes(self) -> int:
        """On the GPU."""
        return self.workspace + sum(self.room)

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
            for n in sizes:  # one by one, so that `free` knows of all that came
                self.host.append(self.cuda.new("cuMemAllocHost_v2", ctypes.c_size_t(n)))
                self.device.append(self.cuda.new("cuMemAlloc_v2", ctypes.c_size_t(n)))
            self.room = sizes
        self.sizes = [ctypes.c_size_t(n) for n in sizes]
        shape = tuple(image.shape)
        if not self.context.set_input_shape("image", shape):
            raise DeviceError(f"TensorRT refuses the shape {shape}")
        for name, memory in zip(("image", "translation"), self.device, strict=True):
            if not self.context.set_tensor_address(name, memory.value):
                raise DeviceError(f"TensorRT refuses the address of {name!r}")
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
            raise DeviceError("TensorRT could not run the network")
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
        except (DeviceError, MemoryError) as error:
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
        host, device = self.host, self.device
        self.host, self.device, self.room = [], [], [0, 0]
        for memory in host:
            self.cuda("cuMemFreeHost", memory)
        for memory in device:
            self.cuda("cuMemFree_v2", memory)

    def close(self) -> None:
        """Give everything back, as far as the driver still answers."""
        with suppress(DeviceError, MemoryError):
            self.cuda("cuStreamSynchronize", self.stream)  # a failed call may have left work in it
        for step in (self.drop_graph, self.free):
            with suppress(DeviceError, MemoryError):
                step()
        self.context = None
        with suppress(DeviceError, MemoryError):
            self.cuda("cuStreamDestroy_v2", self.stream)


# Pixels: ../csrc/image.h says the rules


def reflect(pixels: np.ndarray, multiple: int) -> np.ndarray:
    """(n, h, w, c) -> the same up to multiples of h and w; itself, if they are."""
    for axis in (1, 2):
        if pixels.shape[axis] % multiple:
            pixels = pixels.take(reflect_indices(pixels.shape[axis], multiple), axis)
    return pixels


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
    """The reverse. Integers are clamped, a NaN becomes their 0; floats stay as they are."""
    if dtype.kind == "u":
        unit = np.fmin(np.fmax(values, np.float32(-1)), np.float32(1)) + np.float32(1)
        levels: np.ndarray = np.rint(unit * np.float32(np.iinfo(dtype).max / 2)).astype(dtype)
        return levels
    low, high = value_range
    result: np.ndarray = (values + np.float32(1)) * np.float32((high - low) / 2) + np.float32(low)
    return result
