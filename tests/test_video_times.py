"""Films whose own times are missing, wrong, late or begin again, and parts of films without an index."""

from __future__ import annotations

import threading
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_video import picture, times_of
from test_video_bars import Identity, packet_times

from pix2pix_fast.engine import Lanes
from pix2pix_fast.errors import VideoError

av: Any = pytest.importorskip("av")

from pix2pix_fast.video import VideoReport, translate_video  # noqa: E402
from pix2pix_fast.video_out import Output, Plan  # noqa: E402
from pix2pix_fast.video_times import Clock, FrameTimes  # noqa: E402

RATE = 25


def film(
    path: Path,
    count: int,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    sound: str = "",
    sound_s: float = 1.0,
    sound_at: float = 0.0,
    begin: float = 0.0,
    pix_fmt: str = "yuv420p",
    rate: int = RATE,
) -> Path:
    """`count` frames, `rate` a second, from `begin` on; sound for sound_s seconds from `sound_at` on."""
    packets: list[Any] = []
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = 64, 96, pix_fmt
        audio = output.add_stream(sound, rate=48000, layout="mono") if sound else None
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = round(begin * rate) + index, Fraction(1, rate)
            packets += stream.encode(frame)
        packets += stream.encode()
        if audio is not None:
            size = audio.codec_context.frame_size or 1024
            kind = audio.codec_context.format.name
            dtype = {"flt": np.float32, "s16": np.int16, "s32": np.int32}[kind.rstrip("p")]
            for index in range(round(sound_s * 48000 / size)):
                block = av.AudioFrame.from_ndarray(np.zeros((1, size), dtype), kind, "mono")
                block.sample_rate, block.time_base = 48000, Fraction(1, 48000)
                block.pts = round(sound_at * 48000) + index * size
                packets += audio.encode(block)
            packets += audio.encode()
        packets.sort(key=lambda packet: packet.dts * packet.time_base)
        output.mux(packets)
    return path


def with_tracks(path: Path, codecs: list[str]) -> Path:
    """25 frames and a second of each of `codecs`, one track each."""
    packets: list[Any] = []
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        tracks = []
        for codec in codecs:
            tracks.append(output.add_stream(codec, rate=48000, layout="stereo"))
        for index in range(25):
            packets += stream.encode(av.VideoFrame.from_ndarray(picture(index), "rgb24"))
        packets += stream.encode()
        for track in tracks:
            track.codec_context.open(strict=False)
            size, kind = track.codec_context.frame_size or 1024, track.codec_context.format.name
            dtype = {"flt": np.float32, "s16": np.int16, "s32": np.int32}[kind.rstrip("p")]
            shape = (2, size) if kind.endswith("p") else (1, 2 * size)
            for index in range(48000 // size):
                block = av.AudioFrame.from_ndarray(np.zeros(shape, dtype), kind, "stereo")
                block.sample_rate, block.time_base = 48000, Fraction(1, 48000)
                block.pts = index * size
                packets += track.encode(block)
            packets += track.encode()
        packets.sort(key=lambda packet: packet.dts * packet.time_base)
        output.mux(packets)
    return path


def translated(source: Path, target: Path, **options: Any) -> VideoReport:
    return translate_video(Identity(), source, target, overwrite=True, **options)  # type: ignore[arg-type]


def steps(path: Path) -> list[float]:
    times = times_of(path)
    return [round(float(b - a), 3) for a, b in zip(times, times[1:], strict=False)]


def offset(path: Path) -> float:
    """Seconds from the last picture to the last sound."""
    return float(packet_times(path, "audio")[-1] - packet_times(path, "video")[-1])


def test_a_raw_stream_has_the_rate_it_names(tmp_path: Path) -> None:
    report = translated(film(tmp_path / "in.h264", 30), tmp_path / "out.mp4")
    assert (report.frames, report.dropped) == (30, 0)
    assert times_of(tmp_path / "out.mp4")[0] == 0 and steps(tmp_path / "out.mp4") == [0.04] * 29


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_b_frames_in_avi_come_in_their_order(codec: str, tmp_path: Path) -> None:
    """AVI keeps no times: what FFmpeg makes of H.264's are those of decoding, out of order."""
    source = film(tmp_path / "in.avi", 30, codec=codec, options={"bf": "2"})
    report = translated(source, tmp_path / "out.mp4")
    assert (report.frames, report.dropped, report.warnings) == (30, 0, [])
    assert steps(tmp_path / "out.mp4") == [0.04] * 29


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_joined_recordings_follow_each_other(suffix: str, tmp_path: Path) -> None:
    target = tmp_path / f"out{suffix}"
    once = film(tmp_path / "a.ts", 50, sound="mp2", sound_s=2)
    (tmp_path / "in.ts").write_bytes(once.read_bytes() * 3)
    report = translated(once, target)
    count, between = report.audio_packets, offset(target)
    report = translated(tmp_path / "in.ts", target)
    assert report.complete and report.frames == 150 and report.audio_packets >= 3 * count - 3
    assert report.warnings == ["times jump within the clip; what follows was moved"]
    assert set(steps(target)) == {0.04}
    assert abs(offset(target) - between) <= 0.05
    silent = translated(tmp_path / "in.ts", target, audio="drop")
    assert (silent.frames, silent.dropped) == (150, 0)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_joined_matroska_shows_every_frame(suffix: str, tmp_path: Path) -> None:
    """It has no decoding times: those that FFmpeg guesses after the join are frames later than before."""
    once = film(tmp_path / "a.mkv", 50, sound="libmp3lame", sound_s=1.9, options={"bf": "2"})
    (tmp_path / "in.mkv").write_bytes(once.read_bytes() * 2)
    report = translated(tmp_path / "in.mkv", tmp_path / f"out{suffix}")
    assert (report.frames, report.dropped, report.complete) == (100, 0, True)
    assert report.warnings == ["times jump within the clip; what follows was moved"]
    assert set(steps(tmp_path / f"out{suffix}")) == {0.04}


class Packet:
    """What a Clock looks at."""

    time_base = Fraction(1, 100)
    duration = 4

    def __init__(self, stream: int, dts: int) -> None:
        self.stream_index, self.dts, self.pts = stream, dts, dts


@pytest.mark.parametrize(
    ("times", "moved"),
    [
        ([(0, 500), (0, 504), (1, 500), (0, 508)], [0, 4, 0, 8]),
        # the sound of the first recording still comes after pictures of the second
        ([(0, 700), (1, 700), (0, 500), (1, 704), (0, 504), (1, 500)], [200, 200, 204, 204, 208, 204]),
        # one wrong packet, back and far on
        ([(0, 900), (0, 500), (0, 908), (0, 912)], [400, 404, 408, 412]),
        ([(0, 500), (0, 9_000_000), (0, 508), (1, 508)], [0, 4, 8, 8]),
        # a wait within a film is none
        ([(0, 500), (0, 60_500), (1, 60_500)], [0, 60_000, 60_000]),
        # a little back is left to who must drop it
        ([(0, 500), (0, 480), (0, 508)], [0, -20, 8]),
    ],
)
def test_the_clock(times: list[tuple[int, int]], moved: list[int]) -> None:
    clock, packets = Clock(Fraction(5)), [Packet(*one) for one in times]
    for packet in packets:
        clock.move(packet)
    assert [packet.dts for packet in packets] == [packet.pts for packet in packets] == moved


@pytest.mark.parametrize(
    ("container", "frames", "shown"),
    [
        # a time of its own that went back: by the order of packets, later by what the first was
        ("mov", [(10, 12), (11, 13), (10, 14), (10, 15)], [10, 11, 12, 13]),
        ("mov", [(10, 12), (11, 11), (12, 11)], [10, 11, 12]),
        ("mov", [(None, 12), (None, 13), (None, None)], [12, 13, None]),
        ("avi", [(3, 4), (5, 5)], [3, 4]),
    ],
)
def test_when_frames_are_shown(
    container: str, frames: list[tuple[int | None, int | None]], shown: list[int | None]
) -> None:
    times = FrameTimes(container)
    assert [times.of(SimpleNamespace(pts=pts, dts=dts)) for pts, dts in frames] == shown


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_steps_that_mp4_cannot_hold_are_refused(suffix: str, tmp_path: Path) -> None:
    """FFmpeg's writer would end the process."""
    plan = Plan(64, 96, Fraction(1, 90_000), Fraction(25), None, 1, 1)
    source = film(tmp_path / "in.mkv", 1, sound="aac")
    with av.open(str(source)) as container:
        audio = list(container.streams.audio)
        output = Output(
            tmp_path / f"out{suffix}", 64, 96, encoder=("libx264", 20, "quick"), plan=plan, audio=audio
        )
        packets = [packet for packet in container.demux(audio[0]) if packet.size]
        packets[3].duration = 1 << 40
        packets[5].dts = packets[5].pts = 1 << 33
        kept = [output.sound(audio[0].index, packet) for packet in packets]
        output.picture(0, picture(0), duration=1 << 40)
        with pytest.raises(VideoError, match="a frame cannot be written: its time is too long after"):
            output.picture(1 << 40, picture(1))
            output.flush()
        assert kept == [index != 5 for index in range(len(packets))]
        output.abandon()
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("audio", ["copy", "drop"])
def test_a_film_begins_at_0(suffix: str, audio: Any, tmp_path: Path) -> None:
    """A broadcast's clock may stand at ten hours; players would wait so long."""
    source = film(tmp_path / "in.ts", 30, sound="aac", begin=36_000, sound_at=36_000)
    target = tmp_path / f"out{suffix}"
    for start in (None, 0):
        report = translated(source, target, audio=audio, start=start)
        assert report.frames == 30
        with av.open(str(target)) as container:
            assert container.start_time <= 50_000 and container.duration < 1_500_000
        if audio == "copy":
            assert abs(offset(source) - offset(target)) <= 0.002
    translated(source, target, audio=audio, start=0.4, end=0.8)
    assert len(times_of(target)) == 10


def test_a_clock_that_comes_round_begins_at_0(tmp_path: Path) -> None:
    """A transport stream counts to 2^33 ticks, 26.5 hours; FFmpeg puts what comes before below 0."""
    begin = (1 << 33) / 90_000 - 2
    source = film(tmp_path / "in.ts", 100, sound="aac", sound_s=4, begin=begin, sound_at=begin)
    for suffix in (".mp4", ".mkv"):
        target = tmp_path / f"out{suffix}"
        report = translated(source, target)
        assert (report.frames, report.complete, report.warnings) == (100, True, [])
        with av.open(str(target)) as container:
            assert container.start_time <= 50_000
        assert abs(offset(source) - offset(target)) <= 0.03
        translated(source, target, start=1, end=3)
        assert len(times_of(target)) == 50 and set(steps(target)) == {0.04}


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("in.ts", "libx264", {"g": "250", "sc_threshold": "0"}),
        ("in.mpg", "mpeg2video", {"g": "100"}),
        ("in.mpg", "mpeg2video", {"bf": "2"}),  # many pictures in a packet, which says one time for all
        ("in.flv", "libx264", {"g": "100"}),
    ],
)
@pytest.mark.parametrize("start", [1.0, 1.3, 5.3, 9.9, 13.2, 15.0])
def test_a_part_of_a_film_without_an_index(
    name: str, codec: str, options: dict[str, str], start: float, tmp_path: Path
) -> None:
    """A search for a time in MPEG's streams ends behind the key frame that is needed."""
    source = film(tmp_path / name, 450, codec=codec, options=options)
    report = translated(source, tmp_path / "out.mkv", start=start, end=start + 1)
    assert (report.frames, report.complete, report.warnings) == (25, True, [])
    # the right ones
    with av.open(str(source)) as container:
        begin = Fraction(container.start_time, 1_000_000)
        every = [frame.to_ndarray() for frame in container.decode(video=0) if frame.time - begin >= start - 1e-6]
    with av.open(str(tmp_path / "out.mkv")) as container:
        first = next(container.decode(video=0)).to_ndarray()
    near = [np.abs(first[:64].astype(int) - one[:64]).mean() for one in every[:3]]
    assert near[0] == min(near), near


@pytest.mark.parametrize("start", [0.4, 0.42, 0.439])
def test_sound_keeps_its_place_where_a_tick_is_a_frame(start: float, tmp_path: Path) -> None:
    """As in AVI, where a tick of sound is a packet: each was moved by what had been asked, in its own ticks."""
    source = film(tmp_path / "in.avi", 50, codec="mpeg4", sound="mp2", sound_s=2)
    translated(source, tmp_path / "out.mkv", start=start)
    assert abs(offset(source) - offset(tmp_path / "out.mkv")) <= 0.002


def test_a_row_of_jpegs_is_a_film(tmp_path: Path) -> None:
    source = film(tmp_path / "a.mkv", 10, codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(str(source)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0)]
    (tmp_path / "in.mjpeg").write_bytes(b"".join(packets))
    report = translated(tmp_path / "in.mjpeg", tmp_path / "out.mp4")
    assert (report.frames, report.complete, report.warnings) == (10, True, [])


@pytest.mark.parametrize(("name", "codec"), [("in.h264", "libx264"), ("in.hevc", "libx265")])
def test_a_part_of_a_raw_stream(name: str, codec: str, tmp_path: Path) -> None:
    """A search for a time fails there."""
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    report = translated(film(tmp_path / name, 75, codec=codec, options=options), tmp_path / "out.mp4", start=1)
    assert (report.frames, report.complete, report.warnings) == (50, True, [])
    assert times_of(tmp_path / "out.mp4")[0] == 0


@pytest.mark.parametrize("name", ["in.mkv", "in.flv", "in.mp4", "in.ts"])
@pytest.mark.parametrize("audio", ["copy", "drop"])
def test_sound_may_be_longer_than_the_pictures(name: str, audio: Any, tmp_path: Path) -> None:
    source = film(tmp_path / name, 50, sound="aac", sound_s=3.2)
    report = translated(source, tmp_path / "out.mkv", audio=audio)
    assert (report.complete, report.warnings) == (True, [])


def test_a_frame_a_second_is_whole(tmp_path: Path) -> None:
    """FFmpeg opens such Matroska without knowing when it begins, and finds a beginning as it reads."""
    source = film(tmp_path / "in.mkv", 30, options={"bf": "0"}, rate=1)
    report = translated(source, tmp_path / "out.mkv")
    assert (report.frames, report.complete, report.warnings) == (30, True, [])
    assert times_of(tmp_path / "out.mkv") == list(range(30))
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 3 // 4])
    report = translated(source, tmp_path / "out.mkv")
    assert not report.complete and report.warnings[-1].endswith("s of 30.00 s"), report.warnings


def test_what_ends_early_is_reported(tmp_path: Path) -> None:
    data = film(tmp_path / "in.mkv", 100, sound="aac", sound_s=4, options={"crf": "1"}).read_bytes()
    (tmp_path / "in.mkv").write_bytes(data[: len(data) // 2])
    report = translated(tmp_path / "in.mkv", tmp_path / "out.mkv")
    assert not report.complete and "s of 4.0" in report.warnings[-1], report.warnings


@pytest.mark.parametrize(("sound_s", "packets"), [(20, 48), (0.5, 24)])
def test_reading_stops_at_the_end_that_was_asked_for(
    sound_s: float, packets: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at that of the film: nor of pictures nor of sound, which may have ended before."""
    source = film(tmp_path / "in.mkv", 1000, sound="aac", sound_s=sound_s)
    read: list[int] = []
    from pix2pix_fast.video_in import Reader

    note = Reader._note
    monkeypatch.setattr(Reader, "_note", lambda self, packet: (read.append(1), note(self, packet))[1])
    report = translated(source, tmp_path / "out.mkv", end=1.0)
    assert report.frames == 25 and abs(report.audio_packets - packets) <= 2
    # at most the ten seconds that are waited for sound
    assert len(read) < (120 if sound_s > 1 else 11.5 * RATE + 30)


@pytest.mark.parametrize(("sound", "sound_at"), [("aac", 0.0), ("aac", 8.0), ("libmp3lame", 8.0)])
def test_the_part_grows_although_sound_is_late(sound: str, sound_at: float, tmp_path: Path) -> None:
    """MP4's header waits for every track; a track without sound in the range would keep it at 0 bytes."""
    source = film(tmp_path / "in.mkv", 300, sound=sound, sound_at=sound_at)
    part, target = tmp_path / "out.mp4.part", tmp_path / "out.mp4"
    sizes: list[int] = []
    reached = threading.Event()

    class Slow(Identity):
        def translate(self, picture: np.ndarray) -> np.ndarray:
            if len(sizes) == 120:
                reached.wait(1)  # the writer is at most some frames behind
            sizes.append(part.stat().st_size)
            return picture.copy()

        def lanes(self) -> Lanes:
            return Lanes(self.translate, 1)

    translate_video(Slow(), source, target, start=2.0)  # type: ignore[arg-type]
    assert sizes[120] > 2000 and len(times_of(target)) == 250
    if sound_at:
        assert abs(offset(source) - offset(target)) <= 0.03


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [(codec, ".mp4") for codec in ("aac", "flac", "libopus", "libmp3lame", "ac3")] + [("aac", ".mov"), ("aac", ".mkv")],
)
def test_late_sound_begins_where_it_did(codec: str, suffix: str, tmp_path: Path) -> None:
    """Its first packet too: MP4 without an edit list began each track at 0, and that packet lasted until the second."""
    source, target = film(tmp_path / "in.mkv", 75, sound=codec, sound_at=1.5), tmp_path / f"out{suffix}"
    report = translated(source, target)
    before, after = packet_times(source, "audio"), packet_times(target, "audio")
    assert report.audio_packets == len(before) == len(after)
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) <= Fraction(2, 1000)
    with av.open(str(target)) as container:
        assert abs(container.duration - 3_000_000) <= 20_000


def test_pictures_that_begin_after_sound_far_behind_them(tmp_path: Path) -> None:
    """A film in fragments of seconds has all pictures of one before its sound, which then looks late."""
    whole = film(tmp_path / "a.mkv", 50, sound="flac", sound_s=2.2, begin=0.2)
    movflags = {"movflags": "frag_custom+delay_moov"}
    with av.open(str(whole)) as one, av.open(str(tmp_path / "in.mp4"), "w", options=movflags) as two:
        made = {s.index: two.add_stream_from_template(s) for s in one.streams}
        for packet in one.demux():
            if packet.size:
                packet.stream = made[packet.stream.index]
                two.mux(packet)
    translated(tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert times_of(tmp_path / "out.mp4") == [Fraction(5 + index, 25) for index in range(50)]


@pytest.mark.parametrize("codec", ["ac3", "eac3"])
@pytest.mark.parametrize("part", [{"start": 2}, {"end": 0.5}], ids=["after", "before"])
def test_a_part_without_the_sound_can_be_read(codec: str, part: Any, tmp_path: Path) -> None:
    """MP4 describes some sound by its first packet: without one FFmpeg left out the whole header."""
    source = film(tmp_path / "in.mkv", 75, sound=codec, sound_s=0.5, sound_at=1)
    for name in ("out.mp4", "out.mov", "out.mkv"):
        report = translated(source, tmp_path / name, **part)
        assert report.complete and len(times_of(tmp_path / name)) == report.frames > 0
        told = [f"sound left out: {codec} without a packet that mp4 can describe it by"]
        assert report.warnings == (told if name == "out.mp4" else [])


def test_eac3_that_is_called_ac3_is_left_out_of_mp4(tmp_path: Path) -> None:
    source = film(tmp_path / "in.nut", 25, sound="eac3")
    report = translated(source, tmp_path / "out.mp4")
    assert len(times_of(tmp_path / "out.mp4")) == report.frames == 25
    assert (report.audio_packets, len(report.warnings)) == (0, 1)


def test_opus_that_lost_its_header_is_left_out_of_mp4(tmp_path: Path) -> None:
    source = film(tmp_path / "in.mkv", 25, sound="libopus")
    whole = source.read_bytes()
    assert whole.count(b"\x63\xa2\x93OpusHead") == 1
    source.write_bytes(whole.replace(b"\x63\xa2\x93OpusHead", b"\x63\xaf\x93OpusHead"))
    report = translated(source, tmp_path / "out.mp4")
    assert len(times_of(tmp_path / "out.mp4")) == report.frames == 25
    assert report.warnings == ["sound left out: opus without its header (OpusHead), which mp4 needs"]


def test_a_result_that_cannot_be_read_keeps_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a track gets past what is checked before."""
    source = film(tmp_path / "in.nut", 25, sound="eac3")
    monkeypatch.setattr("pix2pix_fast.video.sound_for", lambda target, audio, *_: (audio, False))
    with pytest.raises(VideoError, match=r"out.mp4.part was written but cannot be read .*out.mkv"):
        translated(source, tmp_path / "out.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.nut", "out.mp4.part"]


def test_a_track_that_is_not_taken_takes_no_other_along(tmp_path: Path) -> None:
    """MOV has no Opus: what it said was that it had no AAC either."""
    source = with_tracks(tmp_path / "in.mkv", ["libopus", "aac"])
    report = translated(source, tmp_path / "out.mov")
    assert [warning.split(" (")[0] for warning in report.warnings] == ["sound left out: mov does not take opus"]
    with av.open(str(tmp_path / "out.mov")) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
    assert report.audio_packets == len(packet_times(tmp_path / "out.mov", "audio")) > 40


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_the_track_that_players_take_stays_the_same(suffix: str, tmp_path: Path) -> None:
    whole = with_tracks(tmp_path / "a.mkv", ["aac", "aac"])
    with av.open(str(whole)) as one, av.open(str(tmp_path / "in.mkv"), "w") as two:
        made = {s.index: two.add_stream_from_template(s) for s in one.streams}
        for index, stream in made.items():
            stream.disposition = int(index != 1)
        for packet in one.demux():
            if packet.size:
                packet.stream = made[packet.stream.index]
                two.mux(packet)
    translated(tmp_path / "in.mkv", tmp_path / f"out{suffix}")
    for name in ("in.mkv", f"out{suffix}"):
        with av.open(str(tmp_path / name)) as container:
            assert [bool(int(s.disposition) & 1) for s in container.streams.audio] == [False, True]


def test_sound_that_is_not_taken_does_not_end_the_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What FFmpeg says of TrueHD in MP4, that it is experimental, is no ValueError."""
    source = with_tracks(tmp_path / "in.mkv", ["pcm_s16le"])
    # a track by name only, which has no packets
    monkeypatch.setattr("pix2pix_fast.video.sound_for", lambda target, audio, *_: (audio, False))
    source.write_bytes(source.read_bytes().replace(b"A_PCM/INT/LIT", b"A_TRUEHD".ljust(13, b"\0")))
    report = translated(source, tmp_path / "out.mp4")
    assert (report.frames, report.audio_packets, len(times_of(tmp_path / "out.mp4"))) == (25, 0, 25)
    assert len(report.warnings) == 1 and "sound left out: mp4 does not take truehd" in report.warnings[0]


def test_pcm_without_named_channels(tmp_path: Path) -> None:
    """Matroska names no channels; MP4 has to, and FFmpeg left out the whole header."""
    source = with_tracks(tmp_path / "in.mkv", ["pcm_s16le"])
    report = translated(source, tmp_path / "out.mp4")
    assert (report.warnings, len(times_of(tmp_path / "out.mp4"))) == ([], 25)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio[0].layout.name == "stereo"
        assert sum(frame.samples for frame in container.decode(audio=0)) > 46_000
