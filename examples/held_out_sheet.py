"""How models do on pairs they have not seen: the figures, and a sheet to look at.

    python examples/held_out_sheet.py RECIPE DATA SHEET.png MODEL...

One row per pair: input, each model's picture in the order given, truth. `--outputs-only` leaves the
data set's own pictures out, for places where they may not be published. The figures are those of
docs/models.md: L1, PSNR and SSIM of the engine's 8-bit pictures over the whole held-out split.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from pix2pix_fast.train import recipes
from pix2pix_fast.train.data import Pairs, has_split, to_pixels, to_tensor
from pix2pix_fast.train.evaluation.pixel import pixel_metrics
from torch import Tensor

from pix2pix_fast import Engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("data", type=Path)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--outputs-only", action="store_true")
    args = parser.parse_args()
    values = recipes.load(args.recipe)
    held = Pairs(args.data, "val" if has_split(args.data, "val", values) else "test", values)
    engines = [Engine(model) for model in args.models]

    def outputs(engine: Engine) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(len(held)):
            x, truth, _ = held[-1, index]
            yield to_tensor(engine.translate(to_pixels(x))), truth

    for name, engine in zip(args.models, engines, strict=True):
        figures = "  ".join(f"{k} {v:.4f}" for k, v in pixel_metrics(outputs(engine)).items())
        print(f"{name}: {len(held)} pairs of {held.split}: {figures}")

    rows = []
    for index in np.linspace(0, len(held) - 1, args.rows).astype(int):
        x, truth, _ = (to_pixels(v) if isinstance(v, Tensor) else v for v in held[-1, int(index)])
        row = [engine.translate(x) for engine in engines]
        rows.append(np.concatenate(row if args.outputs_only else [x, *row, truth], axis=1))
    Image.fromarray(np.concatenate(rows)).save(args.sheet)
    print(args.sheet)


if __name__ == "__main__":
    main()
