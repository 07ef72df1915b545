"""Engine: a model made ready once, then pictures in and pictures out, from any thread.

The pictures' border is images.py, the computing is a back-end's Executable (backends.py). What is
decided here: how far a stream reads ahead, and when the engine may close. No Python lock guards any
of it: a lock held by another thread at the moment of a fork would never open again in the child,
and one taken while Ctrl-C arrives might stay taken. Single dict and deque operations are atomic and
suffice. See docs/decisions/003-engine-and-border.md.
"""

from __future__ import annotations

import importlib
import itertools
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, overload

import numpy as np

from . import backends, images
from .errors import ForkError

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    import torch
    from PIL import Image

    from .model import Model

T = TypeVar("T")
File = TypeVar("File", bound="str | os.PathLike[str] | bytes | bytearray")
Range = tuple[float, float]

MOST_BESIDE = 8  # pictures at once; each streams all weights, which more threads had better share
LEAST_RANGE = 1e-30  # between black and white: its inverse must be a float32 too
STREAM_LOOK_AHEAD = 4  # pictures of a stream that exist at once, finished ones included


class Engine:
    """A pix2pix generator, packed and warmed up, that translates pictures.

    model: path of a model file (ours, or any checkpoint that `checkpoints.read` knows, torch's .pth
        included), folder of a training run, a generator as a torch module (ours or junyanz's), or a
        Model.
    backend: "cpu", "cuda", "tensorrt", or "auto" for the best one that runs here (logged by the
        logger "pix2pix_fast").
    precision: "f32", "bf16" or "f16" arithmetic; "auto" is "f32" on a CPU, where a lower one is
        used only when asked for, and "f16" with float32 sums on a GPU.
    threads: CPU threads per call, 1 to 1024; None takes the CPUs this process may use.
    norm: "image" normalises by each picture's own statistics, as the method's test program does;
        "running" folds the stored statistics into the weights.
    dropout: None is off; an int from 0 to 2**64 - 1 turns it on, seeded, at the places that the
        model names.
    tune: choose kernels by timing them on this machine instead of by the cost model: some seconds
        the first time, then from a file in the user's cache folder. Only for the CPU. The choice
        decides the last bits of the result.
    size: (height, width) that the first calls will have: memory is laid out and warmed up for it
        now. None takes `Model.first_size`. Any size works later.

    Errors: ModelFormatError for a file that is no sound model; OSError for one that cannot be read;
    BackendUnavailable when the back-end, precision or instruction set asked for cannot run here;
    ValueError and TypeError for wrong arguments.

    >>> from pix2pix_fast import Engine
    >>> with Engine("edges2shoes.safetensors") as engine:
    ...     engine.translate("drawing.png").save("shoe.png")
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Model | torch.nn.Module,
        *,
        backend: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto",
        precision: Literal["auto", "f32", "bf16", "f16"] = "auto",
        threads: int | None = None,
        norm: Literal["image", "running"] = "image",
        dropout: int | None = None,
        size: tuple[int, int] | None = None,
        tune: bool = False,
    ) -> None:
        _one_of("precision", precision, ("auto", "f32", "bf16", "f16"))
        _one_of("norm", norm, ("image", "running"))
        threads = _whole("threads", threads, 1, 1024)
        dropout = _whole("dropout", dropout, 0, 2**64 - 1)
        chosen = backends.choose(backend)
        source = _model_of(model)
        architecture = source.architecture
        self._ci, self._co = architecture.in_channels, architecture.out_channels
        self._multiple = architecture.multiple
        self._size, first = _sizes_of(size, source)
        self._check_size(*self._size, "size")
        options = backends.Options(precision, threads, norm, dropout, first, tune=tune)
        ours = source is not model  # then its raw weights may go while they are packed
        self._core = chosen.compile(source, options, release=ours)
        # The same where it takes device memory, else None.
        self._gpu: Any = self._core if getattr(self._core, "device", -1) >= 0 else None
        self._closed = False
        self._calls: dict[tuple[int, int], None] = {}  # (process, thread) of every call in flight
        self._ms: deque[float] = deque(maxlen=1000)  # per picture, newest last
        core = self._core.stats()
        self._last_stats = core
        self._calls_before = int(core["calls"])  # the warm-up's
        self._info = {
            "name": str(source.card.get("name", "")),
            "direction": str(source.card.get("direction", "")),
            "size": self._size,
            "in_channels": self._ci,
            "out_channels": self._co,
            "depth": architecture.depth,
            "ngf": architecture.ngf,
            "norm": norm,
            "dropout": dropout,
            "inferred": str(source.card.get("inferred", "")),
            "digest": source.digest,
            "backend": chosen.name,
            "precision": core["precision"],
            "isa": core["isa"],
            "threads": core["threads"],
        }

    @property
    def info(self) -> dict[str, Any]:
        """What runs, and how: name, direction, size, channels, depth, ngf, norm, dropout, inferred,
        digest, backend, precision, isa, threads."""
        return dict(self._info)

    @property
    def stats(self) -> dict[str, Any]:
        """Counters: calls, p50_ms and p95_ms per picture over the last 1000 calls (None before
        the first), workspace_bytes, weight_bytes, load_seconds."""
        try:
            core = self._core.stats()
        except ValueError:  # closed
            core = self._last_stats
        recent = np.array(self._ms)
        p50, p95 = np.percentile(recent, (50, 95)).tolist() if recent.size else (None, None)
        calls = int(core["calls"]) - self._calls_before
        return {**core, "calls": calls, "p50_ms": p50, "p95_ms": p95}

    @overload
    def translate(
        self,
        image: str | os.PathLike[str] | bytes | bytearray,
        *,
        out: None = None,
        value_range: Range = (0.0, 1.0),
        layout: images.Layout | None = None,
    ) -> Image.Image: ...
    @overload
    def translate(
        self,
        image: list[File],
        *,
        out: None = None,
        value_range: Range = (0.0, 1.0),
        layout: images.Layout | None = None,
    ) -> list[Image.Image]: ...
    @overload
    def translate(
        self,
        image: tuple[File, ...],
        *,
        out: None = None,
        value_range: Range = (0.0, 1.0),
        layout: images.Layout | None = None,
    ) -> tuple[Image.Image, ...]: ...
    @overload
    def translate(
        self,
        image: T,
        *,
        out: None = None,
        value_range: Range = (0.0, 1.0),
        layout: images.Layout | None = None,
    ) -> T: ...
    @overload
    def translate(
        self,
        image: Any,
        *,
        out: T,
        value_range: Range = (0.0, 1.0),
        layout: images.Layout | None = None,
    ) -> T: ...
    def translate(
        self,
        image: Any,
        *,
        out: Any = None,
        value_range: Range = (0.0, 1.0),
        layout: images.Layout | None = None,
    ) -> Any:
        """Translate one picture, one 4-D batch, or a list of pictures; the same kind, dtype and
        height x width come back.

        image: path or bytes of a PNG, JPEG, WebP, BMP, TIFF or PPM file (-> PIL); PIL image; array
            (H, W), (H, W, C) or (N, H, W, C), of NumPy or anything that speaks DLPack, the array
            interface or the buffer protocol (-> NumPy); torch tensor (H, W), (C, H, W) or (N, C, H,
            W) on the CPU (-> torch); or a list or tuple of such. With backend="cuda" also a torch
            tensor on the GPU, or what has `__cuda_array_interface__` or speaks DLPack there: uint8
            or float32, read and written in place on the caller's stream, see docs/api.md.
            uint8 0..255, uint16 0..65535, float16/32/64 over value_range. RGB; alpha is dropped;
            EXIF turns are applied. Any strides; read only; any H, W >= 1 up to 64 megapixels. Every
            picture has its own statistics.
        out: array or tensor of the result's shape to write into, returned; its dtype decides the
            range of the result. A list of them for a list.
        value_range: (black, white) of floating-point pixels, in and out.
        layout: "HWC" or "CHW" for arrays and tensors; None takes the kind's own, or the other order
            if only that one fits.

        Errors: TypeError and ValueError name the argument, what was expected and what came; OSError
        for unreadable paths.
        """
        value_range = _range(value_range)
        self._enter()
        try:
            if isinstance(image, (list, tuple)):
                return self._translate_list(image, out, value_range, layout)
            picture = self._take(image, layout)
            return self._translate(picture, out, value_range, 0)
        finally:
            self._leave()

    @overload
    def stream(
        self,
        frames: Iterable[File],
        *,
        value_range: Range = (0.0, 1.0),
        layout: images.Layout | None = None,
    ) -> Iterator[Image.Image]: ...
    @overload
    def stream(
        self,
        frames: Iterable[T],
        *,
        value_range: Range = (0.0, 1.0),
        layout: images.Layout | None = None,
    ) -> Iterator[T]: ...
    def stream(
        self,
        frames: Iterable[Any],
        *,
        value_range: Range = (0.0, 1.0),
        layout: images.Layout | None = None,
    ) -> Iterator[Any]:
        """Translate pictures as they come: lazy, in order, each as `translate` would.

        frames: iterable of pictures. It is read in the thread that asks for results, while a
            picture is being translated in another, at most 4 pictures ahead; its pictures may reuse
            one buffer. Dropout advances by frame index.

        Closing the generator stops the work. Errors come in their frame's turn and name its index;
        the stream ends there.
        """
        value_range = _range(value_range)
        if isinstance(frames, (str, bytes, bytearray, os.PathLike)) or not hasattr(
            frames, "__iter__"
        ):
            raise TypeError(
                f"frames: expected an iterable of pictures, got {type(frames).__name__}; "
                "translate() takes one picture"
            )
        axes = getattr(frames, "ndim", 4)  # a 4-D array is an iterable of pictures
        if axes < 4:
            raise TypeError(
                f"frames: expected an iterable of pictures, got an array of {axes} axes; "
                "translate() takes one picture"
            )
        if self._closed:
            raise ValueError("this Engine is closed")
        return self._stream(iter(frames), value_range, layout)

    def lanes(self) -> Lanes:
        """For films: uint8 arrays translated beside each other, each by a thread of its own where
        that uses the CPU better than threads that share one; the bits are `translate`'s.

        >>> with engine.lanes() as lanes:
        ...     results = [one.result() for one in [lanes.submit(frame) for frame in frames]]
        """
        threads = int(self._info["threads"]) if self._info["backend"] == "cpu" else 1
        beside = 1 < threads <= MOST_BESIDE
        return Lanes(self._alone, threads) if beside else Lanes(self.translate, 1)

    def close(self) -> None:
        """Wait for the calls in flight in other threads, then give the memory back. Calling it
        again does nothing."""
        self._closed = True
        me = (os.getpid(), threading.get_ident())
        while any(call[0] == me[0] and call != me for call in tuple(self._calls)):
            time.sleep(0.001)  # a poll, as waiting on a lock is what forks and signals break
        if me not in self._calls:  # else this is a signal handler inside a call, which will close
            self._shut()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an Engine cannot be pickled or copied: open one from the model file in each process; "
            "threads may share one"
        )

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{key}={self._info[key]!r}"
            for key in ("name", "backend", "precision", "isa", "threads", "norm")
        )
        return f"<Engine {shown}{', closed' if self._closed else ''}>"

    # One call

    def _enter(self) -> None:
        me = (os.getpid(), threading.get_ident())
        self._calls[me] = None  # first the mark, then the look: close() does it the other way round
        if self._closed:
            self._leave()
            raise ValueError("this Engine is closed")

    def _leave(self) -> None:
        pid = os.getpid()
        self._calls.pop((pid, threading.get_ident()), None)
        if self._closed and not any(call[0] == pid for call in tuple(self._calls)):
            self._shut()

    def _shut(self) -> None:
        with suppress(ValueError):  # closed before: the counters are kept already
            self._last_stats = self._core.stats()
        self._core.close()

    def _check_size(self, h: int, w: int, what: str = "image") -> None:
        """The padded picture is what costs memory, so it must obey the cap too."""
        images.check_size(h, w, what)
        padded = [-(-length // self._multiple) * self._multiple for length in (h, w)]
        images.check_size(padded[0], padded[1], f"{what} padded to multiples of {self._multiple}")

    def _take(self, image: Any, layout: images.Layout | None) -> Any:
        """An images.Picture, or a device.DevicePicture for what lies on this engine's GPU."""
        if self._gpu is not None:
            from . import device

            if device.on_device(image):
                return device.take(image, self._ci, layout, self._gpu.stream)
        return images.take(image, self._ci, layout)

    def _translate(self, picture: Any, out: Any, value_range: Range, frame: int) -> Any:
        """One picture or batch, its first dropout frame being `frame`."""
        _, h, w, _ = picture.pixels.shape
        self._check_size(h, w)
        room = picture.room(self._co, out)
        if picture.reads(room.pixels):
            picture = picture.snapshot()
        self._run(picture.pixels, room.pixels, value_range, frame)
        return room.finish()

    def _alone(self, image: np.ndarray) -> np.ndarray:
        """`translate` of a uint8 array, computed by the calling thread without the others."""
        self._enter()
        try:
            picture = images.take(image, self._ci, None)
            self._check_size(*picture.pixels.shape[1:3])
            room = picture.room(self._co, None)
            start = time.perf_counter()
            self._core.run(picture.pixels, room.pixels, alone=True)  # type: ignore[call-arg]
            self._ms.append((time.perf_counter() - start) * 1e3)
            result: np.ndarray = room.finish()
            return result
        finally:
            self._leave()

    def _translate_list(
        self,
        items: list[Any] | tuple[Any, ...],
        out: Any,
        value_range: Range,
        layout: images.Layout | None,
    ) -> Any:
        """One call of the core each: it takes a batch picture by picture anyway."""
        outs = [None] * len(items) if out is None else out
        if not isinstance(outs, (list, tuple)) or len(outs) != len(items):
            raise ValueError(
                f"out: expected a list of {len(items)} arrays for a list of {len(items)} pictures, "
                f"got {_brief(out)}"
            )
        pictures = iter(self._taken(items, outs, layout))
        if out is not None:  # an `out` may be the memory of a picture to come: read all before
            pictures = iter(list(pictures))
        results: list[Any] = []
        frame = 0
        for index, target in enumerate(outs):
            picture = next(pictures)
            try:
                results.append(self._translate(picture, target, value_range, frame))
            except Exception as error:
                raise _named(error, f"image[{index}]") from error
            frame += len(picture.pixels)
        return tuple(results) if isinstance(items, tuple) else results

    def _taken(
        self, items: Iterable[Any], outs: Iterable[Any], layout: images.Layout | None
    ) -> Iterator[Any]:
        """The pictures of a list; in memory of their own where an earlier `out` is theirs. (Device
        memory is not looked at.)"""
        rooms: list[np.ndarray] = []
        for index, (item, target) in enumerate(zip(items, outs, strict=True)):
            try:
                picture = self._take(item, layout)
                if isinstance(picture.pixels, np.ndarray):
                    if any(picture.reads(room) for room in rooms):
                        picture = picture.snapshot()
                    if target is not None:
                        rooms.append(picture.room(self._co, target).pixels)
            except Exception as error:
                raise _named(error, f"image[{index}]") from error
            yield picture

    def _run(self, src: Any, dst: Any, value_range: Range, frame: int) -> None:
        """src (n, h, w, ci) -> dst (n, h, w, co), both np.ndarray or both device.View."""
        if not len(src):
            return
        if not isinstance(src, np.ndarray):  # not timed: the call does not wait for the result
            self._gpu.run_on(
                src.described(), dst.described(), value_range=value_range, frame=frame,
                stream=src.stream,
            )  # fmt: skip
            return
        start = time.perf_counter()
        self._core.run(src, dst, value_range=value_range, frame=frame)
        self._ms.append((time.perf_counter() - start) * 1e3 / len(src))

    # Streams

    def _stream(
        self, source: Iterator[Any], value_range: Range, layout: images.Layout | None
    ) -> Iterator[Any]:
        """Read ahead in the caller's thread while one worker translates: what the caller does to
        decode and save pictures overlaps with the computing."""
        from concurrent.futures import ThreadPoolExecutor

        pid = os.getpid()
        worker = ThreadPoolExecutor(1, "pix2pix_fast.stream")
        jobs = self._jobs(source, worker, value_range, layout)
        pending: deque[Future[Any]] = deque()
        try:
            while True:
                if os.getpid() != pid:
                    raise ForkError(
                        "a stream belongs to the process that opened it; "
                        "call stream() again in the forked child"
                    )
                # A finished picture goes out at once, however slow the source's next one is.
                while len(pending) < STREAM_LOOK_AHEAD and not (pending and pending[0].done()):
                    job = next(jobs, None)
                    if job is None:
                        break
                    pending.append(job)
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            if os.getpid() == pid:
                worker.shutdown(wait=False, cancel_futures=True)

    def _jobs(
        self,
        source: Iterator[Any],
        worker: ThreadPoolExecutor,
        value_range: Range,
        layout: images.Layout | None,
    ) -> Iterator[Future[Any]]:
        """Each frame's result to come, in order; the first error is the last of them."""
        frame = 0
        for index in itertools.count():
            try:
                item = next(source)
            except StopIteration:
                return
            except Exception as error:  # the source's own, which stays as it is
                yield _failed(error)
                return
            try:
                picture = self._take(item, layout).snapshot()
            except Exception as error:
                yield _failed(_named(error, f"frame {index}"))
                return
            yield worker.submit(self._frame, picture, value_range, index, frame)
            frame += len(picture.pixels)

    def _frame(self, picture: Any, value_range: Range, index: int, frame: int) -> Any:
        try:
            self._enter()
            try:
                return self._translate(picture, None, value_range, frame)
            finally:
                self._leave()
        except Exception as error:
            raise _named(error, f"frame {index}") from error


class Lanes:
    """`count` calls of `translate` at once. Leaving the block waits for what was submitted; an
    exception in it drops what has not begun."""

    def __init__(self, translate: Callable[[np.ndarray], np.ndarray], count: int) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self.count = count
        self._translate = translate
        self._workers = ThreadPoolExecutor(count, "pix2pix_fast.lanes")

    def submit(self, picture: np.ndarray) -> Future[np.ndarray]:
        """The result to come of a picture, which must not change until then."""
        return self._workers.submit(self._translate, picture)

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._workers.shutdown(wait=kind is None, cancel_futures=kind is not None)


def _failed(error: Exception) -> Future[Any]:
    from concurrent.futures import Future

    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _named(error: Exception, place: str) -> Exception:
    """The same kind of error, its message led by `place`: "frame 3" or "image[3]"."""
    try:
        if isinstance(error, OSError) and error.errno is not None:
            return type(error)(error.errno, f"{place}: {error.strerror}", error.filename)
        return type(error)(f"{place}: {str(error).removeprefix('image: ')}")
    except Exception:  # a class of somebody else's with a constructor of its own
        return RuntimeError(f"{place}: {error!r}")


# Arguments


def _model_of(model: Any) -> Model:
    """The one place where what the caller passed becomes a Model."""
    from .model import Model

    if isinstance(model, Model):
        return model
    if isinstance(model, (str, os.PathLike)):
        images.refuse_url("model", os.fsdecode(model))
        from . import checkpoints

        return checkpoints.read(model)
    if hasattr(model, "state_dict") and hasattr(model, "named_modules"):  # then torch is here
        # by name, as train/ is not where a type checker would look for it
        made: Model = importlib.import_module("pix2pix_fast.train.export").to_model(model)
        return made
    raise TypeError(
        "model: expected the path of a model file or of a training run, a torch module or a Model, "
        f"got {type(model).__name__}"
    )


def _sizes_of(size: Any, model: Model) -> tuple[tuple[int, int], tuple[int, int]]:
    """The caller's (height, width), else the model's own; and the one to be made ready for."""
    if size is None:
        return model.own_size(), model.first_size()
    if (
        not isinstance(size, (tuple, list))
        or len(size) != 2
        or not all(map(_is_whole, size))
    ):
        raise TypeError(f"size: expected (height, width) as two ints, got {size!r}")
    given = int(size[0]), int(size[1])
    return given, given


def _one_of(argument: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(
            f"{argument}: expected one of {', '.join(map(repr, allowed))}, got {value!r}"
        )


def _is_whole(value: Any) -> bool:
    """Whether it is an int, of Python or NumPy."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _whole(argument: str, value: Any, low: int, high: int) -> int | None:
    """None, or an int from low to high."""
    if value is None:
        return None
    if not _is_whole(value):
        raise TypeError(f"{argument}: expected None or an int, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{argument}: expected {low} to {high}, got {value}")
    return int(value)


def _range(value_range: Any) -> Range:
    try:
        low, high = map(float, value_range)
    except (TypeError, ValueError):
        raise TypeError(
            f"value_range: expected two numbers (black, white), got {value_range!r}"
        ) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range: expected finite black < white, got {value_range!r}")
    with np.errstate(all="ignore"):  # the core computes in float32, as here
        width = float(np.float32(high) - np.float32(low))
    if not LEAST_RANGE <= width < math.inf:
        raise ValueError(
            "value_range: expected black and white that differ by "
            f"{LEAST_RANGE:g} to 3.4e38 in float32, got {value_range!r}"
        )
    return low, high


def _brief(value: Any) -> str:
    return (
        f"a {type(value).__name__} of {len(value)}"
        if isinstance(value, (list, tuple))
        else type(value).__name__
    )
