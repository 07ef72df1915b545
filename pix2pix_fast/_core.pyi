"""The C++ engine's door. Use `pix2pix_fast.Engine`; tests and benchmarks use this module directly."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

def kernels() -> list[str]:
    """Ids "room/op_algorithm_dtype" of every kernel compiled in, best room first, runnable here or not."""

def cpu() -> dict[str, Any]:
    """{"name": str, "isa": room in use, "runnable": [room], "cores": CPUs this process may use}.

    BackendUnavailable or ValueError where P2P_ISA names a room that cannot run or none at all.
    """

def cuda() -> dict[str, Any]:
    """{"built": with CUDA or not, "missing": "" where device 0 can run the kernels, else one sentence, "runtime" and
    "driver": CUDA versions such as "13.0" ("" where there is none), "devices": [{"name", "capability": "9.0", "sms",
    "memory_bytes"}]}.
    """

def dlpack(capsule: object) -> dict[str, Any]:
    """{"pointer", "device": (type, id), "shape", "strides": in bytes, "dtype"} of a capsule that stays the owner."""

def peaks(*, isa: str = "", precision: str = "f32", threads: int = 0) -> dict[str, float]:
    """{"flops", "bytes_per_second"} of this machine: the room's product on operands in cache, and reading 256 MB.

    isa "": the room in use; threads 0: all usable CPUs. Takes about half a second; repeated calls answer from memory.
    """

def run_kernel(
    kernel: str,
    src: Float32,
    weight: Float32,
    *,
    skip: Float32 | None = None,
    bias: Float32 | None = None,
    scale: Float32 | None = None,
    shift: Float32 | None = None,
    slope: float = 1.0,
    tanh: bool = False,
    tile_block: int = -1,
    threads: int = 1,
    repeats: int = 0,
) -> dict[str, Any]:
    """One kernel on plain arrays, as a network would call it.

    src (h, w, ci), skip (h, w, ci_skip) channels in front; weight (co, ci, 4, 4) for conv4x4s2,
    (ci_skip + ci, co, 4, 4) for deconv4x4s2. Inputs are read as max(x, slope * x) of x * scale + shift (not for
    conv4x4s2_first, whose src is the picture in [-1, 1]). tile_block: -1 the engine's schedule, 0 two phases,
    n > 0 one phase with n rows per item.

    Returns {"dst": (ho, wo, co) float32, "scale", "shift": (co,) of a norm with gamma 1, beta 0, eps 1e-5 (empty for
    first and last layers), "seconds": one per repeat, "macs", "weight_bytes", "phases", "stat_blocks"}.
    """

def yuv_to_rgb(
    planes: Sequence[Any],
    strides: Sequence[int],
    chroma: tuple[int, int],
    k: tuple[float, float],
    full: bool,
    dst: NDArray[np.uint8],
) -> None:
    """A film's Y, U, V planes (buffers of bytes, rows `strides` apart) into dst, (h, w, 3) RGB or (h, w) gray.

    chroma: (x, y), 1 where U and V have half the columns, rows; k: (kr, kb) of the matrix; full: range 0..255.
    """

def rgb_to_yuv(
    src: NDArray[np.uint8],
    planes: Sequence[Any],
    strides: Sequence[int],
    chroma: tuple[int, int],
    k: tuple[float, float],
    full: bool,
) -> None:
    """The way back, into planes that can be written."""

class Engine:
    """A compiled network. Thread-safe; releases the GIL; usable in a forked child (not with CUDA: ForkError)."""

    def __init__(
        self,
        layers: Sequence[dict[str, Any]],
        tensors: Mapping[str, Float32],
        *,
        precision: str = "f32",
        threads: int = 0,
        isa: str = "",
        dropout_seed: int | None = None,
        size: tuple[int, int] = (256, 256),
        kernels: Mapping[str, str] = ...,
        backend: str = "cpu",
    ) -> None:
        """layers: dicts with name, op, ci, co, slope, norm, eps, skip, dropout, tanh, in order e1..eN, d1..dN.

        tensors: `<layer>.weight` and optionally `.bias`, `.norm.weight`, `.norm.bias`, float32, C order, PyTorch axes;
        read layer by layer, each once. threads 0: all usable CPUs. size: (h, w) that weights are packed for.
        kernels: layer name -> kernel id, instead of the cost model's choice.
        backend: "cpu" or "cuda" (device 0; precision "f16", "bf16" or "f32"; no threads, isa and kernels).
        ValueError names the layer or tensor; BackendUnavailable an instruction set or precision this CPU lacks.
        """

    def run(
        self,
        src: NDArray[Any],
        dst: NDArray[Any],
        *,
        value_range: tuple[float, float] = (0.0, 1.0),
        frame: int = 0,
        alone: bool = False,
    ) -> None:
        """src (n, h, w, ci) to dst (n, h, w, co): uint8, uint16 or float32 over value_range, any strides.

        alone: the calling thread computes by itself, beside other such calls; the same bits.
        """

    @property
    def device(self) -> int:
        """Number of the CUDA device whose memory run_on takes; -1 on the CPU."""

    @property
    def stream(self) -> int:
        """Handle of the stream that run_on takes without a caller's; 0 on the CPU."""

    def run_on(
        self,
        src: Mapping[str, Any],
        dst: Mapping[str, Any],
        *,
        value_range: tuple[float, float] = (0.0, 1.0),
        frame: int = 0,
        stream: int | None = None,
    ) -> None:
        """`run` on device memory: {"pointer", "shape": (n, h, w, c), "strides": in bytes, "dtype": uint8 or float32}.

        stream: the caller's, and the call does not wait; None: `stream`, and it does.
        """

    def time_graph(self, n: int, h: int, w: int, repeats: int = 10, flush_bytes: int = 0) -> list[float]:
        """CUDA only: microseconds of one launch of all kernels on n pictures, `repeats` times, pictures on the device;
        flush_bytes are written before each launch, so that the cache is cold.
        """

    def plan(self, h: int, w: int) -> list[dict[str, Any]]:
        """The steps for a picture of h x w: layer, kernel, shapes, tile_block, macs, bytes, estimate_us,
        measured_us (0).
        """

    def timed(self, h: int, w: int, repeats: int = 10) -> list[dict[str, Any]]:
        """`plan(h, w)` with "measured_us": the shortest of `repeats` runs, each step inside the whole network."""

    def activations(self, src: NDArray[Any]) -> dict[str, Float32]:
        """Raw layer outputs, (1, h, w, c), of one float32 picture in [-1, 1]: before norm, dropout and tanh."""

    def stats(self) -> dict[str, Any]:
        """{"calls", "workspace_bytes", "weight_bytes", "load_seconds", "isa", "threads", "precision"}.

        With CUDA "isa" is "sm_90 " and the GPU's name, "threads" 0.
        """

    def close(self) -> None:
        """Frees weights and threads when the last running call ends. Later calls raise ValueError."""
