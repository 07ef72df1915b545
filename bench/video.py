"""Films end to end against the engine alone, in the same process and the same minute.

    python bench/video.py      # facades and edges2photo of the package, U-Net-256 of 64 filters
    python bench/video.py --model m.safetensors --frames 300

The clip is made here: 256x256, H.264, the package's label drawings panned under a window. A round
times `Engine.translate` on the clip's own frames, the whole film (read, decode, convert, translate,
convert, encode, write), and the engine once more: its rate is the mean of both, since a noisy machine
changes its speed within seconds. The share is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any

import machine
import nets
import numpy as np
from PIL import Image

from pix2pix_fast import Engine
from pix2pix_fast.video import translate_video

SIDE = 256
OWN = {
    "facades": "facades_labels2photo.safetensors",
    "edges2photo": "edges2photo.safetensors",
}


def drawings() -> np.ndarray:
    """(256, w, 3) uint8: the package's drawings in a row."""
    folder = Path(str(files("pix2pix_fast") / "assets" / "pictures"))
    rows = [Image.open(path).convert("RGB").resize((SIDE, SIDE)) for path in sorted(folder.iterdir())]
    return np.concatenate([np.asarray(row) for row in rows], axis=1)


def make_clip(path: Path, frames: int) -> list[np.ndarray]:
    """A clip of `frames` different frames; a few of them, as arrays, for the engine alone."""
    import av

    strip, kept = drawings(), []
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "20"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            at = (index * 3) % (strip.shape[1] - SIDE)
            picture = np.ascontiguousarray(strip[:, at : at + SIDE])
            if index < 32:
                kept.append(picture)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return kept


def open_engine(name: str, precision: str, threads: int) -> Engine:
    options: Any = {"precision": precision, "threads": threads, "size": (SIDE, SIDE)}
    if name == "unet256":
        return Engine(nets.unet(64), **options)
    assets = Path(str(files("pix2pix_fast") / "assets"))
    return Engine(assets / OWN[name] if name in OWN else name, **options)


def alone(engine: Engine, pictures: list[np.ndarray], seconds: float) -> float:
    """Frames per second of the engine alone."""
    out = engine.translate(pictures[0])
    count, start = 0, time.perf_counter()
    while (now := time.perf_counter()) < start + seconds or count < 5:
        engine.translate(pictures[count % len(pictures)], out=out)
        count += 1
    return count / (now - start)


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    frames = arguments.frames or (50 if name == "unet256" else 200)
    clip = folder / f"{frames}.mp4"
    pictures = make_clip(clip, frames)
    engine_fps, film_fps = [], []
    with open_engine(name, arguments.precision, arguments.threads) as engine:
        for _ in range(arguments.rounds + 1):
            before = alone(engine, pictures, 0.5)
            report = translate_video(engine, clip, folder / "out.mp4", overwrite=True)
            assert report.complete and report.translated == frames, report
            engine_fps.append(2 / (1 / before + 1 / alone(engine, pictures, 0.5)))
            film_fps.append(report.fps)
        info = engine.info
    engine_fps, film_fps = engine_fps[1:], film_fps[1:]  # the first round warms everything up
    shares = [film / one for film, one in zip(film_fps, engine_fps, strict=True)]
    return {
        "model": name,
        "precision": info["precision"],
        "threads": info["threads"],
        "frames": frames,
        "engine_fps": round(statistics.median(engine_fps), 1),
        "film_fps": round(statistics.median(film_fps), 1),
        "share": round(statistics.median(shares), 3),
        "shares": [round(share, 3) for share in shares],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="facades, edges2photo, unet256 or a file")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--frames", type=int, default=0, help="of the clip")
    arguments = parser.parse_args()
    print(json.dumps(machine.card()))
    print(f"{'model':>14} {'engine alone':>13} {'film':>8} {'share':>7}   rounds")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.model or ("facades", "edges2photo", "unet256"):
            row = measure(name, arguments, Path(folder))
            print(
                f"{Path(name).stem:>14} {row['engine_fps']:>9} fps {row['film_fps']:>8} "
                f"{row['share']:>7.1%}   {row['shares']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
