"""Films: frames, times, sound and colours go through; nothing is left half-written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import IntEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import tiny_model

import pix2pix_fast
from pix2pix_fast import Engine, model
from pix2pix_fast.cli import main
from pix2pix_fast.errors import BackendUnavailable, VideoError

av: Any = pytest.importorskip("av")

from pix2pix_fast.video import translate_video  # noqa: E402
from pix2pix_fast.video_frames import Converter, pyav  # noqa: E402
from pix2pix_fast.video_out import Output, Plan  # noqa: E402


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model(depth=3), threads=1, size=(64, 64))


def picture(index: int, h: int = 64, w: int = 96) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    return np.stack([(x * 2 + index * 5) % 256, (y * 3) % 256, np.full_like(x, 90)], 2).astype(
        np.uint8
    )


def clip(path: Path, times: list[int], *, sound: str = "", size: tuple[int, int] = (64, 96)) -> Path:
    """One frame at each of `times` (milliseconds)."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        audio = output.add_stream(sound, rate=48000, layout="mono") if sound else None
        for index, at in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 1000)
            for packet in stream.encode(frame):
                output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)
        if audio is not None:
            kind = audio.codec_context.format.name
            dtype = {"flt": np.float32, "s16": np.int16, "s32": np.int32}[kind.rstrip("p")]
            for index in range(20):
                samples = np.zeros((1, 1024), dtype)
                frame = av.AudioFrame.from_ndarray(samples, format=kind, layout="mono")
                frame.sample_rate, frame.pts = 48000, index * 1024
                for packet in audio.encode(frame):
                    output.mux(packet)
            for packet in audio.encode():
                output.mux(packet)
    return path


def times_of(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


EVEN = [40 * i for i in range(20)]
UNEVEN = [0, 40, 55, 120, 300, 301, 360, 900, 1000, 1033]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("times", [EVEN, UNEVEN], ids=["even", "variable rate"])
def test_every_frame_keeps_its_time(
    engine: Engine, tmp_path: Path, times: list[int], suffix: str
) -> None:
    source, target = clip(tmp_path / "in.mp4", times), tmp_path / f"out{suffix}"
    report = translate_video(engine, source, target)
    assert (report.frames, report.complete, report.warnings) == (len(times), True, [])
    assert times_of(target) == times_of(source)
    with av.open(str(target)) as container:
        first = next(container.decode(video=0))
        assert (first.height, first.width) == (64, 96)


def test_the_picture_is_the_engines(tmp_path: Path) -> None:
    """With a trained model: the noise of a random one does not survive 4:2:0."""
    assets = Path(pix2pix_fast.__file__).parent / "assets"
    engine = Engine(assets / "facades_labels2photo.safetensors")
    source = clip(tmp_path / "in.mp4", EVEN[:3], size=(256, 256))
    target = tmp_path / "out.mp4"
    translate_video(engine, source, target, fit="native", quality=1)
    with av.open(str(source)) as a, av.open(str(target)) as b:
        frame = next(a.decode(video=0)).to_ndarray(format="rgb24")
        got = next(b.decode(video=0)).to_ndarray(format="rgb24").astype(float)
    want = engine.translate(frame).astype(float)
    # 4:2:0 and the encoder blur colours; brightness stays
    luma = np.array([0.299, 0.587, 0.114])
    assert abs((got - want) @ luma).mean() < 4


@pytest.mark.parametrize(
    ("codec", "preset", "told"),
    [
        ("h264", "quick", [b"cabac=0 ", b"weightp=0 ", b"analyse=0x3:0 "]),
        ("h264", "superfast", [b"cabac=1 ", b"weightp=1 "]),
        ("hevc", "quick", [b"crf=30."]),
    ],
)
def test_the_encoder_does_what_the_preset_says(
    engine: Engine, tmp_path: Path, codec: Any, preset: str, told: list[bytes]
) -> None:
    """Both encoders write their settings into the stream; one that they do not know they only warn of."""
    target = tmp_path / "out.mp4"
    report = translate_video(
        engine, clip(tmp_path / "in.mp4", EVEN), target, codec=codec, preset=preset, quality=30
    )
    assert report.frames == len(EVEN) and times_of(target) == times_of(tmp_path / "in.mp4")
    written = target.read_bytes()
    assert [setting for setting in told if setting not in written] == []


@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "flac", "libopus", "ac3", "alac"])
def test_sound_is_copied_packet_by_packet(engine: Engine, tmp_path: Path, codec: str) -> None:
    try:
        source = clip(tmp_path / "in.mkv", EVEN, sound=codec)
    except Exception as error:  # noqa: BLE001 - an encoder that this build lacks or that wants more
        pytest.skip(f"this PyAV does not write {codec}: {error}")
    target = tmp_path / "out.mkv"
    report = translate_video(engine, source, target)

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(p) for p in container.demux(audio=0) if p.size]

    assert packets(source) == packets(target) and report.audio_packets == len(packets(source)) > 0


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".m4v", ".mkv"])
def test_sound_of_a_transport_stream(engine: Engine, tmp_path: Path, suffix: str) -> None:
    """AAC has a header in each packet there, which MP4 must not get; the sound is the same."""
    source, target = clip(tmp_path / "in.ts", EVEN, sound="aac"), tmp_path / f"out{suffix}"
    report = translate_video(engine, source, target)
    assert (report.frames, report.warnings) == (len(EVEN), [])

    def sound(path: Path) -> bytes:
        with av.open(str(path)) as container:
            return b"".join(frame.to_ndarray().tobytes() for frame in container.decode(audio=0))

    assert sound(source) == sound(target) and report.audio_packets > 15


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_that_cannot_be_written_is_left_out_and_named(tmp_path: Path, suffix: str) -> None:
    """One packet whose time lies before the last: the film and the other packets go on."""
    source = clip(tmp_path / "in.mkv", EVEN, sound="libmp3lame")
    warnings: list[str] = []
    with av.open(str(source)) as container:
        output = Output(
            tmp_path / f"out{suffix}",
            64,
            96,
            encoder=("libx264", 20, "quick"),
            plan=Plan(64, 96, Fraction(1, 1000), Fraction(25), None, 1, 1),
            audio=list(container.streams.audio),
            warn=warnings.append,
        )
        kept = []
        for index, packet in enumerate(p for p in container.demux(audio=0) if p.size):
            if index == 5:
                packet.pts = packet.dts = packet.dts - 100
            kept.append(output.sound(packet.stream_index, packet))
        for index, at in enumerate(EVEN):
            output.picture(at, picture(index))
        output.flush()
        output.finish()
    assert kept == [index != 5 for index in range(len(kept))] and len(kept) > 10
    assert len(warnings) == 1 and "some sound left out: mp3" in warnings[0], warnings
    assert len(times_of(tmp_path / f"out{suffix}")) == len(EVEN)


def test_a_part_of_a_film(engine: Engine, tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4", EVEN)
    report = translate_video(engine, source, tmp_path / "out.mp4", start=0.2, end=0.5)
    assert report.frames == 8  # 0.20 s, which no float is, belongs to it
    assert times_of(tmp_path / "out.mp4") == [Fraction(i, 25) for i in range(8)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_last_frame_stays_as_long(engine: Engine, tmp_path: Path, suffix: str) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / f"out{suffix}"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.max_b_frames = 0
        packets = []
        for index in range(3):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = 1000 * index, Fraction(1, 1000)
            packets += stream.encode(frame)
        for packet in packets + stream.encode():
            packet.duration = 5000 if packet.pts == 2000 else 1000
            output.mux(packet)
    translate_video(engine, source, target)
    with av.open(str(target)) as container:
        assert container.duration == 7_000_000
    assert times_of(target) == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_what_an_edit_list_hides_stays_hidden(
    engine: Engine, tmp_path: Path, suffix: str
) -> None:
    """A film whose first 0.25 s lie before its beginning, as a cut without encoding makes it."""
    whole, source = clip(tmp_path / "a.mov", EVEN, sound="aac"), tmp_path / "in.mp4"
    with av.open(str(whole)) as one, av.open(
        str(source), "w", options={"avoid_negative_ts": "disabled", "use_editlist": "1"}
    ) as two:
        made = {s.index: two.add_stream_from_template(s) for s in one.streams}
        for packet in one.demux():
            if packet.size:
                shift = round(Fraction(1, 4) / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = made[packet.stream.index]
                two.mux(packet)
    translate_video(engine, source, tmp_path / f"out{suffix}")

    def heard(path: Path) -> list[Fraction]:
        with av.open(str(path)) as container:
            first = next(container.decode(video=0))
            return [f.pts * f.time_base - first.time for f in container.decode(audio=0)]

    before, after = heard(source), heard(tmp_path / f"out{suffix}")
    # a decoder may need some more packets than it plays
    assert len(before) <= len(after) <= len(before) + 3 and after[0] > -0.03
    assert abs(before[-1] - after[-1]) < 0.002


def test_titles_and_languages_are_kept(engine: Engine, tmp_path: Path) -> None:
    source = clip(tmp_path / "a.mkv", EVEN, sound="aac")
    with av.open(str(source)) as one, av.open(str(tmp_path / "in.mkv"), "w") as two:
        two.metadata["title"] = "Der Film"
        made = {s.index: two.add_stream_from_template(s) for s in one.streams}
        made[1].metadata["language"] = "ger"
        for packet in one.demux():
            if packet.size:
                packet.stream = made[packet.stream.index]
                two.mux(packet)
    for suffix in (".mp4", ".mkv"):
        translate_video(engine, tmp_path / "in.mkv", tmp_path / f"out{suffix}")
        with av.open(str(tmp_path / f"out{suffix}")) as container:
            assert container.metadata["title"] == "Der Film"
            assert container.streams.audio[0].language == "ger"


def test_hevc_is_what_apple_plays_and_its_encoder_is_quiet(
    engine: Engine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = clip(tmp_path / "in.mp4", EVEN, size=(64, 64))
    assert capfd.readouterr() is not None  # x264's own log, of making the clip
    translate_video(engine, source, tmp_path / "out.mp4", codec="hevc")
    assert capfd.readouterr() == ("", "")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.codec_tag == "hvc1"
    odd = tmp_path / "odd.mkv"
    with av.open(str(odd), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 67, 65, "yuv444p"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0, 65, 67), format="rgb24")))
        output.mux(stream.encode())
    report = translate_video(engine, odd, tmp_path / "b.mp4", codec="hevc")
    assert report.warnings == ["67x65 became 68x66: HEVC needs even sizes, the last row or column is repeated"]


@pytest.mark.parametrize("size", [(62, 96), (96, 40)])
def test_hevc_of_narrow_films_is_refused(
    engine: Engine, tmp_path: Path, size: tuple[int, int]
) -> None:
    """Its encoder broke the heap and ended the process."""
    source = clip(tmp_path / "in.mkv", EVEN[:2], size=size)
    with pytest.raises(VideoError, match=f"at least 64x64, these are {size[1]}x{size[0]}; take h264"):
        translate_video(engine, source, tmp_path / "out.mp4", codec="hevc")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


def test_an_encoder_that_fails_is_named(tmp_path: Path) -> None:
    plan = Plan(64, 96, Fraction(1, 1000), Fraction(25), None, 1, 1)
    output = Output(tmp_path / "out.mp4", 64, 96, encoder=("libx264", 20, "quick"), plan=plan)
    output.picture(0, picture(0))
    output.flush()
    with pytest.raises(VideoError, match="out.mp4.part: the encoder failed: "):
        output.picture(1, picture(1))  # after its end
    output.abandon()
    assert not list(tmp_path.iterdir())


def test_side_by_side_and_repeats(engine: Engine, tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4", EVEN)
    target = tmp_path / "out.mp4"
    report = translate_video(engine, source, target, side_by_side=True, similar=255)
    assert report.translated == 1 and report.similar + report.repeats == len(EVEN) - 1
    with av.open(str(target)) as container:
        assert next(container.decode(video=0)).width == 192


@pytest.mark.parametrize("ci", [1, 3])
@pytest.mark.parametrize("fit", ["resize", "native"])
@pytest.mark.parametrize("side_by_side", [False, True])
def test_films_of_gray_models(tmp_path: Path, ci: int, fit: str, side_by_side: bool) -> None:
    source = clip(tmp_path / "in.mkv", [0, 40, 80])
    with Engine(tiny_model(depth=3, ci=ci, co=1), size=(64, 96)) as gray:
        report = translate_video(
            gray, source, tmp_path / "out.mkv", fit=fit, side_by_side=side_by_side, deflicker=0.5
        )
    assert (report.frames, report.warnings) == (3, [])
    assert report.duration == pytest.approx(0.12)
    with av.open(str(tmp_path / "out.mkv")) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(64, 96 * (1 + side_by_side), 3)] * 3
    result = frames[-1][:, -90:]
    assert np.ptp(result, axis=2).max() <= 6  # no colour


@pytest.mark.parametrize(
    ("name", "sound", "count"),
    [("in.mp4", "", 100), ("in.mp4", "aac", 30), ("in.mkv", "aac", 30), ("in.ts", "aac", 40), ("in.flv", "aac", 40)],
)
def test_cut_and_mutated_clips_end_well(
    engine: Engine, tmp_path: Path, name: str, sound: str, count: int
) -> None:
    data = clip(tmp_path / name, EVEN, sound=sound).read_bytes()
    broken_name = f"broken{Path(name).suffix}"
    rng = np.random.default_rng(0)
    for index in range(count):
        broken = bytearray(data[: int(rng.integers(1, len(data)))] if index % 2 else data)
        for _ in range(int(rng.integers(1, 20))):
            broken[int(rng.integers(len(broken)))] = int(rng.integers(256))
        source = tmp_path / broken_name
        target = tmp_path / f"out{index}{'.mkv' if sound and index % 3 == 0 else '.mp4'}"
        part = {"start": 0.2, "end": 0.6} if sound and index % 4 == 0 else {}
        source.write_bytes(broken)
        try:
            report = translate_video(engine, source, target, **part)  # type: ignore[arg-type]
        except VideoError:
            assert not target.exists()
        else:
            assert len(times_of(target)) == report.frames > 0
        left = {path.name for path in tmp_path.iterdir()} - {name, broken_name}
        assert all(one.startswith("out") and one.endswith((".mp4", ".mkv")) for one in left), left


def test_the_oldest_pyav_converts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """17.1, the last one for Python 3.10, names the ways of resizing and no flags of libswscale."""
    from av.video import reformatter

    named = {"FAST_BILINEAR": 1, "BILINEAR": 2, "BICUBIC": 4}
    frame = av.VideoFrame.from_ndarray(picture(0), "rgb24").reformat(format="yuv420p")
    want = Converter().array(frame, 3, (40, 56))
    monkeypatch.setattr(reformatter, "Interpolation", IntEnum("Interpolation", named))
    assert np.array_equal(Converter().array(frame, 3, (40, 56)), want)


def test_what_is_no_video_is_refused(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a film")
    good = clip(tmp_path / "good.mp4", EVEN[:2])
    for source, target, kind, words in (
        ("text.mp4", "o.mp4", VideoError, "text.mp4"),
        ("none.mp4", "o.mp4", FileNotFoundError, "none.mp4"),
        ("good.mp4", "good.mp4", Exception, "good.mp4"),
        ("good.mp4", "o.txt", ValueError, "o.txt"),
        ("good.mp4", "no/o.mp4", OSError, "no"),
    ):
        with pytest.raises(kind, match=words):
            translate_video(engine, tmp_path / source, tmp_path / target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.mp4", "text.mp4"]
    with pytest.raises(ValueError, match="similar"):
        translate_video(engine, good, tmp_path / "o.mp4", similar=-1)
    for wrong in ({"start": "1"}, {"end": True}, {"quality": None}, {"deflicker": "0.5"}):
        with pytest.raises(TypeError, match=f"{next(iter(wrong))}: expected a number, got "):
            translate_video(engine, good, tmp_path / "o.mp4", **wrong)  # type: ignore[arg-type]


def test_a_part_that_is_there_is_left_alone(engine: Engine, tmp_path: Path) -> None:
    """It may be the source, another run's, or all that is left of a recording."""
    source = clip(tmp_path / "in.mp4", EVEN)
    part, target = tmp_path / "out.mp4.part", tmp_path / "out.mp4"
    source.rename(part)
    before = part.read_bytes()
    for begin in (part, clip(source, EVEN[:3])):
        with pytest.raises(FileExistsError, match="still going.*rename or remove") as caught:
            translate_video(engine, begin, target, overwrite=True)
        assert caught.value.filename == str(part) and part.read_bytes() == before
    part.unlink()
    part.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        translate_video(engine, source, target)
    part.unlink()

    def late(*_: object) -> None:  # after the arguments were checked, another run makes it
        if not taken.exists():
            taken.write_bytes(b"mine")

    taken = tmp_path / "b.mp4.part"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pix2pix_fast.video.check_target", late)
        with pytest.raises(FileExistsError, match="still going"):
            translate_video(engine, source, tmp_path / "b.mp4")
    assert taken.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.mp4.part", "in.mp4"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit for the size of files")
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_a_full_disk_is_no_success(engine: Engine, tmp_path: Path, name: str) -> None:
    """Wherever it fills up: also in what FFmpeg writes last."""
    import resource

    source, target = clip(tmp_path / "in.mkv", EVEN, sound="aac"), tmp_path / name
    translate_video(engine, source, target)
    size = target.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for missing in (size // 2, 2500, 1500, 600, 1):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, hard))
            with pytest.raises(VideoError, match=f"{name}.part cannot be written: File too large"):
                translate_video(engine, source, target, overwrite=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert target.stat().st_size == size  # the old one
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv", name]


def test_the_command(tmp_path: Path) -> None:
    model.save(tiny_model(depth=3), tmp_path / "m.safetensors")
    source = clip(tmp_path / "in.mp4", EVEN)
    arguments = ["video", str(tmp_path / "m.safetensors"), str(source), str(tmp_path / "out.mp4")]
    done = CliRunner().invoke(main, [*arguments, "--threads", "1"])
    assert done.exit_code == 0, done.output
    assert "20 frames" in done.output and (tmp_path / "out.mp4").exists()
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code != 0


def test_the_command_says_when_a_film_is_not_whole(tmp_path: Path) -> None:
    model.save(tiny_model(depth=3), tmp_path / "m.safetensors")
    source, target = clip(tmp_path / "in.mkv", [40 * i for i in range(200)]), tmp_path / "out.mp4"
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    arguments = ["video", str(tmp_path / "m.safetensors"), str(source), str(target), "--threads", "1"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1 and target.exists(), done.stderr
    assert "in.mkv is damaged or ends early; " in done.stderr
    assert done.stderr.rstrip().endswith("out.mp4 has what could be read of it")


def test_interlaced_films_are_named(engine: Engine, tmp_path: Path) -> None:
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as output:
        options = {"flags": "+ilme+ildct", "top": "1"}
        stream = output.add_stream("mpeg2video", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24")))
        output.mux(stream.encode())
    report = translate_video(engine, source, tmp_path / "out.mp4")
    assert report.warnings == ["the source is interlaced; its two fields are translated as one frame"]


def test_chapters_that_are_left_out_are_named(engine: Engine, tmp_path: Path) -> None:
    whole = clip(tmp_path / "a.mkv", EVEN)
    with av.open(str(whole)) as one, av.open(str(tmp_path / "in.mkv"), "w") as two:
        base = Fraction(1, 1000)
        two.set_chapters([{"id": 1, "start": 0, "end": 400, "time_base": base, "metadata": {"title": "One"}}])
        made = two.add_stream_from_template(one.streams.video[0])
        for packet in one.demux():
            if packet.size:
                packet.stream = made
                two.mux(packet)
    report = translate_video(engine, tmp_path / "in.mkv", tmp_path / "out.mkv")
    assert (report.frames, report.warnings) == (len(EVEN), ["left out: chapters"])


def song(path: Path) -> Path:
    """Sound alone: a moment of silence."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=48000, layout="mono")
        block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        block.sample_rate, block.pts = 48000, 0
        output.mux(stream.encode(block))
        output.mux(stream.encode())
    return path


def with_cover(path: Path, whole: Path) -> Path:
    """The film (or, of sound alone, the song) with a picture on its cover."""
    cover = av.VideoFrame.from_ndarray(picture(0), "rgb24").reformat(format="yuvj420p")
    with av.open(str(whole)) as one, av.open(str(path), "w") as two:
        made = {s.index: two.add_stream_from_template(s) for s in one.streams}
        stream = two.add_stream("mjpeg", rate=1)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuvj420p"
        stream.disposition = av.stream.Disposition.attached_pic
        two.mux(stream.encode(cover))
        two.mux(stream.encode())
        for packet in one.demux():
            if packet.size:
                packet.stream = made[packet.stream.index]
                two.mux(packet)
    return path


def test_a_cover_picture_is_no_film(engine: Engine, tmp_path: Path) -> None:
    source = with_cover(tmp_path / "in.mp4", clip(tmp_path / "a.mp4", EVEN))
    report = translate_video(engine, source, tmp_path / "out.mp4")
    assert (report.frames, report.warnings) == (len(EVEN), ["left out: cover picture streams"])
    with_cover(tmp_path / "cover.mp4", song(tmp_path / "song.mp4"))
    with pytest.raises(VideoError, match=r"cover.mp4 has no video stream \(it has: audio, cover picture\)"):
        translate_video(engine, tmp_path / "cover.mp4", tmp_path / "b.mp4")


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "matrix", "told"),
    [
        ("libvpx-vp9", "yuva420p", 1, ["left out: the source's transparency (alpha channel)"]),
        ("ffv1", "yuva420p", 1, ["left out: the source's transparency (alpha channel)"]),
        ("ffv1", "yuv444p", 8, ["the source's colour matrix (number 8 in ITU-T H.273) is not known here"]),
        ("ffv1", "yuv444p", 9, []),
    ],
)
def test_colours_and_transparency_that_are_lost_are_named(
    engine: Engine, tmp_path: Path, codec: str, pix_fmt: str, matrix: int, told: list[str]
) -> None:
    with av.open(str(tmp_path / "in.mkv"), "w") as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
        stream.codec_context.colorspace = matrix
        for index in range(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), "rgb24")))
        output.mux(stream.encode())
    report = translate_video(engine, tmp_path / "in.mkv", tmp_path / "out.mp4")
    assert [warning.split(";")[0] for warning in report.warnings] == told


@pytest.mark.parametrize("name", ["carphone_pristine.mp4", "pancake.mkv"])
def test_real_clips(
    engine: Engine, tmp_path: Path, name: str, shared_data: Callable[[str], Path]
) -> None:
    source = shared_data("videos") / name
    report = translate_video(engine, source, tmp_path / "out.mp4", end=2.0)
    assert report.complete and report.frames >= 55 and (tmp_path / "out.mp4").stat().st_size > 1000
    length = len(times_of(tmp_path / "out.mp4"))
    times = times_of(source)
    assert times_of(tmp_path / "out.mp4") == [t - times[0] for t in times][:length]


def test_a_shape_that_cannot_be_resized_is_named(engine: Engine, tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mkv", EVEN[:2], size=(2, 8190))
    with pytest.raises(VideoError, match="a picture of 8190x2 cannot be resized to 64x64"):
        translate_video(engine, source, tmp_path / "out.mkv")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_stays(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    source, target = clip(tmp_path / "in.mp4", EVEN[:3]), tmp_path / "out.mp4"
    if not links:  # as on a file system that has none

        def link(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr("os.link", link)
    with pytest.raises(FileExistsError, match=r"since this run began; the result is .*out.mp4.part"):
        translate_video(engine, source, target, progress=lambda *_: target.write_text("mine"))
    assert target.read_text() == "mine" and len(times_of(tmp_path / "out.mp4.part")) == 3
    (tmp_path / "out.mp4.part").unlink()
    translate_video(engine, source, target, overwrite=True)
    translate_video(engine, source, tmp_path / "b.mp4")
    assert len(times_of(target)) == len(times_of(tmp_path / "b.mp4")) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.mp4", "in.mp4", "out.mp4"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_that_leads_nowhere_is_not_replaced(engine: Engine, tmp_path: Path) -> None:
    source, target = clip(tmp_path / "in.mp4", EVEN[:3]), tmp_path / "out.mp4"
    target.symlink_to(tmp_path / "gone.mp4")
    with pytest.raises(FileExistsError):
        translate_video(engine, source, target)
    assert target.is_symlink() and not target.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="has no FIFOs")
def test_pipes_are_refused(engine: Engine, tmp_path: Path) -> None:
    """What had gone through was lost to the second look: some frames only, or none for ever."""
    import os

    os.mkfifo(tmp_path / "in.mkv")
    with pytest.raises(VideoError, match=r"in.mkv is a pipe or a device; expected a file"):
        translate_video(engine, tmp_path / "in.mkv", tmp_path / "out.mkv")


def test_each_complaint_names_the_file_and_what_was_expected(engine: Engine, tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4", EVEN)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello\n")
    song(tmp_path / "sound.mp4")

    def told(*names: str, **options: Any) -> str:
        with pytest.raises((ValueError, VideoError, OSError)) as caught:
            translate_video(engine, *(tmp_path / name for name in names), **options)
        return str(caught.value)

    assert "empty.mp4 is empty; expected a video file" in told("empty.mp4", "o.mp4")
    assert "text.mp4 cannot be opened as a video" in told("text.mp4", "o.mp4")
    assert "expected a whole MP4" in told("text.mp4", "o.mp4")
    assert told("text.mp4", "o.mp4").endswith("(for pictures: translate)")
    assert told(".", "o.mp4").endswith("is a folder; expected a video file (for pictures: translate)")
    assert "sound.mp4 has no video stream (it has: audio)" in told("sound.mp4", "o.mp4")
    assert "out: expected a name that ends in .mp4 .m4v .mov .mkv" in told("in.mp4", "out")
    assert "such as out.mp4" in told("in.mp4", "out")
    assert "make it first" in told("in.mp4", "nowhere/o.mp4")
    assert "it is 0.80 s long" in told("in.mp4", "o.mp4", start=300)
    assert "preset: expected one of quick, ultrafast" in told("in.mp4", "o.mp4", preset="nonsense")
    assert "start: expected 0 to" in told("in.mp4", "o.mp4", start=-1)
    assert "end: expected more than start (3 s), got 2 s" in told("in.mp4", "o.mp4", start=3, end=2)
    if Path("/proc").is_dir():  # a folder that looks writable to an administrator and is not
        with pytest.raises((VideoError, OSError), match="/proc"):
            translate_video(engine, source, "/proc/o.mp4")
    left = {"in.mp4", "empty.mp4", "text.mp4", "sound.mp4"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_a_pyav_that_is_too_new_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "__version__", "19.0.2")
    with pytest.raises(BackendUnavailable, match=r"PyAV 17.1 to 18, found 19.0.2: pip install"):
        pyav()
