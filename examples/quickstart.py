"""Translate one picture.

    python examples/quickstart.py MODEL PICTURE RESULT
    python examples/quickstart.py edges2shoes.safetensors drawing.png shoe.png

Without arguments it takes the example model and the first example drawing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pix2pix_fast

ASSETS = Path(pix2pix_fast.__file__).parent / "assets"


def main() -> None:
    defaults = (ASSETS / "facades_labels2photo.safetensors", ASSETS / "pictures/townhouse.png")
    model, picture, result = sys.argv[1:] or (*map(str, defaults), "quickstart.png")
    with pix2pix_fast.Engine(model) as engine:
        engine.translate(picture).save(result)
        print(f"{result}: {engine.stats['p50_ms']:.1f} ms on {engine.info['isa']}")


if __name__ == "__main__":
    main()
