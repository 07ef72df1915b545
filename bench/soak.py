"""Long runs: memory stays flat, a live source that is much too fast is dealt with.

    python bench/soak.py film                # 5,000 frames through the default model; memory as it goes
    python bench/soak.py live --seconds 60   # a fake camera five times too fast, then unplugged
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import machine
import numpy as np
import psutil
import video

from pix2pix_fast.errors import VideoError
from pix2pix_fast.live import LiveReport, Shot, live
from pix2pix_fast.video import VideoReport, translate_video


def rss() -> float:
    """MB of this process."""
    return psutil.Process(os.getpid()).memory_info().rss / 1e6


def growth(samples: list[tuple[float, float]]) -> str:
    """(step, MB) -> the slope of a line through the last 80 %, times its length."""
    kept = samples[len(samples) // 5 :]
    x, y = (np.array(values) for values in zip(*kept, strict=True))
    slope = np.polyfit(x, y, 1)[0]
    more = slope * (x[-1] - x[0])
    return (
        f"{y[0]:.1f} MB -> {y[-1]:.1f} MB, slope x length {more:+.2f} MB, "
        f"{more / y.mean():+.2%} of it (bar: below 1 %)"
    )


def film(frames: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "in.mp4"
        video.make_clip(clip, frames)
        samples: list[tuple[float, float]] = []

        def progress(report: VideoReport, _: int | None) -> None:
            if report.frames % 50 == 0:
                samples.append((report.frames, rss()))

        with video.open_engine("facades", "f32", 2) as engine:
            report = translate_video(engine, clip, Path(folder) / "out.mp4", progress=progress)
    print(f"{report.frames} frames, {report.fps:.0f} per second, memory {growth(samples)}")


class Fast:
    """A camera of `rate` frames per second that is pulled out after `seconds`."""

    name, lasting = "fake camera", True

    def __init__(self, rate: float, seconds: float) -> None:
        self.rate, self.seconds = rate, seconds
        self.given, self.unplugged = 0, 0.0

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        pictures = [np.random.default_rng(i).integers(0, 256, (256, 256, 3), np.uint8) for i in (0, 1)]
        start = time.perf_counter()
        while (now := time.perf_counter()) < start + self.seconds:
            due = start + self.given / self.rate
            if due > now:
                time.sleep(due - now)
            self.given += 1
            yield Shot(time.perf_counter(), pictures[self.given % 2])
        self.unplugged = time.perf_counter()
        stop.wait()  # as a driver that never returns


def fast(seconds: float) -> None:
    with video.open_engine("facades", "f32", 2) as engine:
        pictures = [np.zeros((256, 256, 3), np.uint8)]
        frame_ms = 1e3 / video.alone(engine, pictures, 2.0)
        source = Fast(5e3 / frame_ms, seconds)
        report, samples = LiveReport(), []

        def show(_: np.ndarray, so_far: LiveReport) -> None:
            if so_far.translated % 50 == 0:
                samples.append((so_far.seconds, rss()))

        try:
            live(engine, source, report=report, show=show, retries=0)
        except VideoError as error:
            silence = time.perf_counter() - source.unplugged
            print(f"unplugged: error after {silence:.2f} s: {error}")
    p50, p95, p99 = report.age_ms(50, 95, 99)
    exact = report.captured == source.given == report.translated + report.dropped
    print(f"frame {frame_ms:.2f} ms alone; source {source.rate:.0f} frames/s for {seconds:g} s")
    print(f"{source.given} given = {report.translated} translated + {report.dropped} dropped: {exact}")
    print(f"at most {report.deepest} frames between source and result")
    print(f"age p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ms; bound {2 * frame_ms + 50:.1f} ms")
    print(f"memory {growth(samples)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["film", "live"])
    parser.add_argument("--frames", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    print(machine.card())
    if arguments.what == "film":
        film(arguments.frames)
    else:
        fast(arguments.seconds)


if __name__ == "__main__":
    main()
