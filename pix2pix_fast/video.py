"""Films: decode, translate and encode, overlapping, with the clip's own timestamps and sound.

    reader thread --4 items--> the caller's thread --> engine threads --4 items--> writer thread

On a CPU every engine thread has a frame of its own: threads that share one wait for each other at
every layer while the reader or the writer has a core, which cost a small model a quarter of its speed.

libswscale (inside PyAV) resizes planes, our core turns them into the model's RGB and back. A frame
keeps its timestamp, an audio packet its bytes. The file gets its name when it is complete; until
then it is NAME.part, in fragments that play up to the last half second. See docs/video.md.
Reading is in video_in.py, writing in video_out.py, pictures to arrays and back in video_frames.py.
PyAV is imported there and in live.py, and only when they are used.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from . import images
from .errors import VideoError
from .video_frames import pyav
from .video_in import Audio, Frame, Options, Reader
from .video_out import ENCODERS, PRESETS, Output, check_target, sound_for

if TYPE_CHECKING:
    from .engine import Engine, Lanes

DEPTH = 4  # items between two threads
BLOCK = 16  # pixels; the unit in which `similar` compares frames


@dataclass
class VideoReport:
    """What happened to a clip. complete is False where the input ended early or was damaged."""

    frames: int = 0  # written
    translated: int = 0  # by the engine; the rest repeats
    repeats: int = 0  # exactly the frame before: not recomputed
    similar: int = 0  # within the threshold of the last translated one: not recomputed
    dropped: int = 0  # without a usable timestamp
    audio_packets: int = 0
    duration: float = 0.0  # seconds of film, the last frame included
    seconds: float = 0.0  # that it took
    complete: bool = True
    warnings: list[str] = field(default_factory=list)

    @property
    def fps(self) -> float:
        """Frames per second of work, end to end."""
        return self.frames / self.seconds if self.seconds else 0.0

    def warn(self, text: str) -> None:
        if text not in self.warnings and len(self.warnings) < 20:
            self.warnings.append(text)


Progress = Callable[[VideoReport, "int | None"], object]  # so far; frames in all, if known


def translate_video(
    engine: Engine,
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    start: float | None = None,
    end: float | None = None,
    fit: Literal["resize", "native"] = "resize",
    side_by_side: bool = False,
    similar: float = 0.0,
    deflicker: float = 0.0,
    audio: Literal["copy", "drop"] = "copy",
    codec: str = "h264",
    quality: int = 20,
    preset: str = "quick",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> VideoReport:
    """Translate a film, frame by frame, into an H.264 file with the same times and the same sound.

    src, dst: paths; dst ends in .mp4, .m4v, .mov or .mkv.
    start, end: seconds of src, counted from its beginning; what is kept begins at 0.
    fit: "resize" shows the model its own size and scales back; "native" gives it the full frame.
    side_by_side: source at the left, result at the right.
    similar: 0 recomputes all but exact repeats; above, a frame of which no 16x16 block differs by
        more than so many levels (0..255, on average) from the last translated one repeats that
        one's result, and is counted.
    deflicker: 0 is off; up to 1: how much of the last result stays where the input has not changed.
    audio: "copy" takes the packets as they are, "drop" leaves them out.
    codec, quality, preset: "h264" or "hevc", the encoder's constant rate factor and its preset, or
        "quick": for H.264, superfast in two thirds of its time, with 4 to 7 % more bytes. HEVC needs
        pictures of at least 64x64.
    progress: called with the report so far and the expected count of frames, in this thread.

    Errors: FileNotFoundError, FileExistsError; VideoError for what is no video or cannot be written;
    BackendUnavailable without PyAV; ValueError and TypeError for wrong arguments. dst is whole or
    not there.

    >>> translate_video(engine, "in.mp4", "out.mp4").frames
    250
    """
    source, target = _check_paths(src, dst, overwrite)
    _check(engine, start, end, fit, similar, deflicker, audio, codec, quality, preset)
    pyav()
    report = VideoReport()
    began = time.perf_counter()
    run = _Run(
        engine, source, target, report, Options(start, end, fit, side_by_side, audio == "copy")
    )
    encoder = (ENCODERS[codec], quality, preset)
    try:
        run.go(overwrite, _Reuse(similar, deflicker, report), encoder, progress, began)
    finally:
        report.seconds = time.perf_counter() - began
    return report


# Arguments


def _check_paths(src: Any, dst: Any, overwrite: bool) -> tuple[Path, Path]:
    for name, value in (("src", src), ("dst", dst)):
        if not isinstance(value, (str, os.PathLike)):
            raise TypeError(f"{name}: expected a path, got {type(value).__name__}")
        images.refuse_url(name, os.fsdecode(value))
    source, target = Path(os.fsdecode(src)), Path(os.fsdecode(dst))
    if not source.exists():
        raise FileNotFoundError(2, "No such file", str(source))
    if source.is_dir():
        raise VideoError(f"{source} is a folder; expected a video file (for pictures: translate)")
    if not source.is_file():  # films are opened more than once, to look ahead
        raise VideoError(f"{source} is a pipe or a device; expected a file: write the film to one first")
    check_target(target, overwrite)
    if target.exists() and source.samefile(target):
        raise ValueError(f"dst: {target} is src itself; give the result another name")
    return source, target


def _check(
    engine: Engine,
    start: float | None,
    end: float | None,
    fit: str,
    similar: float,
    deflicker: float,
    audio: str,
    codec: str,
    quality: int,
    preset: str,
) -> None:
    check_channels(engine)
    for name, value, known in (
        ("fit", fit, ("resize", "native")),
        ("audio", audio, ("copy", "drop")),
        ("codec", codec, tuple(ENCODERS)),
        ("preset", preset, PRESETS),
    ):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    for name, number, top in (
        ("start", start, 1e7),
        ("end", end, 1e7),
        ("similar", similar, 255.0),
        ("deflicker", deflicker, 1.0),
        ("quality", quality, 51.0),
    ):
        if number is None and name in ("start", "end"):
            continue
        if not 0 <= a_number(name, number) <= top:
            raise ValueError(f"{name}: expected 0 to {top:g}, got {number!r}")
    if end is not None and end <= (start or 0):
        raise ValueError(f"end: expected more than start ({start or 0:g} s), got {end:g} s")


def a_number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)


def check_channels(engine: Engine) -> None:
    facts = engine.info
    if facts["in_channels"] not in (1, 3) or facts["out_channels"] not in (1, 3):
        raise ValueError(
            f"engine: video needs a model of 1 or 3 channels, this one has "
            f"{facts['in_channels']} in and {facts['out_channels']} out"
        )


# The three threads


class Stopped(Exception):
    """Another thread failed or ended; leave quietly."""


class Pipe:
    """A bounded queue whose two ends notice that the work was called off."""

    def __init__(self, stop: threading.Event) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(DEPTH)
        self._stop = stop

    def put(self, item: Any) -> None:
        while not self._stop.is_set():
            with suppress(queue.Full):
                return self._queue.put(item, timeout=0.1)
        raise Stopped

    def get(self) -> Any:
        while not self._stop.is_set():
            with suppress(queue.Empty):
                return self._queue.get(timeout=0.1)
        raise Stopped


class _Run:
    """One clip: its reader thread, its writer thread, and the caller's thread between them."""

    def __init__(
        self, engine: Engine, source: Path, target: Path, report: VideoReport, options: Options
    ) -> None:
        self._engine, self._report, self._options = engine, report, options
        self._source, self._target = source, target
        self._stop = threading.Event()
        self._read, self._write = Pipe(self._stop), Pipe(self._stop)
        self._errors: list[BaseException] = []

    def go(
        self,
        overwrite: bool,
        reuse: _Reuse,
        encoder: tuple[str, int, str],
        progress: Progress | None,
        began: float,
    ) -> None:
        with Reader(self._source, self._engine, self._options, self._report) as reader:
            plan = reader.plan()
            sheet = 2 if self._options.side_by_side else 1
            audio, late_sound = sound_for(
                self._target, reader.audio, reader.silent, self._report.warn
            )
            output = Output(
                self._target,
                plan.height,
                plan.width * sheet,
                encoder=encoder,
                plan=plan,
                audio=audio,
                late_sound=late_sound,
                overwrite=overwrite,
                warn=self._report.warn,
            )
            threads = [
                threading.Thread(target=self._guard, args=job, daemon=True)
                for job in ((self._reading, reader), (self._writing, output))
            ]
            try:
                for thread in threads:
                    thread.start()
                with suppress(Stopped):
                    self._translating(reuse, reader.expected, progress, began)
                    threads[1].join()
            except BaseException as error:
                self._errors.append(error)
            finally:
                if self._errors:
                    self._stop.set()
                self._join(threads)
                if self._errors:
                    output.abandon()
            if self._errors:
                raise self._errors[0]
            if not self._report.frames:
                output.abandon()
                raise VideoError(
                    f"{self._source}: no frame could be decoded between start and end"
                    + (f"; it is {reader.length:.2f} s long" if reader.length else "")
                )
            output.finish()

    def _join(self, threads: list[threading.Thread]) -> None:
        """Wait for the threads whatever is pressed meanwhile: they are in the files, and end soon."""
        for thread in threads:
            while thread.is_alive():
                try:
                    thread.join()
                except KeyboardInterrupt as error:
                    self._errors.append(error)
                    self._stop.set()

    def _guard(self, work: Callable[[Any], None], subject: Any) -> None:
        try:
            work(subject)
        except Stopped:
            pass
        except BaseException as error:
            self._errors.append(error)
            self._stop.set()

    def _reading(self, reader: Reader) -> None:
        for item in reader.items():
            self._read.put(item)
        self._read.put(None)

    def _translating(
        self, reuse: _Reuse, expected: int | None, progress: Progress | None, began: float
    ) -> None:
        """Hand frames to the engine and results to the writer, in file order."""
        pending: deque[tuple[Any, Callable[[], np.ndarray] | None]] = deque()

        def pass_on() -> None:
            item, result = pending.popleft()
            if result is None:
                self._write.put(item)
                return
            self._write.put((item.pts, result(), item.source, item.duration))
            self._report.frames += 1
            if progress is not None:
                self._report.seconds = time.perf_counter() - began
                progress(self._report, expected)

        with self._engine.lanes() as lanes:
            # one more than there are lanes, so that none of them waits for the next
            ahead = lanes.count + (lanes.count > 1)
            while (item := self._read.get()) is not None:
                frame = isinstance(item, Frame)
                pending.append((item, reuse.result(item.model, lanes) if frame else None))
                while pending and (len(pending) > ahead or pending[0][1] is None):
                    pass_on()
            while pending:
                pass_on()
        self._write.put(None)

    def _writing(self, output: Output) -> None:
        try:
            while (item := self._write.get()) is not None:
                if isinstance(item, Audio):
                    self._report.audio_packets += output.sound(item.stream, item.packet)
                else:
                    output.picture(*item)
            output.flush()
        except BaseException:
            output.abandon()  # here, where no Ctrl-C comes in between
            raise


class _Reuse:
    """Which frames need no computing, and the filter against flicker."""

    def __init__(self, similar: float, deflicker: float, report: VideoReport) -> None:
        self._similar, self._deflicker, self._report = similar, deflicker, report
        self._input: np.ndarray | None = None  # of the last translated frame
        self._result: Callable[[], np.ndarray] | None = None

    def result(self, model: np.ndarray, lanes: Lanes) -> Callable[[], np.ndarray]:
        """What will give a frame's result; to be called in the order of the frames."""
        old, last = self._input, self._result
        same_shape = old is not None and old.shape == model.shape
        if old is not None and last is not None and same_shape:
            if np.array_equal(old, model):
                self._report.repeats += 1
                return last
            if self._similar > 0 and block_difference(old, model) <= self._similar:
                self._report.similar += 1
                return last
        made: Callable[[], np.ndarray] = lanes.submit(model).result
        self._report.translated += 1
        if self._deflicker and old is not None and last is not None and same_shape:
            made = _Steady(made, last, model, old, self._deflicker)
        self._input, self._result = model, made
        return made


class _Steady:
    """A result, steadied by the one before when it is asked for."""

    def __init__(
        self,
        made: Callable[[], np.ndarray],
        last: Callable[[], np.ndarray],
        model: np.ndarray,
        old: np.ndarray,
        strength: float,
    ) -> None:
        self._parts: Any = (made, last, model, old, strength)
        self._result: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        if self._result is None:
            made, last, model, old, strength = self._parts
            self._result = steady(made(), last(), model, old, strength)
            self._parts = None  # else every frame would hold on to the one before
        return self._result


def block_difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest mean difference, in levels, of any 16x16 block of two (h, w[, c]) pictures."""
    levels = np.maximum(a, b) - np.minimum(a, b)
    for axis in (0, 1):
        starts = np.arange(0, levels.shape[axis], BLOCK)
        lengths = np.diff(np.append(starts, levels.shape[axis]))
        shape = [1] * levels.ndim
        shape[axis] = len(starts)
        levels = np.add.reduceat(levels, starts, axis, np.float32) / lengths.reshape(shape)
    return float(levels.max())


def steady(
    result: np.ndarray, last: np.ndarray, model: np.ndarray, old: np.ndarray, strength: float
) -> np.ndarray:
    """result + w (last - result), w = strength where the 5x5 surroundings of a pixel have not
    changed in the input, falling to 0 at 12 levels of change: what moves stays sharp."""
    moved = np.abs(model.astype(np.float32) - old)
    if moved.ndim == 3:
        moved = moved.max(axis=2)
    for axis in (0, 1):  # a box of 5, so that the camera's noise is no movement
        around = np.pad(moved, [(2, 2) if axis == k else (0, 0) for k in (0, 1)], "edge")
        moved = np.lib.stride_tricks.sliding_window_view(around, 5, axis).mean(axis=-1)
    weight = strength * np.clip(1 - moved / 12, 0, 1)
    if result.ndim == 3:
        weight = weight[:, :, None]
    mixed = result + weight * (last.astype(np.float32) - result)
    rounded: np.ndarray = np.rint(mixed).astype(np.uint8)
    return rounded
