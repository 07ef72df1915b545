"""Films through a generator that changes nothing: orientation, colour, times, sound's offset, and what
is left when the process is killed."""

from __future__ import annotations

import gc
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from test_yuv import MATRICES, exact_rgb, exact_yuv
from tiny import environment, noise, tiny_model

from pix2pix_fast import Engine
from pix2pix_fast.engine import Lanes
from pix2pix_fast.errors import VideoError

av: Any = pytest.importorskip("av")

from pix2pix_fast.video import translate_video  # noqa: E402
from pix2pix_fast.video_frames import BT601, BT709, FULL, LIMITED  # noqa: E402

MS = Fraction(1, 1000)


class Identity:
    """What an Engine looks like to a film, without its doing anything."""

    def __init__(self, size: tuple[int, int] = (64, 64), channels: int = 3) -> None:
        self.info = {"in_channels": channels, "out_channels": channels, "size": size}

    def translate(self, picture: np.ndarray) -> np.ndarray:
        return picture.copy()

    def lanes(self) -> Lanes:
        return Lanes(self.translate, 1)


def write(
    path: Path,
    frames: list[Any],
    times: list[int],
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    matrix: list[int] | None = None,
    tags: tuple[int, int] | None = None,
    sound_at: int | None = None,
) -> Path:
    """PyAV frames at `times` (ms); sound_at: when a mono track of 0.6 s begins (ms)."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt = frames[0].format.name
        stream.codec_context.time_base = stream.time_base = MS
        if matrix:
            stream.set_display_matrix(matrix)
        if tags:
            stream.codec_context.colorspace, stream.codec_context.color_range = tags
        audio = None
        if sound_at is not None:
            audio = output.add_stream("aac", rate=48000, layout="mono")
        for frame, at in zip(frames, times, strict=True):
            frame.pts, frame.time_base = at, MS
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if audio is not None and sound_at is not None:
            for index in range(28):
                block = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
                )
                block.sample_rate, block.time_base = 48000, Fraction(1, 48000)
                block.pts = sound_at * 48 + index * 1024
                output.mux(audio.encode(block))
            output.mux(audio.encode())
    return path


def decoded(path: Path) -> list[Any]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def rgb_frames(pictures: list[np.ndarray]) -> list[Any]:
    made = [av.VideoFrame.from_ndarray(picture, "rgb24") for picture in pictures]
    return [frame.reformat(format="yuv420p") for frame in made]


# Orientation

# (a, b, c, d) of the display matrix: x' = a x + c y, y' = b x + d y, from the middle of the picture
TURNS = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)]
TURNS += [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


def stored(upright: np.ndarray, turn: tuple[int, int, int, int]) -> np.ndarray:
    """The picture which a player that obeys the matrix shows as `upright`."""
    a, b, c, d = turn
    h, w = upright.shape[:2]
    sh, sw = (h, w) if a else (w, h)
    y, x = np.mgrid[:sh, :sw]
    x2, y2 = 2 * x - (sw - 1), 2 * y - (sh - 1)  # twice the place, from the middle
    shown_x, shown_y = (a * x2 + c * y2 + w - 1) // 2, (b * x2 + d * y2 + h - 1) // 2
    return np.ascontiguousarray(upright[shown_y, shown_x])


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
def test_eight_orientations_are_shown_the_same_way_round(codec: str, tmp_path: Path) -> None:
    upright = np.zeros((64, 96, 3), np.uint8)
    corners = {(0, 0): (230, 30, 30), (0, 1): (30, 230, 30), (1, 0): (30, 30, 230)}
    for (y, x), colour in corners.items():
        upright[32 * y : 32 * y + 32, 48 * x : 48 * x + 48] = colour
    upright[32:, 48:] = 200
    for turn in TURNS:
        a, b, c, d = (value << 16 for value in turn)
        matrix = [a, b, 0, c, d, 0, 0, 0, 1 << 30]
        frames = rgb_frames([stored(upright, turn)] * 3)
        options = {"log-level": "none"} if codec == "libx265" else {"qscale": "2"}
        source = write(
            tmp_path / "in.mp4", frames, [0, 40, 80], codec=codec, matrix=matrix, options=options
        )
        translate_video(Identity(), source, tmp_path / "out.mp4", fit="native", overwrite=True)  # type: ignore[arg-type]
        results = decoded(tmp_path / "out.mp4")
        assert len(results) == 3 and results[0].rotation == 0
        shown = results[1].to_ndarray(format="rgb24").astype(int)
        assert shown.shape == upright.shape, turn
        for y in (0, 1):
            for x in (0, 1):
                part = np.s_[32 * y + 8 : 32 * y + 24, 48 * x + 8 : 48 * x + 40]
                assert np.abs(shown[part] - upright[part]).mean() < 15, (turn, y, x)


# Colour

BARS = [(191, 191, 191), (191, 191, 0), (0, 191, 191), (0, 191, 0)]
BARS += [(191, 0, 191), (191, 0, 0), (0, 0, 191), (16, 16, 16)]
EXACT = {"crf": "0", "preset": "ultrafast"}  # libx264 is lossless there


def bars_frame(k: tuple[float, float], full: bool, kind: str = "yuv420p") -> Any:
    bars = np.repeat(np.array(BARS, np.uint8)[None], 16, axis=1).repeat(32, axis=0)
    frame = av.VideoFrame(128, 32, kind)
    chroma = (1, 1) if kind == "yuv420p" else (0, 0)
    for plane, values in zip(frame.planes, exact_yuv(bars, chroma, k, full), strict=True):
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, : plane.width] = np.rint(values)
        plane.update(rows.tobytes())
    return frame


def shown_colours(frame: Any) -> np.ndarray:
    """What a frame of a translated film (BT.709, limited, 4:2:0) shows, (h, w, 3) float64."""
    planes = [
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
        for plane in frame.planes
    ]
    return exact_rgb(planes, (1, 1), MATRICES["709"], False)


@pytest.mark.parametrize("fit", ["native", "resize"])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", ["601", "709"])
def test_colour_bars(matrix: str, full: bool, fit: Any, tmp_path: Path) -> None:
    tags = (BT601 if matrix == "601" else BT709, FULL if full else LIMITED)
    frame = bars_frame(MATRICES[matrix], full)
    frame.colorspace, frame.color_range = tags
    source = write(tmp_path / "in.mp4", [frame], [0], options=EXACT, tags=tags)
    first = decoded(source)[0]
    assert (int(first.colorspace), int(first.color_range)) == tags
    translate_video(
        Identity((32, 128)), source, tmp_path / "out.mp4", fit=fit, quality=0, preset="ultrafast"  # type: ignore[arg-type]
    )
    result = decoded(tmp_path / "out.mp4")[0]
    assert (int(result.colorspace), int(result.color_range)) == (BT709, LIMITED)
    shown = shown_colours(result)
    for index, colour in enumerate(BARS):
        inside = shown[4:28, 16 * index + 4 : 16 * index + 12]
        assert np.abs(inside - colour).max() <= 2, (index, colour, inside[0, 0])


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("size", [(48, 64), (32, 40)])
def test_colours_stay_where_sizes_change(
    size: tuple[int, int], full: bool, tmp_path: Path
) -> None:
    """Through a model of another size, there and back."""
    tags = (BT601, FULL if full else LIMITED)
    frame = bars_frame(MATRICES["601"], full)
    frame.colorspace, frame.color_range = tags
    source = write(tmp_path / "in.mp4", [frame], [0], options=EXACT, tags=tags)
    translate_video(Identity(size), source, tmp_path / "out.mp4", quality=0)  # type: ignore[arg-type]
    result = decoded(tmp_path / "out.mp4")[0]
    shown = shown_colours(result)
    for index, colour in enumerate(BARS):
        inside = shown[8:24, 16 * index + 7 : 16 * index + 9]
        assert np.abs(inside - colour).max() <= 3, (index, colour, inside[0, 0])


@pytest.mark.parametrize("kind", ["yuv444p", "yuv422p", "yuvj420p", "yuv420p10le", "gray"])
def test_other_pixel_formats(kind: str, tmp_path: Path) -> None:
    picture = np.full((32, 64, 3), 120, np.uint8)
    if kind != "gray":
        picture[:, :32], picture[:, 32:] = (150, 90, 60), (60, 120, 170)
    frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=kind)
    codec = "ffv1" if kind != "yuvj420p" else "mjpeg"
    options = {"qmin": "1", "qmax": "1"} if codec == "mjpeg" else {}
    source = write(tmp_path / "in.mkv", [frame], [0], codec=codec, options=options)
    translate_video(Identity((32, 64)), source, tmp_path / "out.mp4", quality=0)  # type: ignore[arg-type]
    shown = decoded(tmp_path / "out.mp4")[0].to_ndarray(format="rgb24").astype(int)
    for part in (np.s_[8:24, 8:24], np.s_[8:24, 40:56]):
        assert np.abs(shown[part] - picture[part]).max() <= 5


# Times and sound


@pytest.mark.parametrize("seed", range(20))
def test_a_variable_rate_keeps_its_times(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    times = [draw.choice((0, 0, 17, 500))]
    for _ in range(draw.randint(5, 30)):
        times.append(times[-1] + draw.choice((1, 7, 16, 17, 33, 34, 41, 100, 250, 1200)))
    picture = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    frames = rgb_frames([np.roll(picture, index, 0) for index in range(len(times))])
    endings = (".mp4", ".mkv", ".mov")
    source = write(tmp_path / f"in{draw.choice(endings)}", frames, times)
    target = tmp_path / f"out{draw.choice(endings)}"
    report = translate_video(Identity((32, 32)), source, target)  # type: ignore[arg-type]
    before, after = decoded(source), decoded(target)
    assert len(before) == len(after) == report.frames == len(times)
    assert (report.dropped, report.complete) == (0, True)
    begin = times[0] * MS  # where the clip begins is 0 in the result
    for one, other in zip(before, after, strict=True):
        assert abs(one.pts * one.time_base - begin - other.pts * other.time_base) <= MS


def packet_times(path: Path, kind: str) -> list[Fraction]:
    with av.open(str(path)) as container:
        (stream,) = (one for one in container.streams if one.type == kind)
        found = [p.pts * p.time_base for p in container.demux(stream) if p.size and p.pts is not None]
        return sorted(found)


@pytest.mark.parametrize("start", [None, 0.2])
@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
@pytest.mark.parametrize(("sound_at", "first"), [(0, 0), (120, 0), (0, 200)])
def test_sound_stays_where_it_was(
    sound_at: int, first: int, ending: str, start: float | None, tmp_path: Path
) -> None:
    times = [first + 40 * index for index in range(15)]
    frames = rgb_frames([np.full((32, 32, 3), 10 * index, np.uint8) for index in range(15)])
    source = write(tmp_path / f"in{ending}", frames, times, sound_at=sound_at)
    target = tmp_path / f"out{ending}"
    translate_video(Identity((32, 32)), source, target, start=start)  # type: ignore[arg-type]
    offsets = []
    for path in (source, target):
        pictures, sounds = packet_times(path, "video"), packet_times(path, "audio")
        # by their ends, as `start` cuts beginnings; every packet that was kept still has its length
        offsets.append(sounds[-1] - pictures[-1])
        gaps = {round(float(b - a), 3) for a, b in zip(sounds[1:], sounds[2:], strict=False)}
        assert gaps <= {0.021, 0.022}, gaps
    assert abs(offsets[0] - offsets[1]) <= 2 * MS, [float(value) for value in offsets]


# Killed

CHILD = """
import sys, time
from test_video_bars import Identity
from pix2pix_fast.video import translate_video

class Slow(Identity):
    def translate(self, picture):
        time.sleep(0.004)
        return super().translate(picture)

translate_video(Slow((32, 32)), sys.argv[1], sys.argv[2],
                progress=lambda report, _: print(report.frames, flush=True))
"""
FRAMES = 250


def test_killed_at_any_moment_the_name_is_absent_or_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (32, 32, 3), np.uint8)
    frames = rgb_frames([np.roll(picture, index, 1) for index in range(FRAMES)])
    source = write(tmp_path / "in.mp4", frames, [40 * index for index in range(FRAMES)])

    def killed(index: int) -> tuple[bool, int]:
        """Whether the name was there, and how many frames had been translated."""
        target = tmp_path / f"out{index}{('.mp4', '.mkv')[index % 2]}"
        after = int(FRAMES * (index + random.Random(index).random()) / 18)  # the last two: finished
        command = [sys.executable, "-c", CHILD, str(source), str(target)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment(), cwd="/"
        ) as child:
            assert child.stdout is not None
            seen = 0
            for line in child.stdout:
                seen = int(line)
                if seen >= after:
                    break
            time.sleep(random.Random(index).random() * 0.01)
            child.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
            rest = child.stdout.read().split()
            seen = max([seen, *map(int, rest[:-1])])  # the last line may be half
        part = target.with_name(target.name + ".part")
        if target.exists():
            assert len(decoded(target)) == FRAMES
        elif seen > 50:
            playable = decoded(part)
            assert float(playable[-1].time) >= (seen - 1) * 0.04 - 1.0, (seen, len(playable))
        return target.exists(), seen

    with ThreadPoolExecutor(psutil.cpu_count() or 1) as pool:
        ends = list(pool.map(killed, range(20)))
    assert sum(there for there, _ in ends) < 20
    assert any(10 < seen < FRAMES for _, seen in ends)
    # the next run says what to do with what was left
    with pytest.raises(FileExistsError, match="out1.mkv.part"):
        translate_video(Identity((32, 32)), source, tmp_path / "out1.mkv", overwrite=True)  # type: ignore[arg-type]
    (tmp_path / "out1.mkv.part").unlink()
    translate_video(Identity((32, 32)), source, tmp_path / "out1.mkv", overwrite=True)  # type: ignore[arg-type]
    assert len(decoded(tmp_path / "out1.mkv")) == FRAMES
    assert not (tmp_path / "out1.mkv.part").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C to a child needs POSIX signals")
def test_an_impatient_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    frames = rgb_frames([np.zeros((32, 32, 3), np.uint8)] * FRAMES)
    source = write(tmp_path / "in.mp4", frames, [40 * index for index in range(FRAMES)])
    for pause in (0.02, 0.005, 0.001):
        command = [sys.executable, "-c", CHILD, str(source), str(tmp_path / "out.mp4")]
        with subprocess.Popen(
            command, stdout=-1, stderr=-1, text=True, env=environment(), cwd="/"
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if int(line) == 20:
                    break
            for _ in range(4):
                child.send_signal(signal.SIGINT)
                time.sleep(pause)
            _, errors = child.communicate(timeout=30)
        assert child.returncode != 0 and "KeyboardInterrupt" in errors
        assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_an_engine_that_fails_leaves_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "in.mp4", rgb_frames([np.zeros((32, 32, 3), np.uint8)] * 3), [0, 40, 80])

    class Broken(Identity):
        def translate(self, picture: np.ndarray) -> np.ndarray:
            raise VideoError("broken")

    with pytest.raises(VideoError, match="broken"):
        translate_video(Broken(), source, tmp_path / "out.mp4")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


# Memory and threads


def test_memory_stays_flat(tmp_path: Path) -> None:
    """Frames of 332 KB, and no garbage collector to find what only a cycle of references keeps: if
    one in fifty stayed, 400 of them would be 2.6 MB (bench/soak.py does 5,000 frames)."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (16, 24, 3), np.uint8).repeat(24, 0).repeat(24, 1)
    frames = rgb_frames([np.roll(picture, index, 1) for index in range(600)])
    times = [40 * index for index in range(600)]
    source = write(tmp_path / "in.mp4", frames, times, options={"preset": "ultrafast"})
    samples: list[int] = []

    def progress(report: Any, _: int | None) -> None:
        if report.frames >= 200 and report.frames % 20 == 0:
            samples.append(psutil.Process().memory_info().rss)

    gc.disable()
    try:
        translate_video(Identity(), source, tmp_path / "out.mp4", fit="native", progress=progress)  # type: ignore[arg-type]
    finally:
        gc.enable()
    slope = np.polyfit(range(len(samples)), samples, 1)[0] * len(samples)
    assert slope < 2 << 20, slope


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_frames_side_by_side_give_the_same_bits(threads: int, tmp_path: Path) -> None:
    """Each engine thread has a frame of its own, with the filter and repeats in between."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(16, 0).repeat(16, 1)]
    for index in range(30):
        step = pictures[-1].copy()
        step[:, :16] += index % 3  # every third frame repeats the last
        pictures.append(step)
    times = [40 * index for index in range(31)]
    source = write(tmp_path / "in.mp4", rgb_frames(pictures), times, options={"crf": "0"})

    def films(count: int) -> list[bytes]:
        with Engine(tiny_model(depth=3), threads=count, size=(64, 64)) as engine:
            made = []
            for name, options in (("a", {}), ("b", {"deflicker": 0.8}), ("c", {"similar": 1.0})):
                target = tmp_path / f"{name}{count}.mkv"
                report = translate_video(
                    engine, source, target, quality=0, overwrite=True, **options  # type: ignore[arg-type]
                )
                assert report.translated + report.repeats + report.similar == 31 == report.frames
                assert report.repeats > 5 or report.similar > 5
                made += [frame.to_ndarray().tobytes() for frame in decoded(target)]
            return made

    assert films(threads) == films(1)


def test_lanes_give_the_same_bits() -> None:
    pictures = [noise((40, 56, 3), seed=seed) for seed in range(12)]
    with Engine(tiny_model(depth=3), threads=3) as engine, engine.lanes() as lanes:
        expected = [engine.translate(picture) for picture in pictures]
        without = engine.stats["workspace_bytes"]
        lanes.submit(pictures[0]).result()
        one = engine.stats["workspace_bytes"] - without
        for made, right in zip([lanes.submit(p) for p in pictures * 5], expected * 5, strict=True):
            np.testing.assert_array_equal(made.result(), right)
        assert lanes.count == 3
        assert 0 < engine.stats["workspace_bytes"] - without <= 3 * one  # one a thread, kept
        assert engine.stats["calls"] == 12 + 1 + 60


def test_lanes_that_are_left_by_an_error_drop_what_has_not_begun() -> None:
    begun, go = [], threading.Event()

    def translate(picture: np.ndarray) -> np.ndarray:
        begun.append(len(picture))
        go.wait(10)
        return picture

    with pytest.raises(ZeroDivisionError), Lanes(translate, 1) as lanes:
        jobs = [lanes.submit(np.zeros(size)) for size in range(5)]
        raise ZeroDivisionError
    go.set()
    jobs[0].result()
    assert begun == [0] and all(job.cancelled() for job in jobs[1:])
