"""A film as it is written: NAME.part, in fragments, which gets its name when it is complete."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import VideoError
from .video_frames import BT709, LIMITED, Converter, pyav, said

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
LAYOUTS = {2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}  # FFmpeg's own
TAGS = ("title", "artist", "album", "date", "comment", "copyright", "language")
NAMES = {"libx264": "H.264", "libx265": "HEVC"}
HEVC_LEAST = 64  # pixels each way: of narrower pictures libx265 writes outside its memory


class Plan(NamedTuple):
    """What the reader knows once the first frame is there."""

    height: int  # upright
    width: int
    time_base: Fraction
    rate: Fraction
    aspect: Fraction | None
    primaries: int
    transfer: int
    tags: dict[str, str] | None = None  # of the file: its title and the like


def tags(metadata: dict[str, str]) -> dict[str, str]:
    """What a file or a track says of itself that holds for its translation too."""
    return {name: metadata[name][:1000] for name in TAGS if name in metadata}


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse, before any work, a result that could not be written."""
    if target.suffix.lower() not in CONTAINERS:
        raise ValueError(
            f"{target}: expected a name that ends in {' '.join(CONTAINERS)}, such as "
            f"{target.stem or 'out'}.mp4"
        )
    if target.is_dir():
        raise VideoError(f"{target} is a folder; expected the name of a video file")
    if os.path.lexists(target) and not overwrite:  # a link that leads nowhere is somebody's too
        raise FileExistsError(17, "File exists (overwrite replaces it)", str(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(2, "No such folder; make it first", str(target.parent))
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(13, "Permission denied", str(target.parent))
    if os.path.lexists(part := part_of(target)):
        raise _part_is_there(part)


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _part_is_there(part: Path) -> FileExistsError:
    return FileExistsError(
        17,
        "File exists: a run that is still going, or what one that was cut off has left; "
        "end that run, or rename or remove the file",
        str(part),
    )


class _PartFile:
    """A new file, never somebody else's, that FFmpeg writes through.

    FFmpeg forgets that its last writes failed, so nothing fails here: `error` keeps the first."""

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        try:
            self._raw = path.open("xb", buffering=0)  # "x" follows no link either
        except FileExistsError:
            raise _part_is_there(path) from None

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        try:
            while rest and self.error is None:
                rest = rest[self._raw.write(rest) :]
        except OSError as error:
            self.error = error
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def close(self, *, sync: bool = False) -> None:
        try:
            if sync and self.error is None:
                os.fsync(self._raw.fileno())
            self._raw.close()
        except OSError as error:
            self.error = self.error or error


class _Steps:
    """MP4 has 31 bits for the ticks from one packet of a track to the next, and FFmpeg's writer ends
    the process where they do not do: damaged times may ask for more."""

    LONGEST = 1 << 30

    def __init__(self) -> None:
        self._last: dict[int, Fraction] = {}

    def check(self, packet: Any) -> None:
        scale = Fraction(packet.time_base) / Fraction(packet.stream.time_base)
        when = packet.dts if packet.dts is not None else packet.pts
        if (packet.duration or 0) * scale > self.LONGEST:
            packet.duration = 0
        if when is None:
            return
        now, index = when * scale, packet.stream.index
        if now - self._last.get(index, now) > self.LONGEST:
            raise ValueError("its time is too long after the one before")
        self._last[index] = now


class _Track:
    """A track of sound whose packets are copied."""

    stream: Any = None  # of the result
    _filter: Any = None

    def __init__(self, source: Any) -> None:
        self._source, self.index = source, source.index
        context = source.codec_context  # its own name is the decoder's, which is mp3float for MP3
        self.name = context.codec.canonical_name if context else "unknown sound"

    @property
    def in_header(self) -> bool:
        """Whether MP4's header can be written before the first packet is there."""
        context = self._source.codec_context
        return self.name in ("mp3", "flac", "alac", "opus", "aac") and (
            self.name == "mp3" or bool(context.extradata)
        )

    @property
    def is_undescribed(self) -> bool:
        """Whether the clip has lost what MP4's header needs, as damaged ones may: 19 bytes of Opus."""
        return self.name == "opus" and len(self._source.codec_context.extradata or b"") < 19

    @property
    def usual_layout(self) -> str | None:
        """Of PCM that is said to have some channels and not which: MP4's header names them."""
        if not self.name.startswith("pcm_"):
            return None
        layout = self._source.codec_context.layout
        unsaid = layout.name == f"{layout.nb_channels} channels"
        return LAYOUTS.get(layout.nb_channels) if unsaid else None

    def copied(self, packet: Any, *, adts: bool) -> list[Any]:
        """The packet as the container wants it. AAC from MPEG-TS has a header in every packet (ADTS),
        which fragmented MP4 does not take; Matroska's writer strips it by itself."""
        made, base = [packet], packet.time_base
        if not adts and self.name == "aac" and bytes(packet)[:1] == b"\xff":
            if self._filter is None:
                self._filter = pyav().bitstream.BitStreamFilterContext(
                    "aac_adtstoasc", self._source
                )
            made = self._filter.filter(packet)
        for one in made:
            one.stream, one.time_base = self.stream, base
        return made


def sound_for(
    target: Path,
    audio: list[Any],
    silent: Callable[[int | None], set[int]],
    warn: Callable[[str], None],
) -> tuple[list[Any], bool]:
    """The tracks that the target's header can describe, and whether one of them begins late.

    One that it cannot leaves MP4 without any header, and FFmpeg says nothing of it.
    silent: gives the tracks without a packet in the first seconds of the result; None: in all of it."""
    late = silent(1)
    if CONTAINERS[target.suffix.lower()] != "mp4":
        return audio, bool(late)
    tracks = [_Track(one) for one in audio]
    empty = silent(None) if any(one.index in late and not one.in_header for one in tracks) else set()
    kept = []
    for source, track in zip(audio, tracks, strict=True):
        if track.is_undescribed:
            warn(f"sound left out: {track.name} without its header (OpusHead), which mp4 needs")
        elif track.index in empty and not track.in_header:
            warn(f"sound left out: {track.name} without a packet that mp4 can describe it by")
        else:
            kept.append(source)
    return kept, any(source.index in late for source in kept)


class Output:
    """NAME.part, which becomes NAME by finish() and, unless it is kept, nothing by abandon()."""

    _container: Any = None
    _file: _PartFile | None = None
    _keep = False  # of a file that could not be begun there is nothing to keep

    def __init__(
        self,
        target: Path,
        height: int,
        width: int,
        *,
        encoder: tuple[str, int, str],
        plan: Plan,
        audio: list[Any] | None = None,
        late_sound: bool = False,
        overwrite: bool = False,
        keep: bool = False,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        """keep: a failure leaves NAME.part and says so, as a recording cannot be made again."""
        self._target, self._part = target, part_of(target)
        self._shape = (height, width)
        self._even = (height + height % 2, width + width % 2)
        if self._even != self._shape:
            warn(
                f"{width}x{height} became {self._even[1]}x{self._even[0]}: "
                f"{NAMES[encoder[0]]} needs even sizes, the last row or column is repeated"
            )
        if encoder[0] == "libx265" and min(self._even) < HEVC_LEAST:
            raise VideoError(
                f"{target}: HEVC's encoder needs pictures of at least {HEVC_LEAST}x{HEVC_LEAST}, "
                f"these are {self._even[1]}x{self._even[0]}; take h264"
            )
        self._plan, self._convert, self._warn = plan, Converter(), warn
        self._tracks: dict[int, _Track] = {}
        self._durations: deque[int] = deque()  # of the frames in the encoder
        self._late_sound, self._steps = late_sound, _Steps()
        self._refused = False  # what FFmpeg wrote at the last picture
        try:
            try:
                self._open(encoder, audio or [])
            except (ValueError, pyav().FFmpegError):
                self.abandon()
                # a header that fails does not say by which track
                self._open(encoder, self._taken(encoder, audio or []))
        except BaseException as error:
            self.abandon()
            if isinstance(error, (VideoError, FileExistsError)) or not isinstance(error, Exception):
                raise
            raise VideoError(f"{target} cannot be written: {said(error)}") from error
        self._keep, self._overwrite = keep, overwrite

    def _taken(self, encoder: tuple[str, int, str], audio: list[Any]) -> list[Any]:
        """The tracks with which the file can be begun; the others are named in warnings."""
        taken: list[Any] = []
        for source in audio:
            try:
                self._open(encoder, [*taken, source])
            except (ValueError, pyav().FFmpegError) as error:
                name = _Track(source).name
                self._warn(f"sound left out: {self._kind()} does not take {name} ({said(error)})")
            else:
                taken.append(source)
            finally:
                self.abandon()
        return taken

    def _kind(self) -> str:
        return CONTAINERS[self._target.suffix.lower()]

    def _sounds(self) -> str:
        return ", ".join(sorted({track.name for track in self._tracks.values()}))

    def _open(self, encoder: tuple[str, int, str], audio: list[Any]) -> None:
        av, plan, (codec, quality, preset) = pyav(), self._plan, encoder
        # a second, in microseconds, is as long as pictures wait for sound
        options = {"flush_packets": "1", "max_interleave_delta": "1000000"}
        if self._kind() != "matroska":
            # Half-second fragments. The header waits for the first packet of every track, so that it
            # can hold edit lists; not for sound that begins late, as nothing could be played so long.
            # There a second header, at the end, says where tracks begin: the first puts them all at 0.
            early = self._late_sound and all(_Track(one).in_header for one in audio)
            options |= {
                "movflags": ("empty_moov+hybrid_fragmented" if early else "delay_moov") + "+default_base_moof",
                "frag_duration": "500000",
            }
            if early:
                options["avoid_negative_ts"] = "make_non_negative"  # else no track's beginning is kept
        else:
            options |= {"cluster_time_limit": "500"}
        self._file = _PartFile(self._part)
        self._container = av.open(self._file, "w", format=self._kind(), options=options)
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
        if codec == "libx265":
            stream.options |= {"x265-params": "log-level=none"}  # it has a log of its own
            if self._kind() != "matroska":
                context.codec_tag = "hvc1"  # Apple's players want this of the two names
        self._stream = stream
        self._container.metadata.update(plan.tags or {})
        self._tracks = {}
        for source in audio:
            track = _Track(source)
            track.stream = self._container.add_stream_from_template(source)
            if self._kind() == "mp4" and (layout := track.usual_layout):
                track.stream.codec_context.layout = layout
            track.stream.metadata.update(tags(source.metadata))
            track.stream.disposition = int(source.disposition)  # which track a player takes
            self._tracks[source.index] = track
        self._container.start_encoding()

    def picture(
        self, pts: int, result: np.ndarray, source: np.ndarray | None = None, duration: int = 0
    ) -> None:
        """Encode one frame: (h, w), (h, w, 1) or (h, w, 3); `source` (h, w, 3) stands at its left.
        The duration counts for the last one."""
        h, w = self._shape
        if result.ndim == 3 and result.shape[2] == 1:
            result = result[:, :, 0]
        if source is not None:
            right = self._convert.resized(result, h, w - source.shape[1])
            if right.ndim == 2:
                right = np.repeat(right[:, :, None], 3, axis=2)
            result = np.concatenate([source, right], axis=1)
        if self._even != self._shape:
            if result.shape[:2] != self._shape:
                result = self._convert.resized(result, h, w)
            edges = [(0, self._even[0] - h), (0, self._even[1] - w), (0, 0)][: result.ndim]
            result = np.pad(result, edges, "edge")
        frame = self._convert.yuv(result, *self._even)
        frame.pts, frame.time_base = pts, self._plan.time_base
        frame.pict_type = 0
        self._durations.append(duration)
        self._encode(frame)

    def sound(self, index: int, packet: Any) -> bool:
        """Copy one packet; False where it is left out."""
        track = self._tracks.get(index)
        if track is None or (packet.is_discard and self._kind() == "matroska"):
            return False  # what an edit list hides, Matroska would play
        try:
            for made in track.copied(packet, adts=self._kind() == "matroska"):
                self._steps.check(made)
                self._container.mux(made)
        except (pyav().FFmpegError, ValueError) as error:
            self._check_disk()
            self._warn(self._left_out(track.name, error))
            return False
        self._check_disk()
        return True

    def _left_out(self, name: str, error: BaseException) -> str:
        return f"some sound left out: {name} that {self._kind()} does not take ({said(error)})"

    def flush(self) -> None:
        self._encode(None)

    def _encode(self, frame: Any) -> None:
        try:
            packets = self._stream.encode(frame)
        except (pyav().FFmpegError, ValueError) as error:
            raise VideoError(f"{self._part}: the encoder failed: {said(error)}") from error
        for packet in packets:
            if duration := self._durations.popleft():  # in order, as there are no B frames
                packet.duration = duration
            try:
                self._steps.check(packet)
                self._container.mux(packet)
            except ValueError as error:
                raise VideoError(f"{self._part}: a frame cannot be written: {error}") from error
            except pyav().FFmpegError as error:
                self._check_disk()
                # FFmpeg queues what it is given and writes what is due, which may be sound that it
                # complains of only now. Of pictures it would complain at every one.
                if self._refused or not self._tracks:
                    raise VideoError(f"{self._part} cannot be written: {said(error)}") from error
                self._refused = True
                self._warn(self._left_out(self._sounds(), error))
            else:
                self._refused = False
        self._check_disk()

    def _check_disk(self) -> None:
        if self._file is not None and (error := self._file.error) is not None:
            kept = "; what was written until then is kept there" if self._keep else ""
            raise VideoError(f"{self._part} cannot be written: {said(error)}{kept}") from error

    def finish(self) -> None:
        """Close, and give the file its name."""
        try:
            self._container.close()
            if self._file is not None:
                self._file.close(sync=True)
            self._check_disk()
            self._check_readable()
            self._name()
        except BaseException as error:
            self.abandon()
            if isinstance(error, pyav().FFmpegError):
                raise VideoError(f"{self._target} cannot be written: {said(error)}") from error
            raise

    def _name(self) -> None:
        """Without `overwrite` a file that has appeared meanwhile stays, and so does the part."""
        if self._overwrite:
            self._part.replace(self._target)
            return
        try:
            os.link(self._part, self._target)  # unlike renaming, it replaces nothing
        except OSError:
            if os.path.lexists(self._target):
                self._file = None
                text = f"File exists, since this run began; the result is {self._part}"
                raise FileExistsError(17, text, str(self._target)) from None
            self._part.replace(self._target)  # a file system without links
        else:
            self._part.unlink()

    def _check_readable(self) -> None:
        """FFmpeg may close a film whose header it could not write without a word."""
        try:
            with pyav().open(f"file:{self._part}", options={"protocol_whitelist": "file"}) as film:
                if film.streams.video:
                    return
            why = "it has no pictures"
        except (pyav().FFmpegError, OSError, ValueError) as error:
            why = said(error)
        self._file = None  # the part stays: it may be all that there is
        raise VideoError(
            f"{self._part} was written but cannot be read ({why}); try another container, such as "
            f"{self._target.stem}.mkv, or leave the sound out, and remove the .part"
        )

    def abandon(self) -> None:
        if self._container is not None:
            with suppress(Exception):
                self._container.close()
        if self._file is not None:  # else the file of that name is not ours
            self._file.close()
            self._file = None
            if not self._keep:
                self._part.unlink(missing_ok=True)
