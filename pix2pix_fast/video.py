"""Films: decode, translate and encode, overlapping, with the clip's own timestamps and sound.

    reader thread --4 items--> the caller's thread --> engine threads --4 items--> writer thread

On a CPU every engine thread has a frame of its own: threads that share one wait for each other at
every layer while the reader or the writer has a core, which cost a small model a quarter of its speed.

libswscale (inside PyAV) resizes planes, our core turns them into the model's RGB and back. A frame
keeps its timestamp, an audio packet its bytes. The file gets its name when it is complete; until
then it is NAME.part, in fragments that play up to the last half second. See docs/video.md.
PyAV is imported here and in live.py, and only when they are used.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from . import _core, images
from .errors import BackendUnavailable, VideoError

if TYPE_CHECKING:
    from .engine import Engine, Lanes

DEPTH = 4  # items between two threads
BLOCK = 16  # pixels; the unit in which `similar` compares frames
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
ENCODERS = {"h264": "libx264", "hevc": "libx265"}
# "quick" is ours: the encoder works beside the engine, on the same cores. docs/video.md has its cost.
PRESETS = (
    "quick", "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
)  # fmt: skip
QUICK = {
    "libx264": {"preset": "superfast", "x264-params": "cabac=0:partitions=none:weightp=0"},
    "libx265": {"preset": "superfast"},
}
# Of input: real containers. Playlists and scripts, which name other files, are not among them.
FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,gif,asf,nut,ivf,mxf,yuv4mpegpipe,h264,hevc,"
    "m4v,wav,mp3,flac,aac,mjpeg,dv,rm,apng,av1,obu,3gp"
)
BT601, BT709, LIMITED, FULL = 5, 1, 1, 2  # libswscale's numbers


@dataclass
class VideoReport:
    """What happened to a clip. complete is False where the input ended early or was damaged."""

    frames: int = 0  # written
    translated: int = 0  # by the engine; the rest repeats
    repeats: int = 0  # exactly the frame before: not recomputed
    similar: int = 0  # within the threshold of the last translated one: not recomputed
    dropped: int = 0  # without a usable timestamp
    audio_packets: int = 0
    duration: float = 0.0  # seconds of film, first to last frame
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


class _Frame(NamedTuple):
    pts: int
    model: np.ndarray  # (h, w[, 3]) uint8, what the engine gets
    source: np.ndarray | None  # (H, W, 3) uint8, upright, for side by side


class _Audio(NamedTuple):
    stream: int  # index in the input
    packet: Any


class Plan(NamedTuple):
    """What the reader knows once the first frame is there."""

    height: int  # upright
    width: int
    time_base: Fraction
    rate: Fraction
    aspect: Fraction | None
    primaries: int
    transfer: int


def pyav() -> Any:
    """PyAV, or one sentence on how to get it."""
    try:
        import av
    except ImportError as error:
        raise BackendUnavailable(
            f"video needs PyAV ({error}): pip install 'pix2pix_fast[video]'"
        ) from error
    av.logging.set_level(None)
    return av


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
        "quick": for H.264, superfast in two thirds of its time, with 4 to 7 % more bytes.
    progress: called with the report so far and the expected count of frames, in this thread.

    Errors: FileNotFoundError, FileExistsError; VideoError for what is no video or cannot be written;
    BackendUnavailable without PyAV; ValueError and TypeError for wrong arguments. dst is whole or
    not there.

    >>> translate_video(engine, "in.mp4", "out.mp4").frames               # doctest: +SKIP
    250
    """
    source, target = _check_paths(src, dst, overwrite)
    _check(engine, start, end, fit, similar, deflicker, audio, codec, quality, preset)
    pyav()
    report = VideoReport()
    began = time.perf_counter()
    run = _Run(
        engine, source, target, report, _Options(start, end, fit, side_by_side, audio == "copy")
    )
    encoder = (ENCODERS[codec], quality, preset)
    try:
        run.go(_Reuse(similar, deflicker, report), encoder, progress, began)
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
        raise VideoError(f"{source} is a folder; expected a video file")
    check_target(target, overwrite)
    if target.exists() and source.samefile(target):
        raise ValueError(f"dst: {target} is src itself; give the result another name")
    return source, target


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse, before any work, a result that could not be written."""
    if target.suffix.lower() not in CONTAINERS:
        raise ValueError(
            f"{target}: expected a name that ends in {' '.join(CONTAINERS)}, such as "
            f"{target.stem or 'out'}.mp4"
        )
    if target.is_dir():
        raise VideoError(f"{target} is a folder; expected the name of a video file")
    if target.exists() and not overwrite:
        raise FileExistsError(17, "File exists (overwrite replaces it)", str(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(2, "No such folder; make it first", str(target.parent))
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(13, "Permission denied", str(target.parent))


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
        if number is not None and not 0 <= number <= top:
            raise ValueError(f"{name}: expected 0 to {top:g}, got {number!r}")
    if end is not None and end <= (start or 0):
        raise ValueError(f"end: expected more than start ({start or 0:g} s), got {end:g} s")


def check_channels(engine: Engine) -> None:
    facts = engine.info
    if facts["in_channels"] not in (1, 3) or facts["out_channels"] not in (1, 3):
        raise ValueError(
            f"engine: video needs a model of 1 or 3 channels, this one has "
            f"{facts['in_channels']} in and {facts['out_channels']} out"
        )


# The three threads


class _Options(NamedTuple):
    start: float | None
    end: float | None
    fit: str
    side_by_side: bool
    sound: bool


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
        self, engine: Engine, source: Path, target: Path, report: VideoReport, options: _Options
    ) -> None:
        self._engine, self._report, self._options = engine, report, options
        self._source, self._target = source, target
        self._stop = threading.Event()
        self._read, self._write = Pipe(self._stop), Pipe(self._stop)
        self._errors: list[BaseException] = []

    def go(
        self,
        reuse: _Reuse,
        encoder: tuple[str, int, str],
        progress: Progress | None,
        began: float,
    ) -> None:
        with _Reader(self._source, self._engine, self._options, self._report) as reader:
            plan = reader.plan()
            sheet = 2 if self._options.side_by_side else 1
            output = Output(
                self._target,
                plan.height,
                plan.width * sheet,
                encoder=encoder,
                plan=plan,
                audio=reader.audio,
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
                for thread in threads:
                    thread.join()
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

    def _guard(self, work: Callable[[Any], None], subject: Any) -> None:
        try:
            work(subject)
        except Stopped:
            pass
        except BaseException as error:
            self._errors.append(error)
            self._stop.set()

    def _reading(self, reader: _Reader) -> None:
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
            self._write.put((item.pts, result(), item.source))
            self._report.frames += 1
            if progress is not None:
                self._report.seconds = time.perf_counter() - began
                progress(self._report, expected)

        with self._engine.lanes() as lanes:
            # one more than there are lanes, so that none of them waits for the next
            ahead = lanes.count + (lanes.count > 1)
            while (item := self._read.get()) is not None:
                frame = isinstance(item, _Frame)
                pending.append((item, reuse.result(item.model, lanes) if frame else None))
                while pending and (len(pending) > ahead or pending[0][1] is None):
                    pass_on()
            while pending:
                pass_on()
        self._write.put(None)

    def _writing(self, output: Output) -> None:
        while (item := self._write.get()) is not None:
            if isinstance(item, _Audio):
                output.sound(item.stream, item.packet)
                self._report.audio_packets += 1
            else:
                output.picture(*item)
        output.flush()


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


# Pictures in and out of libswscale


class Converter:
    """Decoded frames -> upright RGB or gray arrays; one per thread, as it holds scaler contexts.

    libswscale resizes planes, our core turns them into RGB and back: exact, and twice as fast as
    libswscale's own exact conversion (256x256: 0.17 ms for 0.38, 0.15 for 0.33, on an AVX2 EPYC)."""

    def __init__(self) -> None:
        from av import VideoFrame
        from av.video.reformatter import Interpolation, VideoReformatter

        self._new: Any = VideoReformatter
        self._blank: Any = VideoFrame
        self._scalers: dict[Any, Any] = {}
        self._turns: dict[int, tuple[bool, bool, bool]] = {}
        # Without the two flags chroma is halved again on its way and grays come out tinted.
        self._flags = Interpolation.BILINEAR | Interpolation.ACCURATE_RND
        self._exact = self._flags | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP

    def _scale(self, frame: Any, key: Any, **options: Any) -> Any:
        scaler = self._scalers.get(key)
        if scaler is None:
            scaler = self._scalers[key] = self._new()
        return scaler.reformat(frame, threads=1, **options)

    def orientation(self, frame: Any) -> tuple[bool, bool, bool]:
        """(transpose, then mirror left-right, then top-bottom) that makes a frame upright.

        Looked up once for each rotation that a clip has: a frame whose side_data was asked for is a
        cycle of references in PyAV and stays until the garbage collector comes (100 KB each)."""
        turn = self._turns.get(frame.rotation)
        if turn is None:
            turn = self._turns[frame.rotation] = orientation(frame)
        return turn

    def upright_size(self, frame: Any) -> tuple[int, int]:
        """(h, w) of a frame once it is upright."""
        size = (frame.height, frame.width)
        return size[::-1] if self.orientation(frame)[0] else size

    def array(self, frame: Any, channels: int, size: tuple[int, int] | None) -> np.ndarray:
        """(h, w) or (h, w, 3) uint8, full range, upright; size is (h, w), None the frame's own."""
        transposed, flip_x, flip_y = self.orientation(frame)
        h, w = size or self.upright_size(frame)
        if transposed:
            h, w = w, h
        kind = frame.format
        if kind.is_rgb or len(kind.components) < 3:
            array = self._from_rgb(frame, channels, h, w)
        else:
            array = self._from_yuv(frame, channels, h, w)
        if transposed:
            array = array.swapaxes(0, 1)
        if flip_x:
            array = array[:, ::-1]
        if flip_y:
            array = array[::-1]
        return np.ascontiguousarray(array)

    def _from_yuv(self, frame: Any, channels: int, h: int, w: int) -> np.ndarray:
        matrix, full = colours(frame)
        if frame.format.name not in PLANAR or (frame.height, frame.width) != (h, w):
            frame = self._scale(  # another size and subsampling: values keep matrix and range
                frame,
                (frame.format.name, frame.height, frame.width, h, w),
                width=w,
                height=h,
                format="yuv444p",
                interpolation=self._flags,
                src_colorspace=BT709,
                dst_colorspace=BT709,
                src_color_range=LIMITED,
                dst_color_range=LIMITED,
            )
        array = np.empty((h, w, 3)[: 2 if channels == 1 else 3], np.uint8)
        planes = frame.planes
        strides = [plane.line_size for plane in planes[:3]]
        chroma = PLANAR[frame.format.name]
        _core.yuv_to_rgb(planes[:3], strides, chroma, MATRICES[matrix], full, array)
        return array

    def _from_rgb(self, frame: Any, channels: int, h: int, w: int) -> np.ndarray:
        kind = "gray" if channels == 1 else "rgb24"
        matrix, full = colours(frame)
        made = self._scale(
            frame,
            (h, w, kind),
            width=w,
            height=h,
            format=kind,
            interpolation=self._exact,
            src_colorspace=matrix,
            src_color_range=FULL if full else LIMITED,
            dst_color_range=FULL,
        )
        array: np.ndarray = made.to_ndarray()
        return array

    def resized(self, picture: np.ndarray, h: int, w: int) -> np.ndarray:
        """A uint8 picture as (h, w, 3)."""
        made = self._scale(
            self._frame(picture),
            ("resize", picture.shape),
            width=w,
            height=h,
            format="rgb24",
            interpolation=self._exact,
        )
        array: np.ndarray = made.to_ndarray()
        return array

    def yuv(self, picture: np.ndarray, h: int, w: int) -> Any:
        """A uint8 picture as an (h, w) frame for the encoder: BT.709, limited range, 4:2:0."""
        if picture.shape[:2] == (h, w):
            frame = self._blank(w, h, "yuv420p")
            strides = [plane.line_size for plane in frame.planes]
            picture = np.ascontiguousarray(picture)
            _core.rgb_to_yuv(picture, frame.planes, strides, (1, 1), MATRICES[BT709], False)
        else:  # resizing and converting in one step: faster than resizing three full planes
            frame = self._scale(
                self._frame(picture),
                ("yuv", picture.shape, h, w),
                width=w,
                height=h,
                format="yuv420p",
                interpolation=self._flags,
                dst_colorspace=BT709,
                src_color_range=FULL,
                dst_color_range=LIMITED,
            )
        frame.colorspace, frame.color_range = BT709, LIMITED
        return frame

    @staticmethod
    def _frame(picture: np.ndarray) -> Any:
        from av import VideoFrame

        return VideoFrame.from_ndarray(picture, "gray" if picture.ndim == 2 else "rgb24")


PLANAR = {  # 8-bit formats of three planes -> how often (x, y) chroma is halved
    f"{kind}{sampling}p": halves
    for kind in ("yuv", "yuvj")
    for sampling, halves in (("420", (1, 1)), ("422", (1, 0)), ("440", (0, 1)), ("444", (0, 0)))
}
MATRICES = {  # libswscale's numbers -> (kr, kb)
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}


def colours(frame: Any) -> tuple[int, bool]:
    """(matrix in libswscale's numbers, full range) of a frame; unsaid: BT.709 from 720 lines."""
    known = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
    unsaid = BT709 if frame.height >= 720 or frame.width >= 1280 else BT601
    full = frame.color_range == FULL or frame.format.name.startswith("yuvj")
    return known.get(int(frame.colorspace), unsaid), full


def orientation(frame: Any) -> tuple[bool, bool, bool]:
    """As Converter.orientation, from the frame's display matrix."""
    with suppress(Exception):
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is not None:
            a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), np.int32)[:5])
            if abs(a) + abs(d) >= abs(b) + abs(c):
                return False, a < 0, d < 0
            return True, c < 0, b < 0
    return False, False, False


# In


def _decimal(seconds: float) -> Fraction:
    """What the caller wrote: 0.2 is a fifth, although the float is a little more."""
    return Fraction(str(float(seconds)))


class _Reader:
    """A clip's frames and audio packets, in file order."""

    def __init__(
        self, source: Path, engine: Engine, options: _Options, report: VideoReport
    ) -> None:
        self._source, self._options, self._report = source, options, report
        self._channels = engine.info["in_channels"]
        self._size = engine.info["size"] if options.fit == "resize" else None
        self._container = open_clip(source)
        try:
            self._video = pick_video(self._container, str(source))
            self._convert = Converter()
            self._origin = Fraction(self._container.start_time or 0, 1_000_000)
            streams = self._container.streams
            self.audio = list(streams.audio) if options.sound else []
            rest = [s.type for s in streams if s.type not in ("video", "audio")]
            if rest:
                report.warn(f"left out: {', '.join(sorted(set(rest)))} streams")
            if sum(s.type == "video" for s in streams) > 1:
                report.warn("only the first video stream is translated")
            self._decoded = self._decode()
            self._held: list[Any] = []  # decoded while looking for the first frame
        except BaseException:
            self._container.close()
            raise
        self._first_shape: tuple[int, int] | None = None

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoded.close()  # type: ignore[attr-defined]
        self._container.close()

    @property
    def expected(self) -> int | None:
        """How many frames there may be; None where the file does not say."""
        start, end = self._options.start or 0.0, self._options.end
        rate = self._video.average_rate
        length = self.length
        if start == 0 and end is None and self._video.frames:
            return int(self._video.frames)
        if not rate or (length is None and end is None):
            return None
        last = min(x for x in (length, end) if x is not None)
        return max(1, round((last - start) * float(rate)))

    @property
    def length(self) -> float | None:
        """Seconds, where the file says so."""
        if self._video.duration and self._video.time_base:
            return float(self._video.duration * self._video.time_base)
        if self._container.duration:
            return float(self._container.duration / 1e6)
        return None

    def plan(self) -> Plan:
        """Decode up to the first frame."""
        for item in self._decoded:
            self._held.append(item)
            if not isinstance(item, _Audio):
                break
        else:
            what = "; ".join(self._report.warnings)
            raise VideoError(
                f"{self._source}: no frame could be decoded" + (f" ({what})" if what else "")
            )
        frame = self._held[-1]
        height, width = self._convert.upright_size(frame)
        images.check_size(height, width, "src: a frame")
        self._first_shape = (height, width)
        aspect = self._video.sample_aspect_ratio
        if aspect and self._convert.orientation(frame)[0]:
            aspect = 1 / aspect
        primaries, transfer = int(frame.color_primaries), int(frame.color_trc)
        if transfer in (16, 18):
            self._report.warn("the source is HDR; its transfer curve is copied, not converted")
        rate = self._video.average_rate or self._video.guessed_rate or Fraction(25)
        known = [1 if value in (0, 2, 3) else value for value in (primaries, transfer)]
        base = self._video.time_base or Fraction(1, 90000)
        return Plan(height, width, base, Fraction(rate), aspect, *known)

    def _decode(self) -> Iterator[Any]:
        """Frames as PyAV gives them and audio packets; damage becomes warnings."""
        av, start = pyav(), self._options.start
        video, wanted = self._video, {stream.index for stream in self.audio}
        video.thread_type = "AUTO"
        video.thread_count = 1 if video.width * video.height < 600_000 else 0
        if start:
            with suppress(av.FFmpegError):
                self._container.seek(int((start + float(self._origin)) * 1e6), backward=True)
        bad = 0
        packets = self._container.demux(video, *self.audio)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.FFmpegError, OSError) as error:
                self._damage(f"reading stopped: {said(error)}")
                packet = None
            if packet is not None and packet.stream.index in wanted:
                if packet.dts is not None or packet.size:
                    yield _Audio(packet.stream.index, packet)
                continue
            try:
                frames = video.decode(packet)
            except (av.FFmpegError, ValueError) as error:
                bad += 1
                self._damage(f"damaged frames skipped ({said(error)})")
                if bad > 10_000:
                    return
                frames = []
            yield from frames
            if packet is None:
                return

    def _damage(self, text: str) -> None:
        self._report.complete = False
        self._report.warn(text)

    def items(self) -> Iterator[_Frame | _Audio]:
        """What the engine and the writer get, within start and end, in the times of the result."""
        base = self._video.time_base or Fraction(1, 90000)
        first = self._origin + _decimal(self._options.start) if self._options.start else None
        last_time = (
            None if self._options.end is None else self._origin + _decimal(self._options.end)
        )
        last: int | None = None
        seen, step = 0, 0
        for item in self._all():
            if isinstance(item, _Audio):
                if self._in_time(item.packet, first, last_time):
                    yield item
                continue
            seen += 1
            pts = item.pts
            if pts is None and last is not None and step:
                pts = last + step
            if pts is None or (last is not None and pts <= last):
                self._report.dropped += 1
                self._report.warn("frames without an increasing timestamp were dropped")
                continue
            if item.is_corrupt:
                self._damage("some frames are damaged")
            if last_time is not None and pts * base >= last_time:
                if not self.audio:
                    break
                continue
            step = item.duration or (pts - last if last is not None else 0)
            if first is not None and pts * base < first:
                last = pts
                continue
            frame = self._frame(item, pts - (round(first / base) if first else 0))
            self._report.duration = float((pts - (self._begun(pts))) * base)
            last = pts
            yield frame
        self._check_end(last, step, base)

    _begin: int | None = None

    def _begun(self, pts: int) -> int:
        if self._begin is None:
            self._begin = pts
        return self._begin

    def _all(self) -> Iterator[Any]:
        yield from self._held
        self._held = []
        yield from self._decoded

    def _check_end(self, last: int | None, step: int, base: Fraction) -> None:
        length = self.length
        if self._options.end is not None or length is None or last is None:
            return
        # Matroska says when its end is, other containers how long they are
        absolute = "matroska" in self._container.format.name and not self._video.duration
        start = 0 if absolute else self._video.start_time or 0
        reached = float((last - start + step) * base)
        if reached < length - max(0.25, 3 * float(step * base)):
            self._damage(f"the clip ends at {reached:.2f} s of {length:.2f} s")

    def _in_time(self, packet: Any, first: Fraction | None, last: Fraction | None) -> bool:
        """Whether an audio packet lies within the range; shifts it to the result's times."""
        if first is None and last is None:
            return True
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None:
            return False
        when = stamp * packet.time_base
        if (first is not None and when < first) or (last is not None and when >= last):
            return False
        if first is not None:
            shift = round(first / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
        return True

    def _frame(self, frame: Any, pts: int) -> _Frame:
        shape = self._convert.upright_size(frame)
        if shape != self._first_shape:
            self._report.warn("the size changes within the clip; the first one is kept")
        model = self._convert.array(frame, self._channels, self._size or self._first_shape)
        source = None
        if self._options.side_by_side:
            source = self._convert.array(frame, 3, self._first_shape)
        return _Frame(pts, model, source)


def open_clip(source: Path) -> Any:
    """A container that reads this one file and nothing else."""
    av = pyav()
    if source.is_file() and not source.stat().st_size:
        raise VideoError(f"{source} is empty; expected a video file")
    try:
        return av.open(
            f"file:{source}",
            timeout=(10, 10),
            metadata_errors="replace",
            options={"protocol_whitelist": "file", "format_whitelist": FORMATS},
        )
    except PermissionError:
        raise PermissionError(13, "Permission denied", str(source)) from None
    except (av.FFmpegError, OSError, ValueError, UnicodeError) as error:
        raise VideoError(
            f"{source} cannot be opened as a video ({said(error)}); expected a whole MP4, MOV, "
            "Matroska, WebM, AVI or the like"
        ) from error


def pick_video(container: Any, name: str) -> Any:
    """The first stream of moving pictures: a cover picture is none."""
    for stream in container.streams.video:
        if stream.codec_context is None:
            raise VideoError(f"{name}: there is no decoder for its pictures")
        if "attached_pic" not in str(stream.disposition):
            return stream
    kinds = sorted({stream.type for stream in container.streams})
    raise VideoError(f"{name} has no video stream (it has: {', '.join(kinds) or 'nothing'})")


def said(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


# Out


class Output:
    """NAME.part, which becomes NAME by finish() and nothing by abandon()."""

    def __init__(
        self,
        target: Path,
        height: int,
        width: int,
        *,
        encoder: tuple[str, int, str],
        plan: Plan,
        audio: list[Any] | None = None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._target, self._part = target, target.with_name(target.name + ".part")
        self._shape = (height, width)
        self._even = (height + height % 2, width + width % 2)
        if self._even != self._shape:
            warn(
                f"{width}x{height} became {self._even[1]}x{self._even[0]}: "
                "H.264 needs even sizes, the last row or column is repeated"
            )
        self._plan, self._convert = plan, Converter()
        self._audio: dict[int, Any] = {}
        try:
            self._open(encoder, audio or [], warn)
        except ValueError as error:
            if not self._audio:
                self.abandon()
                raise VideoError(f"{target} cannot be written: {said(error)}") from error
            self.abandon()
            names = ", ".join(sorted({s.codec_context.name for s in audio or []}))
            warn(f"audio left out: {self._kind()} does not take {names}")
            self._open(encoder, [], warn)
        except BaseException as error:
            self.abandon()
            if isinstance(error, VideoError) or not isinstance(error, Exception):
                raise
            raise VideoError(f"{target} cannot be written: {said(error)}") from error

    def _kind(self) -> str:
        return CONTAINERS[self._target.suffix.lower()]

    def _open(
        self, encoder: tuple[str, int, str], audio: list[Any], warn: Callable[[str], None]
    ) -> None:
        av, plan, (codec, quality, preset) = pyav(), self._plan, encoder
        options = {"flush_packets": "1"}
        if self._kind() != "matroska":
            # Half-second fragments; the header waits for the first, so that it can hold edit lists.
            options |= {
                "movflags": "delay_moov+default_base_moof",
                "frag_duration": "500000",
            }
        else:
            options |= {"cluster_time_limit": "500"}
        self._container = av.open(f"file:{self._part}", "w", format=self._kind(), options=options)
        try:
            stream = self._container.add_stream(
                codec, rate=plan.rate.limit_denominator(100_000), time_base=plan.time_base
            )
        except av.codec.codec.UnknownCodecError as error:
            raise VideoError(f"this PyAV has no encoder {codec}") from error
        stream.height, stream.width = self._even
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = plan.time_base
        context.max_b_frames = 0  # decoding order is showing order: times need no shift
        context.gop_size = max(1, min(250, round(2 * plan.rate)))
        context.colorspace, context.color_range = BT709, LIMITED
        context.color_primaries, context.color_trc = plan.primaries, plan.transfer
        if plan.aspect and plan.aspect > 0:
            context.sample_aspect_ratio = plan.aspect
        context.thread_count = 1 if self._even[0] * self._even[1] < 600_000 else 0
        chosen = QUICK[codec] if preset == "quick" else {"preset": preset}
        stream.options = {"crf": str(quality), **chosen}
        self._stream = stream
        self._audio = {}
        for source in audio:
            name = source.codec_context.name if source.codec_context else "unknown"
            try:
                self._audio[source.index] = self._container.add_stream_from_template(source)
            except (ValueError, av.FFmpegError):
                warn(f"audio left out: {self._kind()} does not take {name}")
        self._container.start_encoding()

    def picture(self, pts: int, result: np.ndarray, source: np.ndarray | None = None) -> None:
        """Encode one frame; `source` stands at its left."""
        h, w = self._shape
        if source is not None:
            right = self._convert.resized(result, h, w - source.shape[1])
            result = np.concatenate([source, right], axis=1)
        if self._even != self._shape:
            if result.shape[:2] != self._shape:
                result = self._convert.resized(result, h, w)
            edges = [(0, self._even[0] - h), (0, self._even[1] - w), (0, 0)][: result.ndim]
            result = np.pad(result, edges, "edge")
        frame = self._convert.yuv(result, *self._even)
        frame.pts, frame.time_base = pts, self._plan.time_base
        frame.pict_type = 0
        self._mux(self._stream.encode(frame))

    def sound(self, index: int, packet: Any) -> None:
        if index in self._audio:
            packet.stream = self._audio[index]
            self._mux(packet)

    def flush(self) -> None:
        self._mux(self._stream.encode(None))

    def _mux(self, packets: Any) -> None:
        try:
            self._container.mux(packets)
        except pyav().FFmpegError as error:
            raise VideoError(f"{self._part} cannot be written: {said(error)}") from error

    def finish(self) -> None:
        """Close, and give the file its name."""
        try:
            self._container.close()
            with self._part.open("rb") as file:
                os.fsync(file.fileno())
            self._part.replace(self._target)
        except BaseException as error:
            self.abandon()
            if isinstance(error, pyav().FFmpegError):
                raise VideoError(f"{self._target} cannot be written: {said(error)}") from error
            raise

    def abandon(self) -> None:
        container = getattr(self, "_container", None)
        if container is not None:
            with suppress(Exception):
                container.close()
        self._part.unlink(missing_ok=True)
