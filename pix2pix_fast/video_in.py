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
from .video_frames import Converter, is_known_matrix, pyav, said
from .video_out import Plan, tags
from .video_times import Clock, FrameTimes, refine, shift_by

if TYPE_CHECKING:
    from .engine import Engine
    from .video import VideoReport

# Of input: real containers. Playlists and scripts, which name other files, are not among them.
FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,gif,asf,nut,ivf,mxf,yuv4mpegpipe,h264,hevc,"
    "m4v,wav,mp3,flac,aac,mjpeg,dv,rm,apng,av1,obu,3gp"
)

BEHIND = 10  # seconds; sound further behind its pictures there is none


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


def _time(packet: Any) -> Fraction | None:
    stamp = packet.pts if packet.pts is not None else packet.dts
    return Fraction(stamp * packet.time_base) if stamp is not None and packet.time_base else None


def _is_eac3_as_ac3(packet: Any) -> bool:
    """NUT calls both AC-3; MP4's header, which keeps them apart, is not written from the wrong one."""
    if packet.stream.codec_context is None or packet.stream.codec_context.name != "ac3":
        return False
    head = bytes(packet)[:6]
    return len(head) == 6 and head[5] >> 3 > 10  # bsid


class Reader:
    """A clip's frames and audio packets, in file order."""

    def __init__(self, source: Path, engine: Engine, options: Options, report: VideoReport) -> None:
        self._source, self._options, self._report = source, options, report
        self._channels = engine.info["in_channels"]
        self._size = engine.info["size"] if options.fit == "resize" else None
        self._first_shape: tuple[int, int] | None = None
        self._first = _decimal(options.start) if options.start else None
        self._end = None if options.end is None else _decimal(options.end)
        self._over = False  # the pictures up to `end` are there
        self._convert = Converter()
        self._held: list[Any] = []  # decoded while looking for the first frame
        self._open()
        streams = self._container.streams
        kinds = [kind_of(stream) for stream in streams]
        if rest := set(kinds) - {"video", "audio"}:
            report.warn(f"left out: {', '.join(sorted(rest))} streams")
        if self._container.chapters():
            report.warn("left out: chapters")
        if kinds.count("video") > 1:
            report.warn("only the first video stream is translated")

    _sought: Fraction | None = None  # where reading began, if not at the beginning

    def _open(self) -> None:
        self._container = open_clip(self._source)
        try:
            self._video = pick_video(self._container, str(self._source))
            self.audio = list(self._container.streams.audio) if self._options.sound else []
            self._base = self._video.time_base or Fraction(1, 90000)
            # in whole ticks of the pictures, which may be as long as a frame: sound is moved by no more
            self._cut = int((self._first or 0) / self._base)
            self._origin = Fraction(self._container.start_time or 0, 1_000_000)
            if self._origin < 0:
                # Sound may begin before 0, with what its decoder needs to begin; pictures where the
                # clock of a transport stream has come round to 0
                self._origin = min(Fraction(0), (self._video.start_time or 0) * self._base)
            # as it is said now: while FFmpeg reads it may find another beginning, and keep the duration
            start, duration = self._video.start_time or 0, self._video.duration
            self._said_end = (start + duration) * self._base if duration else None
            self._video.thread_type = "AUTO"
            small = self._video.width * self._video.height < 600_000
            self._video.thread_count = 1 if small else 0
            self._decoded = self._decode()
        except BaseException:
            self._container.close()
            raise

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
        frame = self._first_frame()
        height, width = self._convert.upright_size(frame)
        images.check_size(height, width, "src: a frame")
        self._first_shape = (height, width)
        aspect = self._video.sample_aspect_ratio
        if aspect and self._convert.orientation(frame)[0]:
            aspect = 1 / aspect
        primaries, transfer = int(frame.color_primaries), int(frame.color_trc)
        if transfer in (16, 18):
            self._report.warn("the source is HDR; its transfer curve is copied, not converted")
        if not is_known_matrix(frame):
            self._report.warn(
                f"the source's colour matrix (number {int(frame.colorspace)} in ITU-T H.273) is not "
                "known here; its colours will be wrong: convert it to BT.709 first"
            )
        # FFmpeg's GIFs have an alpha channel always, and of WebM's decoders only a tag speaks of it
        alpha = frame.format.components[-1].is_alpha and self._container.format.name != "gif"
        if alpha or self._video.metadata.get("alpha_mode") == "1":
            self._report.warn("left out: the source's transparency (alpha channel)")
        if frame.interlaced_frame:
            self._report.warn(
                "the source is interlaced; its two fields are translated as one frame"
            )
        rate = self._video.average_rate or self._video.guessed_rate or Fraction(25)
        primaries, transfer = [1 if tag in (0, 2, 3) else tag for tag in (primaries, transfer)]
        titles = tags(self._container.metadata)
        return Plan(height, width, self._base, Fraction(rate), aspect, primaries, transfer, titles)

    def _first_frame(self) -> Any:
        """Decode up to the first frame, from where all frames after `start` can be decoded.

        MPEG's streams have no index: a search for a time ends behind the key frame that is needed,
        so it is repeated 1, 2, 4 ... seconds earlier. Program streams say one time for all the frames
        that begin in a packet, and FFmpeg gives the first of them to another frame after a search: the
        times are wrong until the next packet, which of small pictures is seconds later."""
        complete, warnings = self._report.complete, list(self._report.warnings)
        start = self._first or Fraction(0)
        back = Fraction(10 if self._container.format.name == "mpeg" else 0)
        while True:
            found = start > back and self._seek(start - back)
            if not found and start:  # also after a search that failed: it may have moved on
                self._container.close()
                self._open()
            frame = None
            self._held = []
            for item in self._decoded:
                self._held.append(item)
                if not isinstance(item, Audio):
                    frame = item
                    break
            if found:  # what was broken by beginning in the middle is not the film's damage
                self._report.complete, self._report.warnings[:] = complete, warnings
            if not found or (frame is not None and (frame.pts or 0) * self._base <= start):
                break
            back = 2 * back or Fraction(1)
        if frame is None:
            what = "; ".join(self._report.warnings)
            raise VideoError(
                f"{self._source}: no frame could be decoded" + (f" ({what})" if what else "")
            )
        self._sought = start - back if found else None
        return frame

    def silent(self, seconds: int | None = None) -> set[int]:
        """The tracks of sound without a packet in the first `seconds` of the result, or in all of it:
        a look ahead, through a reader of its own."""
        silent = {stream.index for stream in self.audio}
        if not silent:
            return silent
        first, end, clock = self._first or Fraction(0), self._end, Clock(self._origin)
        enough = end + BEHIND if end is not None else None
        if seconds is not None:
            enough = first + seconds
        heard = {*silent, self._video.index}
        with suppress(VideoError, OSError, pyav().FFmpegError), open_clip(self._source) as clip:
            if self._sought is not None:
                clip.seek(int((self._sought + self._origin) * 1_000_000), backward=True)
            for packet in demuxed(clip):
                if not silent:
                    break
                if packet.stream_index not in heard or not packet.size or not packet.time_base:
                    continue
                clock.move(packet)
                when = _time(packet)
                if when is None:
                    continue
                if packet.stream_index == self._video.index:
                    if enough is not None and when > enough:
                        break
                elif when >= first and (end is None or when < end) and not _is_eac3_as_ac3(packet):
                    silent.discard(packet.stream_index)
        return silent

    def _seek(self, when: Fraction) -> bool:
        self._decoded.close()  # type: ignore[attr-defined]
        self._decoded = self._decode()
        try:
            self._container.seek(int((when + self._origin) * 1_000_000), backward=True)
        except (pyav().FFmpegError, OSError):
            return False
        return True

    def _decode(self) -> Iterator[Any]:
        """Frames as PyAV gives them and audio packets; damage becomes warnings."""
        av, video = pyav(), self._video
        wanted = {stream.index for stream in self.audio}
        clock = Clock(self._origin)
        self._reached: dict[int, Fraction] = {}  # by stream: the end of its last packet
        bad = 0
        packets = demuxed(self._container)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.FFmpegError, OSError) as error:
                self._damage(f"reading stopped: {said(error)}")
                packet = None
            if packet is not None and packet.size and packet.time_base:
                if packet.stream_index in wanted or packet.stream is video:
                    clock.move(packet)
                    if clock.jumped:
                        self._report.warn("times jump within the clip; what follows was moved")
                self._note(packet)
                if self._over and packet.stream is video:
                    if self._reached[packet.stream_index] > (self._end or 0) + BEHIND:
                        return
                    continue
            if packet is not None and packet.stream is not video:
                if packet.stream_index in wanted and packet.size:
                    yield Audio(packet.stream_index, packet)
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

    def _note(self, packet: Any) -> None:
        """How far each stream reaches: sound or subtitles may be what makes a clip so long."""
        if packet.pts is not None:
            end = (packet.pts + (packet.duration or 0)) * packet.time_base
            index = packet.stream_index
            self._reached[index] = max(end, self._reached.get(index, end))

    def _damage(self, text: str) -> None:
        self._report.complete = False
        self._report.warn(text)

    def items(self) -> Iterator[Frame | Audio]:
        """What the engine and the writer get, within start and end, in the times of the result."""
        base, times = self._base, FrameTimes(self._container.format.name)
        first, end = self._first, self._end
        rate = self._video.guessed_rate or self._video.average_rate or Fraction(25)
        step = max(1, round(1 / (rate * base)))  # where a file has no times, as a raw stream
        begun = last = None
        waiting = {stream.index for stream in self.audio}  # for their last sound before `end`
        for item in self._all():
            if isinstance(item, Audio):
                if self._in_time(item.packet):
                    yield item
                elif end is not None and self._reached.get(item.stream, end) > end:
                    waiting.discard(item.stream)
                    if self._over and not waiting:
                        break
                continue
            pts = times.of(item)
            if pts is None:
                pts = 0 if last is None else last + step
            if last is not None and pts <= last:
                if begun is not None:  # else it lies before `start`
                    self._report.dropped += 1
                    self._report.warn("frames without an increasing timestamp were dropped")
                continue
            if end is not None and pts * base >= end:
                self._over = True
                if not waiting:
                    break
                continue
            step = item.duration or (pts - last if last is not None else step)
            last = pts
            if first is not None and pts * base < first:
                continue
            if item.is_corrupt:
                self._damage("some frames are damaged")
            begun = pts if begun is None else begun
            self._report.duration = float((pts + step - begun) * base)
            yield self._frame(item, pts - self._cut)
        if end is None and last is not None:
            self._check_end((last + step) * base, step * base)

    def _all(self) -> Iterator[Any]:
        yield from self._held
        self._held = []
        yield from self._decoded

    def _check_end(self, reached: Fraction, step: Fraction) -> None:
        """Whether a film that was read to its end is as long as the file says."""
        if self._said_end is not None:
            length = self._said_end - self._origin
        elif self._container.duration:
            length = Fraction(self._container.duration, 1_000_000)
            if "matroska" in self._container.format.name:  # which says when its end is
                length -= self._origin
            reached = max(reached, *self._reached.values())
        else:
            return
        if reached < length - max(Fraction(1, 4), 3 * step):
            self._damage(f"the clip ends at {float(reached):.2f} s of {float(length):.2f} s")

    def _in_time(self, packet: Any) -> bool:
        """Whether an audio packet lies within the range; shifts it to the result's times."""
        first, end = self._first, self._end
        if first is None and end is None:
            return True
        when = _time(packet)
        if (
            when is None
            or (first is not None and when < first)
            or (end is not None and when >= end)
        ):
            return False
        if first is not None:
            refine(packet)
            shift_by(packet, -self._cut * self._base)
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
            format=_format(source),
            timeout=(10, 10),
            metadata_errors="replace",
            options={"protocol_whitelist": "file", "format_whitelist": FORMATS},
        )
    except PermissionError:
        raise PermissionError(13, "Permission denied", str(source)) from None
    except (av.FFmpegError, OSError, ValueError, UnicodeError) as error:
        raise VideoError(
            f"{source} cannot be opened as a video ({said(error)}); expected a whole MP4, MOV, "
            "Matroska, WebM, AVI or the like (for pictures: translate)"
        ) from error


def _format(source: Path) -> str | None:
    """The one that FFmpeg does not see: a row of JPEGs is to it a row of files."""
    if source.suffix.lower() in (".mjpeg", ".mjpg"):
        with source.open("rb") as file:
            if file.read(2) == b"\xff\xd8":
                return "mjpeg"
    return None


def demuxed(container: Any, *streams: Any) -> Iterator[Any]:
    """container.demux, whose very end fails in PyAV where a stream appeared on the way."""
    with suppress(IndexError):
        yield from container.demux(*streams)


def kind_of(stream: Any) -> str:
    """As FFmpeg names it, but for the picture on a film's or a song's cover, which is to it a video."""
    cover = int(stream.disposition) & int(pyav().stream.Disposition.attached_pic)
    return "cover picture" if cover else str(stream.type)


def pick_video(container: Any, name: str) -> Any:
    """The first stream of moving pictures."""
    for stream in container.streams:
        if kind_of(stream) == "video":
            if stream.codec_context is None:
                raise VideoError(f"{name}: there is no decoder for its pictures")
            return stream
    kinds = sorted({kind_of(stream) for stream in container.streams})
    raise VideoError(f"{name} has no video stream (it has: {', '.join(kinds) or 'nothing'})")
