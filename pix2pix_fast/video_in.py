"""A film as it is read: frames and packets of sound, in file order and in the result's times."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import images
from .errors import VideoError
from .video_frames import Converter, pyav, said
from .video_out import Plan, tags

if TYPE_CHECKING:
    from .engine import Engine
    from .video import VideoReport

# Of input: real containers. Playlists and scripts, which name other files, are not among them.
FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,gif,asf,nut,ivf,mxf,yuv4mpegpipe,h264,hevc,"
    "m4v,wav,mp3,flac,aac,mjpeg,dv,rm,apng,av1,obu,3gp"
)


class Options(NamedTuple):
    start: float | None
    end: float | None
    fit: str
    side_by_side: bool
    sound: bool


class Frame(NamedTuple):
    pts: int
    model: np.ndarray  # (h, w[, 3]) uint8, what the engine gets
    source: np.ndarray | None  # (H, W, 3) uint8, upright, for side by side
    duration: int  # 0: unknown


class Audio(NamedTuple):
    stream: int  # index in the input
    packet: Any


def _decimal(seconds: float) -> Fraction:
    """What the caller wrote: 0.2 is a fifth, although the float is a little more."""
    return Fraction(str(float(seconds)))


class Reader:
    """A clip's frames and audio packets, in file order."""

    def __init__(self, source: Path, engine: Engine, options: Options, report: VideoReport) -> None:
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

    def __enter__(self) -> Reader:
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
            if not isinstance(item, Audio):
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
        primaries, transfer = [1 if tag in (0, 2, 3) else tag for tag in (primaries, transfer)]
        base = self._video.time_base or Fraction(1, 90000)
        titles = tags(self._container.metadata)
        return Plan(height, width, base, Fraction(rate), aspect, primaries, transfer, titles)

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
                    yield Audio(packet.stream.index, packet)
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

    def items(self) -> Iterator[Frame | Audio]:
        """What the engine and the writer get, within start and end, in the times of the result."""
        base = self._video.time_base or Fraction(1, 90000)
        first = self._origin + _decimal(self._options.start) if self._options.start else None
        last_time = (
            None if self._options.end is None else self._origin + _decimal(self._options.end)
        )
        last: int | None = None
        seen, step = 0, 0
        for item in self._all():
            if isinstance(item, Audio):
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

    def _frame(self, frame: Any, pts: int) -> Frame:
        shape = self._convert.upright_size(frame)
        if shape != self._first_shape:
            self._report.warn("the size changes within the clip; the first one is kept")
        model = self._convert.array(frame, self._channels, self._size or self._first_shape)
        source = None
        if self._options.side_by_side:
            source = self._convert.array(frame, 3, self._first_shape)
        return Frame(pts, model, source, frame.duration or 0)


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
