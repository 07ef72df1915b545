"""A live source: a camera, or a file played at its own rate. The newest frame wins.

    reader thread --one slot, a newer frame replaces the one in it--> the caller's thread, which
    translates --4 results--> writer thread, if it is recorded

At most two frames exist between the source and the result: the one in the slot and the one that is
being translated. Every frame that the source gave is either translated or counted as dropped. A
source that fails or says nothing for `stall` seconds is reported and opened again, with growing
pauses. There is no window: `serve` shows a camera in the browser. See docs/video.md.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from . import images
from .errors import VideoError
from .video import Pipe, Stopped, a_number, check_channels
from .video_frames import Converter, pyav, said
from .video_in import demuxed, open_clip, pick_video
from .video_out import ENCODERS, Output, Plan, check_target
from .video_times import Clock, FrameTimes

if TYPE_CHECKING:
    from .engine import Engine

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each attempt to open a lost source again
RECENT = 20_000  # frames whose ages are kept for the percentiles
MILLISECOND = Fraction(1, 1000)


class Shot(NamedTuple):
    """A frame as the source gave it, and when (time.perf_counter)."""

    at: float
    frame: Any  # a PyAV frame, or (h, w, 3) uint8
    aspect: Fraction | None = None  # of one pixel, where it is not square


class Source(Protocol):
    """Where frames come from. `shots` opens it and yields until it ends; it may block for ever,
    and what it yields after `stop` is set is ignored. lasting: an end or silence of it is a loss, and
    a lost one is opened again; else silence is a gap in a film, and a failure is the end."""

    name: str
    lasting: bool

    def shots(self, stop: threading.Event) -> Iterator[Shot]: ...


@dataclass
class LiveReport:
    """What happened. captured == translated + dropped once it has ended."""

    captured: int = 0  # frames that the source gave
    translated: int = 0
    dropped: int = 0  # replaced by a newer one, or left when it ended
    deepest: int = 0  # frames between source and result at once, the most there were
    recorded: int = 0
    reconnections: int = 0
    seconds: float = 0.0
    ended: str = ""  # "source ended", "time is up", "interrupted", "stopped"; "" while it runs
    warnings: list[str] = field(default_factory=list)
    ages: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT), repr=False)

    @property
    def fps(self) -> float:
        """Translated frames per second."""
        return self.translated / self.seconds if self.seconds else 0.0

    def age_ms(self, *percents: float, last: int = RECENT) -> list[float]:
        """Percentiles of the frames' age: milliseconds from the camera's frame to its result, of
        the last frames only. NaN before the first."""
        recent = list(self.ages)[-last:]
        if not recent:
            return [float("nan")] * len(percents)
        return [float(value) * 1e3 for value in np.percentile(recent, percents)]

    def warn(self, text: str) -> None:
        if len(self.warnings) < 100:
            self.warnings.append(text)


def live(
    engine: Engine,
    source: Source,
    *,
    mirror: bool = False,
    record: str | os.PathLike[str] | None = None,
    seconds: float | None = None,
    retries: int = 3,
    stall: float = 3.0,
    codec: str = "h264",
    quality: int = 20,
    overwrite: bool = False,
    stop: threading.Event | None = None,
    show: Callable[[np.ndarray, LiveReport], object] | None = None,
    notice: Callable[[str], object] | None = None,
    report: LiveReport | None = None,
) -> LiveReport:
    """Translate a live source until it ends, `seconds` are over, `stop` is set, or Ctrl-C.

    source: a Camera, a File, or anything like them.
    mirror: left and right change sides before the model sees the frame.
    record: path of a film (.mp4, .m4v, .mov, .mkv) of the results at the source's size; a frame has
        the time at which the source gave it. The name appears when the film is whole.
    retries: how often in a row a lost source is opened again (0.5, 1, 2, ... up to 8 s of pause); a
        source that fails at its first opening is not.
    stall: seconds without a frame after which a source counts as lost.
    show: called with each result (h, w[, 3] uint8 at the model's size) and the report so far.
    notice: called at once with each warning.
    report: to be filled, for who wants the figures of a run that fails.

    Errors: VideoError when the source cannot be opened or is lost for good, or the disk is full (a
    recording is kept, as NAME.part where the disk is full);
    FileExistsError; BackendUnavailable without PyAV; ValueError and TypeError for wrong arguments.
    Ctrl-C is no error here: it ends the work.
    """
    check_channels(engine)
    if not isinstance(retries, int) or not 0 <= retries <= 1_000_000:
        raise ValueError(f"retries: expected 0 to 1000000, got {retries!r}")
    if not 0.1 <= a_number("stall", stall) <= 3600:
        raise ValueError(f"stall: expected 0.1 to 3600 seconds, got {stall!r}")
    if seconds is not None and not 0 < a_number("seconds", seconds) <= 1e9:
        raise ValueError(f"seconds: expected more than 0, got {seconds!r}")
    if codec not in ENCODERS:
        raise ValueError(f"codec: expected one of {', '.join(ENCODERS)}, got {codec!r}")
    if not 0 <= a_number("quality", quality) <= 51:
        raise ValueError(f"quality: expected 0 to 51, got {quality!r}")
    recorder = None
    if record is not None:
        images.refuse_url("record", os.fsdecode(record))
        target = Path(os.fsdecode(record))
        check_target(target, overwrite)
        if isinstance(source, File) and target.exists() and source.path.samefile(target):
            raise ValueError(f"record: {target} is the source itself; give the recording another name")
        recorder = _Recorder(target, (ENCODERS[codec], quality, "quick"), overwrite)
    pyav()
    report = LiveReport() if report is None else report
    run = _Run(engine, source, mirror, recorder, report, stop or threading.Event(), show, notice)
    began = time.perf_counter()
    run.end = None if seconds is None else began + seconds
    try:
        run.go(retries, stall)
    except KeyboardInterrupt:
        report.ended = "interrupted"
    finally:
        report.seconds = time.perf_counter() - began
        if damaged := getattr(source, "damaged", 0):
            run.warn(f"{source.name}: {damaged} damaged packets were skipped")
        if recorder is not None:
            report.recorded = recorder.finish()
    return report


class _Lost(Exception):
    """The source failed, ended or went silent."""


class _Connection:
    """One opening of the source: a thread that keeps its newest frame in a slot."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._stop = threading.Event()
        self._change = threading.Condition()
        self._shot: Shot | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._heard = time.perf_counter()  # of the source, last
        self.captured = 0
        self.dropped = 0
        self.done = 0  # translated, as the taker counts
        self.deepest = 0
        # a daemon: a camera's driver may never return from a read
        threading.Thread(target=self._read, name="pix2pix_fast.live", daemon=True).start()

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for shot in self._source.shots(self._stop):
                with self._change:
                    if self._stop.is_set():
                        return
                    self.captured += 1
                    self.dropped += self._shot is not None
                    self._shot = shot
                    self.deepest = max(self.deepest, self.captured - self.dropped - self.done)
                    self._heard = time.perf_counter()
                    self._change.notify()
        except BaseException as failure:
            error = failure
        with self._change:
            self._ended, self._error = True, error
            self._change.notify()

    def take(self, stall: float, wake: float) -> Shot | None:
        """The newest frame; None at `wake`, or when nothing more will come of a source that ends.

        Raises _Lost after `stall` seconds without one, or when the source is gone."""
        with self._change:
            while self._shot is None and not self._ended:
                now = time.perf_counter()
                if self._source.lasting and now - self._heard >= stall:
                    raise _Lost(f"no frame for {stall:g} s")
                if now >= wake:
                    return None
                # short waits: a signal is seen only between them on some systems
                self._change.wait(min(0.1, max(0.01, self._heard + stall - now), wake - now))
            if self._shot is not None:
                shot, self._shot = self._shot, None
                return shot
        if self._error is not None:
            raise _Lost(said(self._error)) from self._error
        if self._source.lasting:
            raise _Lost("it ended")
        return None

    @property
    def over(self) -> bool:
        with self._change:
            return self._ended and self._shot is None

    def close(self) -> None:
        """Nothing that comes from now on counts; a frame in the slot was dropped."""
        with self._change:
            self._stop.set()
            self.dropped += self._shot is not None
            self._shot = None


class _Run:
    def __init__(
        self,
        engine: Engine,
        source: Source,
        mirror: bool,
        recorder: _Recorder | None,
        report: LiveReport,
        stop: threading.Event,
        show: Callable[[np.ndarray, LiveReport], object] | None,
        notice: Callable[[str], object] | None,
    ) -> None:
        self._engine, self._source, self._mirror = engine, source, mirror
        self._recorder, self._report, self._stop = recorder, report, stop
        self._show, self._notice = show, notice
        self._convert = Converter()
        self._began = time.perf_counter()
        self.end: float | None = None

    def go(self, retries: int, stall: float) -> None:
        failures, seen = 0, False
        while not self._report.ended:
            before = self._report.translated
            try:
                self._connected(stall)
            except _Lost as lost:
                if self._report.translated > before:
                    failures, seen = 0, True
                text = f"{self._source.name}: {str(lost).removeprefix(f'{self._source.name} ')}"
                if not self._source.lasting or not seen or failures >= retries:
                    after = f"; gave up after {failures} attempts to open it again" * (failures > 0)
                    raise VideoError(f"{text}{after}") from lost
                pause = PAUSES[min(failures, len(PAUSES) - 1)]
                failures += 1
                self._report.reconnections += 1
                self.warn(f"{text}; attempt {failures} of {retries} in {pause:g} s")
                left = pause if self.end is None else self.end - time.perf_counter()
                if self._stop.wait(max(0.0, min(pause, left))):
                    self._report.ended = "stopped"
                elif left < pause:
                    self._report.ended = "time is up"

    def _connected(self, stall: float) -> None:
        connection = _Connection(self._source)
        report = self._report
        captured, dropped = report.captured, report.dropped
        in_work = 0

        def count() -> None:
            report.captured = captured + connection.captured
            report.dropped = dropped + connection.dropped + in_work
            report.deepest = max(report.deepest, connection.deepest)
            report.seconds = time.perf_counter() - self._began

        try:
            while not report.ended:
                if self._stop.is_set():
                    report.ended = "stopped"
                elif self.end is not None and time.perf_counter() >= self.end:
                    report.ended = "time is up"
                elif (shot := connection.take(stall, time.perf_counter() + 0.2)) is not None:
                    in_work = 1
                    result = self._translate(shot)
                    report.translated += 1
                    connection.done += 1
                    in_work = 0
                    report.ages.append(time.perf_counter() - shot.at)
                    if self._recorder is not None:
                        self._recorder.put(shot, result, self.warn)
                    count()
                    if self._show is not None:
                        self._show(result, report)
                elif connection.over and not self._source.lasting:
                    report.ended = "source ended"
        finally:
            connection.close()
            count()

    def _translate(self, shot: Shot) -> np.ndarray:
        channels, (h, w) = self._engine.info["in_channels"], self._engine.info["size"]
        if isinstance(shot.frame, np.ndarray):
            picture = shot.frame
            if picture.shape != (h, w, 3)[: 2 if channels == 1 else 3]:
                picture = self._convert.resized(picture, h, w, channels)
        else:
            picture = self._convert.array(shot.frame, channels, (h, w))
        result: np.ndarray = self._engine.translate(picture[:, ::-1] if self._mirror else picture)
        return result

    def warn(self, text: str) -> None:
        self._report.warn(text)
        if self._notice is not None:
            self._notice(text)


class _Recorder:
    """Results to a film, in a thread of its own; times are the source's."""

    def __init__(self, target: Path, encoder: tuple[str, int, str], overwrite: bool) -> None:
        self._target, self._encoder, self._overwrite = target, encoder, overwrite
        self._stop = threading.Event()
        self._pipe = Pipe(self._stop)
        self._thread: threading.Thread | None = None
        self._output: Output | None = None
        self._error: BaseException | None = None
        self._first = 0.0
        self._last = -1
        self._count = 0

    def put(self, shot: Shot, result: np.ndarray, warn: Callable[[str], None]) -> None:
        if self._thread is None:
            frame = shot.frame
            array = isinstance(frame, np.ndarray)
            height, width = frame.shape[:2] if array else Converter().upright_size(frame)
            aspect = shot.aspect
            if aspect and not array and Converter().orientation(frame)[0]:
                aspect = 1 / aspect
            plan = Plan(height, width, MILLISECOND, Fraction(30), aspect, 1, 1)
            self._output = Output(
                self._target,
                height,
                width,
                encoder=self._encoder,
                plan=plan,
                overwrite=self._overwrite,
                keep=True,
                warn=warn,
            )
            self._first = shot.at
            self._thread = threading.Thread(target=self._write, args=(self._output,), daemon=True)
            self._thread.start()
        # two frames within a millisecond cannot have the same time
        pts = self._last = max(self._last + 1, round((shot.at - self._first) * 1000))
        try:
            self._pipe.put((pts, result))
        except Stopped:
            raise self._error or VideoError(f"{self._target}: recording stopped") from None

    def _write(self, output: Output) -> None:
        try:
            while (item := self._pipe.get()) is not None:
                output.picture(*item)
                self._count += 1
            output.flush()
        except Stopped:
            pass
        except BaseException as error:
            self._error = error
            self._stop.set()

    def finish(self) -> int:
        """Close the film and give it its name; the count of its frames."""
        if self._thread is None or self._output is None:
            return 0
        with suppress(Stopped):
            self._pipe.put(None)
        self._thread.join()
        if self._error is not None:
            self._output.abandon()
            raise self._error
        self._output.finish()
        return self._count


# Sources


class _Decoder:
    """What sources share that decode."""

    damaged = 0  # packets

    def _decoded(self, video: Any, packet: Any) -> list[Any]:
        """A packet's frames; none of a damaged one, as the next may be whole."""
        try:
            return list(video.decode(packet))
        except (pyav().FFmpegError, ValueError):
            self.damaged += 1
            return []


class Camera(_Decoder):
    """A camera of this machine through FFmpeg's devices: Video4Linux, AVFoundation, DirectShow.

    device: a number, a path such as /dev/video2, or a name as the system lists it.
    size: (width, height) and rate: frames per second, to ask of it; None leaves both to the driver.
    """

    lasting = True

    def __init__(
        self,
        device: int | str = 0,
        *,
        size: tuple[int, int] | None = None,
        rate: float | None = None,
    ) -> None:
        images.refuse_url("camera", str(device))
        number = str(device).isdigit()
        if sys.platform == "darwin":
            self._format, self._device = "avfoundation", f"{device}:none"
        elif sys.platform == "win32":
            self._format = "dshow"
            self._device = f"video={_windows_camera(int(device)) if number else device}"
        else:
            self._format = "v4l2"
            self._device = f"/dev/video{device}" if number else str(device)
        self.name = f"camera {device}"
        self._options: dict[str, str] = {}
        if size is not None:
            self._options["video_size"] = f"{size[0]}x{size[1]}"
        if rate is not None:
            self._options["framerate"] = f"{rate:g}"

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        av = pyav()
        if self._format == "v4l2" and not Path(self._device).exists():
            there = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*")))
            raise VideoError(f"there is no {self._device} (cameras here: {there or 'none'})")
        try:
            container = av.open(self._device, format=self._format, options=self._options)
        except PermissionError:
            raise VideoError(
                f"{self._device} may not be opened; is this user in the group that owns it?"
            ) from None
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{self._device} cannot be opened: {said(error)}") from error
        with container:
            video = pick_video(container, self.name)
            video.thread_type = "SLICE"  # threads by frames would hold frames back
            for packet in container.demux(video):
                at = time.perf_counter()  # before it is decoded
                for frame in self._decoded(video, packet):
                    if stop.is_set():
                        return
                    yield Shot(at, frame, video.sample_aspect_ratio)


def _windows_camera(index: int) -> str:
    """DirectShow knows cameras by name only."""
    try:
        from av.device import enumerate_input_devices
    except ImportError:
        raise VideoError("this PyAV cannot list cameras; give the camera's name instead") from None
    names = [device.name for device in enumerate_input_devices("dshow")]
    if index >= len(names):
        raise VideoError(f"there is no camera {index}; this machine lists {names}")
    return str(names[index])


class File(_Decoder):
    """A film played at its own rate, as a camera would show it."""

    lasting = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        images.refuse_url("file", os.fsdecode(path))
        self.path = Path(os.fsdecode(path))
        self.name = str(self.path)
        if not self.path.exists():
            raise FileNotFoundError(2, "No such file", self.name)

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        with open_clip(self.path) as container:
            video = pick_video(container, self.name)
            base = video.time_base or MILLISECOND
            clock, times = Clock(Fraction(0)), FrameTimes(container.format.name)
            step = 1 / Fraction(video.guessed_rate or 25)  # of a film without times
            start, due = None, -step
            for packet in demuxed(container, video):
                if packet.size:
                    clock.move(packet)
                for frame in self._decoded(video, packet):
                    ticks = times.of(frame)
                    due = due + step if ticks is None else ticks * base
                    if start is None:
                        start = time.perf_counter() - float(due)
                    if stop.wait(max(0.0, start + float(due) - time.perf_counter())):
                        return
                    yield Shot(time.perf_counter(), frame, video.sample_aspect_ratio)
