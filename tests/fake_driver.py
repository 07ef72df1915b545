"""The driver functions that tensorrt_run.py calls, on ordinary memory.

Nothing runs before its stream is waited for, so a missing wait, a buffer written too early or freed
too soon shows as a wrong picture. Arguments are checked against the prototypes of cuda.h (which
test_tensorrt_run.py reads where CUDA's headers are): ctypes would pass a Python int as 32 bits
and cut a pointer. Each thread has its current context; `fail` makes a call answer an error.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from typing import Any

PROTOTYPES = """
cuInit(unsigned int)
cuDriverGetVersion(int*)
cuGetErrorName(CUresult, const char**)
cuDeviceGet(CUdevice*, int)
cuDeviceGetName(char*, int, CUdevice)
cuDeviceGetAttribute(int*, CUdevice_attribute, CUdevice)
cuDevicePrimaryCtxRetain(CUcontext*, CUdevice)
cuDevicePrimaryCtxRelease_v2(CUdevice)
cuCtxPushCurrent_v2(CUcontext)
cuCtxPopCurrent_v2(CUcontext*)
cuMemAlloc_v2(CUdeviceptr*, size_t)
cuMemFree_v2(CUdeviceptr)
cuMemAllocHost_v2(void**, size_t)
cuMemFreeHost(void*)
cuMemcpyHtoDAsync_v2(CUdeviceptr, const void*, size_t, CUstream)
cuMemcpyDtoHAsync_v2(void*, CUdeviceptr, size_t, CUstream)
cuStreamCreate(CUstream*, unsigned int)
cuStreamDestroy_v2(CUstream)
cuStreamSynchronize(CUstream)
cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode)
cuStreamEndCapture(CUstream, CUgraph*)
cuGraphInstantiateWithFlags(CUgraphExec*, CUgraph, unsigned long long)
cuGraphLaunch(CUgraphExec, CUstream)
cuGraphExecDestroy(CUgraphExec)
cuGraphDestroy(CUgraph)
"""
TYPES = {
    line.split("(")[0]: line.split("(")[1].rstrip(")").split(", ")
    for line in PROTOTYPES.split("\n")
    if line
}
HANDLES = "CUcontext CUdeviceptr CUstream CUgraph CUgraphExec void* const void*"
INVALID_VALUE, OUT_OF_MEMORY, NO_CONTEXT, INVALID_HANDLE = 1, 2, 201, 400
NAMES = {
    INVALID_VALUE: b"CUDA_ERROR_INVALID_VALUE",
    OUT_OF_MEMORY: b"CUDA_ERROR_OUT_OF_MEMORY",
    NO_CONTEXT: b"CUDA_ERROR_INVALID_CONTEXT",
    INVALID_HANDLE: b"CUDA_ERROR_INVALID_HANDLE",
    999: b"CUDA_ERROR_UNKNOWN",
}


def _plain(kind: str, value: Any, function: str) -> Any:
    """What C receives, if the argument's ctypes kind fits the prototype's."""
    words = f"{function}: {kind} from {value!r}"
    if kind == "char*":
        return value
    if kind in HANDLES.split(" ") + ["const void*"]:
        assert isinstance(value, ctypes.c_void_p), words
        return value.value or 0
    if kind.endswith("*"):
        assert hasattr(value, "_obj"), words  # byref(...)
        wide = kind not in ("int*", "CUdevice*")
        assert ctypes.sizeof(value._obj) == (8 if wide else 4), words
        return value._obj
    if kind in ("size_t", "unsigned long long"):
        assert isinstance(value, (ctypes.c_size_t, ctypes.c_ulonglong)), words
        return value.value
    if isinstance(value, ctypes.c_int):
        return value.value
    assert isinstance(value, int) and 0 <= value < 1 << 31, words
    return value


class Cuda:
    """The library as ctypes.CDLL would give it. `fail[function] = (how often it works, code)`."""

    def __init__(self, name: str = "Card", capability: tuple[int, int] = (8, 9)) -> None:
        self.name, self.capability = name, capability
        self.fail: dict[str, tuple[int, int]] = {}
        self.calls: list[str] = []
        self.contexts: list[Any] = []  # of TensorRT, for the tests to count
        self.retained = 0
        self.host: dict[int, Any] = {}
        self.device: dict[int, Any] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.capturing: dict[int, list[Callable[[], None]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.execs: dict[int, list[Callable[[], None]]] = {}
        self._handles = itertools.count(0x7F00_0000_1000, 16)  # more than 32 bits
        self._thread = threading.local()

    def __getattr__(self, function: str) -> Callable[..., int]:
        if not function.startswith("cu"):
            raise AttributeError(function)
        work = getattr(self, f"_{function.removesuffix('_v2')}")
        kinds = TYPES[function]

        def call(*arguments: Any) -> int:
            self.calls.append(function)
            works, code = self.fail.get(function, (-1, 0))
            if works == 0:
                return code
            if works > 0:
                self.fail[function] = (works - 1, code)
            plain = [_plain(k, a, function) for k, a in zip(kinds, arguments, strict=True)]
            free = function.startswith(("cuInit", "cuD", "cuGetE", "cuCtxPush"))
            if not free and not self.current():
                return NO_CONTEXT
            return work(*plain) or 0

        return call

    # For fake_tensorrt.py

    def current(self) -> bool:
        return self.pushed()[-1:] == [77] and self.retained > 0

    def pushed(self) -> list[int]:
        """This thread's contexts, the current one last."""
        stack: list[int] = self._thread.__dict__.setdefault("stack", [])
        return stack

    def read(self, address: int, size: int, where: Any = None) -> bytes:
        memory = (self.device if where is None else where)[address]
        assert size <= len(memory), "a read past the end"
        return bytes(memory)[:size]

    def write(self, address: int, data: bytes, where: Any = None) -> None:
        memory = (self.device if where is None else where)[address]
        assert len(data) <= len(memory), "a write past the end"
        ctypes.memmove(memory, data, len(data))

    def enqueue(self, stream: int, work: Callable[[], None]) -> int:
        if stream not in self.streams:
            return INVALID_HANDLE
        self.capturing.get(stream, self.streams[stream]).append(work)
        return 0

    def left(self) -> dict[str, int]:
        """What has not been given back."""
        kinds = ("host", "device", "streams", "capturing", "graphs", "execs", "retained")
        counts = {kind: getattr(self, kind) for kind in kinds}
        return {k: v if isinstance(v, int) else len(v) for k, v in counts.items() if v}

    # The functions

    def _cuInit(self, flags: int) -> int:
        return 0

    def _cuDriverGetVersion(self, version: Any) -> None:
        version.value = 13000

    def _cuGetErrorName(self, code: int, name: Any) -> None:
        name.value = NAMES.get(code, b"CUDA_ERROR_UNKNOWN")

    def _cuDeviceGet(self, device: Any, ordinal: int) -> None:
        device.value = 5 + ordinal

    def _cuDeviceGetName(self, text: Any, size: int, device: int) -> None:
        assert device == 5 and size == len(text)
        text.value = self.name.encode()

    def _cuDeviceGetAttribute(self, number: Any, attribute: int, device: int) -> None:
        number.value = self.capability[attribute - 75]

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> None:
        self.retained += 1
        context.value = 77

    def _cuDevicePrimaryCtxRelease(self, device: int) -> None:
        self.retained -= 1

    def _cuCtxPushCurrent(self, context: int) -> int:
        self.pushed().append(context)
        return 0 if context == 77 else NO_CONTEXT

    def _cuCtxPopCurrent(self, context: Any) -> None:
        context.value = self.pushed().pop()

    def _allocate(self, kept: dict[int, Any], pointer: Any, size: int) -> int:
        if size == 0:
            return INVALID_VALUE
        junk = bytearray(b"\xff" * size)  # NaN where nothing is written
        memory = (ctypes.c_uint8 * size).from_buffer(junk)
        pointer.value = ctypes.addressof(memory)
        kept[pointer.value] = memory
        return 0

    def _cuMemAlloc(self, pointer: Any, size: int) -> int:
        return self._allocate(self.device, pointer, size)

    def _cuMemAllocHost(self, pointer: Any, size: int) -> int:
        return self._allocate(self.host, pointer, size)

    def _cuMemFree(self, pointer: int) -> int:
        return 0 if self.device.pop(pointer, None) is not None else INVALID_VALUE

    def _cuMemFreeHost(self, pointer: int) -> int:
        return 0 if self.host.pop(pointer, None) is not None else INVALID_VALUE

    def _cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> int:
        return self.enqueue(
            stream, lambda: self.write(target, self.read(source, size, self.host))
        )

    def _cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> int:
        return self.enqueue(
            stream, lambda: self.write(target, self.read(source, size), self.host)
        )

    def _cuStreamCreate(self, stream: Any, flags: int) -> None:
        assert flags == 1  # not in step with the default stream
        stream.value = next(self._handles)
        self.streams[stream.value] = []

    def _cuStreamDestroy(self, stream: int) -> int:
        return 0 if self.streams.pop(stream, None) is not None else INVALID_HANDLE

    def _cuStreamSynchronize(self, stream: int) -> int:
        if stream not in self.streams or stream in self.capturing:
            return INVALID_HANDLE
        while self.streams[stream]:
            self.streams[stream].pop(0)()
        return 0

    def _cuStreamBeginCapture(self, stream: int, mode: int) -> int:
        assert mode == 1  # calls of other threads go on
        if stream not in self.streams:
            return INVALID_HANDLE
        self.capturing[stream] = []
        return 0

    def _cuStreamEndCapture(self, stream: int, graph: Any) -> None:
        graph.value = next(self._handles)
        self.graphs[graph.value] = self.capturing.pop(stream)

    def _cuGraphInstantiateWithFlags(self, executable: Any, graph: int, flags: int) -> int:
        if graph not in self.graphs:
            return INVALID_HANDLE
        executable.value = next(self._handles)
        self.execs[executable.value] = list(self.graphs[graph])
        return 0

    def _cuGraphLaunch(self, executable: int, stream: int) -> int:
        if executable not in self.execs:
            return INVALID_HANDLE
        for work in self.execs[executable]:
            self.enqueue(stream, work)
        return 0

    def _cuGraphExecDestroy(self, executable: int) -> int:
        return 0 if self.execs.pop(executable, None) is not None else INVALID_HANDLE

    def _cuGraphDestroy(self, graph: int) -> int:
        return 0 if self.graphs.pop(graph, None) is not None else INVALID_HANDLE
