"""The back-ends: one line each, what is missing and why, and what "auto" means.

A back-end meets the rest at `compile(model, options) -> Executable`; a new one is a function and a
line in BACKENDS.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from .errors import BackendUnavailable

if TYPE_CHECKING:
    import numpy as np

    from .model import Model

log = logging.getLogger("pix2pix_fast")


class Executable(Protocol):
    """A compiled network: runs (n, h, w, ci) -> (n, h, w, co), from any thread."""

    def run(
        self,
        src: np.ndarray,
        dst: np.ndarray,
        *,
        value_range: tuple[float, float] = ...,
        frame: int = ...,
    ) -> None: ...
    def stats(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


class Options(NamedTuple):
    """What the caller of Engine asked for; `isa` forces a room of the CPU's kernels ("" takes the
    best); `tune` chooses kernels by timing (tuning.py)."""

    precision: str = "auto"
    threads: int | None = None
    norm: Literal["image", "running"] = "image"
    dropout: int | None = None
    size: tuple[int, int] = (256, 256)
    isa: str = ""
    tune: bool = False


class Compile(Protocol):
    """`release`: the model is ours to use up, so each raw weight may go once it is packed."""

    def __call__(self, model: Model, options: Options, release: bool = ...) -> Executable: ...


class Backend(NamedTuple):
    """`missing` gives "" where the back-end can run, else one sentence that says what it lacks."""

    name: str
    missing: Callable[[], str]
    compile: Compile


def _cpu_missing() -> str:
    try:
        from . import _core  # noqa: F401
    except ImportError as error:
        if (Path(__file__).parents[1] / "setup.py").is_file():
            return (
                f"{Path(__file__).parent} is the source folder's package, which has no compiled core "
                "and hides the installed one: run Python from another folder"
            )
        return f"the C++ core does not load ({error}); build it with `pip install .`"
    return ""


def compile_cpu(model: Model, options: Options, release: bool = False) -> Executable:
    """Our C++ kernels. Raises BackendUnavailable for a precision or room that cannot run here."""
    from . import _core

    if options.precision == "f16":
        raise BackendUnavailable(
            "precision='f16' is for GPUs; the cpu back-end computes in 'f32' or 'bf16'"
        )
    kernels = {}
    if options.tune:
        from . import tuning

        kernels = tuning.kernels(model, options)
    executable: Executable = _core.Engine(
        model.layers(options.norm),
        model.core_tensors(options.norm, release=release),
        precision="f32" if options.precision == "auto" else options.precision,
        threads=options.threads or 0,
        isa=options.isa,
        dropout_seed=options.dropout,
        size=options.size,
        kernels=kernels,
    )
    return executable


def _tensorrt_missing() -> str:
    from . import tensorrt

    return tensorrt.missing()


def compile_tensorrt(model: Model, options: Options, release: bool = False) -> Executable:
    """TensorRT through its Python API. Raises BackendUnavailable for what it does not do."""
    from . import tensorrt

    return tensorrt.compile_tensorrt(model, options, release)


def _cuda_missing() -> str:
    missing = _cpu_missing()
    if missing:
        return missing
    from . import _core

    return str(_core.cuda()["missing"])


def compile_cuda(model: Model, options: Options, release: bool = False) -> Executable:
    """Our CUDA kernels, "f16" unless asked otherwise. Raises BackendUnavailable for a precision
    that the GPU cannot do, ValueError for what is the CPU's alone."""
    from . import _core

    if options.isa or options.tune:
        raise ValueError("isa and tune choose kernels of the CPU; the cuda back-end has one set")
    executable: Executable = _core.Engine(
        model.layers(options.norm),
        model.core_tensors(options.norm, release=release),
        backend="cuda",
        precision="f16" if options.precision == "auto" else options.precision,
        dropout_seed=options.dropout,
        size=options.size,
    )
    return executable


# Best first: "auto" takes the first one that is not missing. The two for GPUs come after cpu, so that
# "auto" does not take them, until they have been run and timed on one.
BACKENDS = (
    Backend("cpu", _cpu_missing, compile_cpu),
    Backend("cuda", _cuda_missing, compile_cuda),
    Backend("tensorrt", _tensorrt_missing, compile_tensorrt),
)


def choose(name: str) -> Backend:
    """The back-end called `name`, or the best one that can run for "auto" (and then log which).

    Errors: ValueError for a name that does not exist; BackendUnavailable, with the reason, for one
    that cannot run here.
    """
    if name == "auto":
        reasons = []
        for backend in BACKENDS:
            reason = backend.missing()
            if not reason:
                log.info("backend 'auto' is %r", backend.name)
                return backend
            reasons.append(f"{backend.name}: {reason}")
        raise BackendUnavailable("no back-end can run: " + "; ".join(reasons))
    for backend in BACKENDS:
        if backend.name == name:
            reason = backend.missing()
            if reason:
                raise BackendUnavailable(f"backend {name!r} cannot run: {reason}")
            return backend
    names = ["auto", *(backend.name for backend in BACKENDS)]
    raise ValueError(f"backend: expected one of {names}, got {name!r}")


def available() -> dict[str, str]:
    """Every back-end by name, with "" if it can run here and else the sentence that says why
    not."""
    return {backend.name: backend.missing() for backend in BACKENDS}
