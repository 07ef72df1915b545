"""A film through a chain of models, looked at: a sheet of frames, and what the flicker filter does.

    python examples/film_sheet.py FILM out/sheet.png MODEL [MODEL]     # one row a stage, eight moments
    python examples/film_sheet.py FILM out/sheet.png MODEL --flicker   # and a table of --deflicker

Flicker is the mean absolute change, in levels, of the translated film from one frame to the next
where the *input* changes by no more than 2 levels: whatever moves there, the model made up. The
price is the mean absolute difference to the unfiltered film over all pixels.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import av
import numpy as np
from PIL import Image

from pix2pix_fast import Engine
from pix2pix_fast.video import VideoReport, translate_video

STILL = 2  # levels


def frames_of(path: Path) -> np.ndarray:
    """(n, h, w, 3) uint8."""
    with av.open(str(path)) as film:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])


def translated(engine: Engine, source: Path, target: Path, **options: float) -> VideoReport:
    return translate_video(engine, source, target, quality=1, overwrite=True, **options)


def sheet(stages: list[np.ndarray], moments: int = 8) -> Image.Image:
    picked = np.linspace(0, min(len(s) for s in stages) - 1, moments).astype(int)
    rows = [np.concatenate(list(stage[picked]), axis=1) for stage in stages]
    return Image.fromarray(np.concatenate(rows))


def flicker(source: np.ndarray, film: np.ndarray) -> float:
    still = abs(np.diff(source.astype(np.int16), axis=0)).max(axis=-1) <= STILL
    change = abs(np.diff(film.astype(np.int16), axis=0)).mean(axis=-1)
    return float(change[still].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("film", type=Path)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--flicker", action="store_true", help="a table for the first model")
    args = parser.parse_args()
    args.sheet.parent.mkdir(parents=True, exist_ok=True)
    engines = [Engine(model) for model in args.models]
    with tempfile.TemporaryDirectory() as folder:
        films = [args.film]
        for index, engine in enumerate(engines):
            films.append(Path(folder) / f"{index}.mp4")
            translated(engine, films[-2], films[-1])
        stages = [frames_of(film) for film in films]
        sheet(stages).save(args.sheet)
        print(args.sheet)
        if not args.flicker:
            return
        print("deflicker  flicker  against unfiltered   (levels)")
        for strength in (0.0, 0.25, 0.5, 0.75, 0.9):
            target = Path(folder) / "steady.mp4"
            translated(engines[0], args.film, target, deflicker=strength)
            film = frames_of(target)
            away = abs(film.astype(np.int16) - stages[1]).mean()
            print(f"{strength:9.2f} {flicker(stages[0], film):8.2f} {away:20.2f}")
        for levels in (1, 2, 4, 8):
            report = translated(engines[0], args.film, Path(folder) / "skip.mp4", similar=levels)
            print(f"--similar {levels}: {report.similar} of {report.frames} frames repeat a result")


if __name__ == "__main__":
    main()
