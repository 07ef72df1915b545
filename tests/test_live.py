"""A live source: the newest frame wins, every frame is accounted for, a lost source is noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import environment, noise, tiny_model

from pix2pix_fast import Engine, model
from pix2pix_fast.cli import main
from pix2pix_fast.errors import VideoError

av: Any = pytest.importorskip("av")

from test_video import clip, times_of  # noqa: E402

from pix2pix_fast.live import Camera, File, LiveReport, Shot, live  # noqa: E402

SIDE = 64


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model(depth=3), threads=1, size=(SIDE, SIDE))


class Fake:
    """A camera in a thread: `frames` frames per opening, `pause` seconds apart; then it ends, fails
    or says nothing more."""

    name = "fake camera"
    lasting = True

    def __init__(self, frames: int, pause: float = 0.0, end: str = "ends") -> None:
        self.frames, self.pause, self.end = frames, pause, end
        self.openings = 0
        self.given = 0
        self.stops: list[threading.Event] = []

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        self.openings += 1
        self.stops.append(stop)
        picture = noise((SIDE, SIDE, 3))
        for _ in range(self.frames):
            if stop.wait(self.pause):
                return
            self.given += 1
            yield Shot(time.perf_counter(), picture)
        if self.end == "fails":
            raise OSError(5, "Input/output error")
        if self.end == "says nothing":
            stop.wait()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pix2pix_fast.live.PAUSES", (0.01,))


def test_every_frame_is_translated_or_counted_as_dropped(engine: Engine) -> None:
    fake, results = Fake(100_000, 0.0005), []
    slow = threading.Event()

    def show(result: np.ndarray, report: LiveReport) -> None:
        results.append(result)
        slow.wait(0.02)  # so the source is many times too fast

    report = live(engine, fake, seconds=1.0, show=show)
    assert report.ended == "time is up"
    assert report.captured == report.translated + report.dropped
    assert report.translated == len(results) > 0 and report.dropped > report.translated
    assert report.deepest == 2  # one waits, one is in work
    assert fake.given - report.captured in (0, 1)  # one may have come as it was closed
    assert fake.stops[0].is_set()
    np.testing.assert_array_equal(results[0], engine.translate(noise((SIDE, SIDE, 3))))


def test_the_newest_frame_is_the_next(engine: Engine) -> None:
    """While one frame is being translated the source gives three more: only the last is seen."""
    go, given = threading.Event(), threading.Event()

    class Steps(Fake):
        def shots(self, stop: threading.Event) -> Iterator[Shot]:
            for value in range(4):
                if value == 1:
                    go.wait(10)
                yield Shot(time.perf_counter(), np.full((SIDE, SIDE, 3), value, np.uint8))
            given.set()
            stop.wait()

    seen: list[np.ndarray] = []
    stop = threading.Event()

    def show(result: np.ndarray, report: LiveReport) -> None:
        seen.append(result)
        go.set()
        given.wait(10)
        if len(seen) == 2:
            stop.set()

    report = live(engine, Steps(0), show=show, stop=stop)
    assert (report.captured, report.translated, report.dropped, report.deepest) == (4, 2, 2, 1)
    assert report.ended == "stopped"
    for result, value in zip(seen, (0, 3), strict=True):
        expected = engine.translate(np.full((SIDE, SIDE, 3), value, np.uint8))
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("end", ["ends", "fails", "says nothing"])
def test_a_lost_source_is_opened_again_and_then_given_up(engine: Engine, end: str) -> None:
    fake, report, told = Fake(3, 0.01, end), LiveReport(), []

    def notice(text: str) -> None:
        told.append(text)
        if len(told) == 2:  # from the third opening on it gives nothing
            fake.frames = 0

    with pytest.raises(VideoError, match="fake camera: .*gave up after 3 attempts"):
        live(engine, fake, retries=3, stall=0.3, notice=notice, report=report)
    # every opening that gave frames began the count again
    assert fake.openings == 5 and report.reconnections == 4 and report.warnings == told
    words = {"ends": "it ended", "fails": "Input/output error", "says nothing": "no frame for 0.3"}
    assert all(words[end] in text for text in told)
    assert report.captured == report.translated + report.dropped == 6
    assert all(stop.is_set() for stop in fake.stops)


def test_without_retries_the_loss_ends_it(engine: Engine) -> None:
    fake = Fake(2, 0.01, "says nothing")
    with pytest.raises(VideoError, match="fake camera: no frame for 0.2 s$"):
        live(engine, fake, retries=0, stall=0.2)
    assert fake.openings == 1


def test_a_camera_that_was_never_there_is_not_tried_again(engine: Engine) -> None:
    fake = Fake(0, 0, "fails")
    with pytest.raises(VideoError, match="fake camera: Input/output error"):
        live(engine, fake)
    assert fake.openings == 1
    if sys.platform == "linux":
        with pytest.raises(VideoError, match="there is no /dev/video99"):
            live(engine, Camera(99))


def test_a_film_at_its_own_rate_recorded_and_mirrored(engine: Engine, tmp_path: Path) -> None:
    times = [0, 40, 100, 180, 400, 410]
    source, target = clip(tmp_path / "in.mp4", times), tmp_path / "out.mkv"
    results: list[np.ndarray] = []
    start = time.perf_counter()
    report = live(
        engine,
        File(source),
        mirror=True,
        record=target,
        quality=1,
        show=lambda result, _: results.append(result),
    )
    assert time.perf_counter() - start >= 0.41  # not faster than it would be shown
    assert report.ended == "source ended" and not report.warnings
    assert report.captured == len(times) == report.translated + report.dropped
    assert report.recorded == report.translated == len(times_of(target))
    recorded = [float(at) for at in times_of(target)]
    assert recorded[0] == 0 and recorded == sorted(set(recorded)) and recorded[-1] >= 0.3
    with av.open(str(target)) as container:
        first = next(container.decode(video=0))
        assert (first.height, first.width) == (64, 96)
    upright: list[np.ndarray] = []
    live(engine, File(source), show=lambda result, _: upright.append(result))
    assert not np.array_equal(results[0], upright[0])


def test_a_source_of_odd_size_is_recorded_with_a_warning(engine: Engine, tmp_path: Path) -> None:
    class Odd(Fake):
        lasting = False

        def shots(self, stop: threading.Event) -> Iterator[Shot]:
            for shot in super().shots(stop):
                yield shot._replace(frame=noise((65, 67, 3)))

    told: list[str] = []
    report = live(engine, Odd(2, 0.02), record=tmp_path / "out.mkv", notice=told.append)
    assert report.warnings == told
    assert told == ["67x65 became 68x66: H.264 needs even sizes, the last row or column is repeated"]


@pytest.mark.parametrize("kind", ["itself", "hard link", "symbolic link"])
def test_a_recording_does_not_replace_its_source(
    engine: Engine, tmp_path: Path, kind: str
) -> None:
    source, target = clip(tmp_path / "in.mp4", [0, 40]), tmp_path / "out.mp4"
    if kind == "itself":
        target = source
    elif kind == "hard link":
        os.link(source, target)
    else:
        target.symlink_to(source)
    before = source.read_bytes()
    with pytest.raises(ValueError, match=f"record: .*{target.name} is the source itself; give"):
        live(engine, File(source), record=target, overwrite=True)
    assert source.read_bytes() == target.read_bytes() == before


def test_a_lost_source_leaves_a_whole_recording(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="fake camera"):
        live(engine, Fake(5, 0.02, "fails"), record=tmp_path / "out.mp4", retries=0)
    assert 1 <= len(times_of(tmp_path / "out.mp4")) <= 5
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_a_full_disk_leaves_what_was_recorded(engine: Engine, tmp_path: Path, name: str) -> None:
    import resource

    class Moving(Fake):  # every frame takes some kilobytes
        def shots(self, stop: threading.Event) -> Iterator[Shot]:
            rng = np.random.default_rng(0)
            for shot in super().shots(stop):
                picture = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
                yield shot._replace(frame=picture)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = f"{name}.part cannot be written: File too large; what was written until then is kept there"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        with pytest.raises(VideoError, match=told):
            live(engine, Moving(1000, 0.05), record=tmp_path / name, quality=1, seconds=30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.part"]
    frames = []
    with av.open(str(tmp_path / f"{name}.part")) as film, suppress(av.FFmpegError):
        frames += film.decode(video=0)  # up to the one that the end cuts
    assert frames


def test_a_gap_in_a_film_is_no_loss(engine: Engine, tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mkv", [0, 40, 700, 740])
    report = live(engine, File(source), stall=0.2)
    assert (report.ended, report.captured) == ("source ended", 4)
    assert (report.reconnections, report.warnings) == (0, [])


def test_a_damaged_packet_of_a_film_is_skipped(engine: Engine, tmp_path: Path) -> None:
    """It was an error, after which the film began again, for ever."""
    source = clip(tmp_path / "in.mkv", [4 * i for i in range(50)])
    with av.open(str(source)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0)]
    length = bytes([0x7F, 255, 255, 255])  # of its first unit: more than there is
    source.write_bytes(source.read_bytes().replace(packets[20], length + packets[20][4:]))
    report = live(engine, File(source))
    assert report.ended == "source ended" and report.reconnections == 0
    assert 20 <= report.captured < 50
    assert report.warnings == [f"{source}: 1 damaged packets were skipped"]


def test_a_raw_stream_plays_at_its_rate(engine: Engine, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.h264"), "w") as output:
        stream = output.add_stream("libx264", rate=50)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for _ in range(10):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(noise((SIDE, SIDE, 3)), "rgb24")))
        output.mux(stream.encode())
    start = time.perf_counter()
    report = live(engine, File(tmp_path / "in.h264"))
    assert report.captured == 10 and time.perf_counter() - start >= 9 / 50


def test_colour_arrays_for_a_gray_model(tmp_path: Path) -> None:
    results: list[np.ndarray] = []
    with Engine(tiny_model(depth=3, ci=1, co=1), threads=1, size=(SIDE, SIDE)) as gray:
        live(gray, Fake(1, 0, "says nothing"), seconds=0.3, show=lambda r, _: results.append(r))
    assert results[0].shape == (SIDE, SIDE)


def test_the_time_is_up_in_a_pause_too(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pix2pix_fast.live.PAUSES", (30.0,))
    start = time.perf_counter()
    report = live(engine, Fake(1, 0.01, "fails"), seconds=0.5)
    assert report.ended == "time is up" and time.perf_counter() - start < 10


def test_an_age_begins_where_the_packet_came(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = Camera(str(clip(tmp_path / "in.mkv", [0, 40, 80])))
    camera._format, camera._device = "matroska", str(tmp_path / "in.mkv")
    decoded = camera._decoded

    def slow(video: Any, packet: Any) -> list[Any]:
        time.sleep(0.05)
        return decoded(video, packet)

    monkeypatch.setattr(camera, "_decoded", slow)
    report = LiveReport()
    with pytest.raises(VideoError, match="it ended"):
        live(engine, camera, retries=0, report=report)
    assert report.translated and min(report.ages) >= 0.05


def test_a_recording_keeps_the_shape_of_pixels(engine: Engine, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.mkv"), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)
        for _ in range(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(noise((64, 96, 3)), "rgb24")))
        output.mux(stream.encode())
    live(engine, File(tmp_path / "in.mkv"), record=tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"retries": -1}, "retries: expected 0"),
        ({"stall": 0}, "stall: expected 0.1"),
        ({"seconds": 0}, "seconds: expected more"),
        ({"quality": 99}, "quality: expected 0 to 51"),
        ({"codec": "gif"}, "codec: expected one of h264"),
        ({"record": "out.txt"}, "expected a name that ends in .mp4"),
        ({"record": "https://example.com/out.mp4"}, "record: "),
    ],
)
def test_wrong_arguments(engine: Engine, options: dict[str, Any], told: str) -> None:
    fake = Fake(1)
    with pytest.raises(ValueError, match=told):
        live(engine, fake, **options)
    assert fake.openings == 0


@pytest.mark.parametrize("options", [{"stall": "3"}, {"seconds": [1]}, {"quality": None}])
def test_what_is_no_number_is_named(engine: Engine, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(options))}: expected a number, got "):
        live(engine, Fake(1), **options)


def test_sources_are_local() -> None:
    with pytest.raises(ValueError, match="camera: "):
        Camera("rtsp://example.com/stream")
    with pytest.raises(ValueError, match="file: "):
        File("https://example.com/film.mp4")
    with pytest.raises(FileNotFoundError):
        File("nowhere.mp4")


def test_what_is_asked_of_a_camera_is_no_option_of_a_file(tmp_path: Path) -> None:
    model.save(tiny_model(depth=3), tmp_path / "m.safetensors")
    source = clip(tmp_path / "in.mp4", [0, 40])
    command = ["live", str(tmp_path / "m.safetensors"), "--file", str(source), "--threads", "1"]
    assert CliRunner().invoke(main, command).exit_code == 0
    for name, value in (("--camera", "0"), ("--size", "64x64"), ("--rate", "30")):
        done = CliRunner().invoke(main, [*command, name, value])
        assert done.exit_code == 2 and f"{name}: for a camera, not for --file" in done.output


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C to a child needs POSIX signals")
def test_the_command_ends_well_by_ctrl_c(tmp_path: Path) -> None:
    model.save(tiny_model(depth=3), tmp_path / "m.safetensors")
    source = clip(tmp_path / "in.mp4", [40 * i for i in range(25 * 60)], size=(16, 16))
    part, target = tmp_path / "out.mp4.part", tmp_path / "out.mp4"
    command = [sys.executable, "-m", "pix2pix_fast.cli", "live", str(tmp_path / "m.safetensors")]
    command += ["--file", str(source), "--record", str(target), "--threads", "1"]
    with subprocess.Popen(
        command, stdout=-1, stderr=-1, text=True, env=environment(), cwd="/"
    ) as process:
        try:
            end = time.monotonic() + 30
            while not part.exists() and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")
    assert "frame to result: p50" in out and " dropped" in out and "out.mp4  " in out
    assert len(times_of(target)) >= 1 and not part.exists()
