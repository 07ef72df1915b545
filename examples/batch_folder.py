"""Translate a folder of pictures: the next one is read while this one is computed.

    python examples/batch_folder.py MODEL FOLDER OUT

From a shell, `pix2pix-fast translate MODEL FOLDER -o OUT` does the same and more.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pix2pix_fast import Engine


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit("usage: python examples/batch_folder.py MODEL FOLDER OUT")
    model, folder, out = sys.argv[1:]
    Path(out).mkdir(parents=True, exist_ok=True)
    pictures = sorted(path for path in Path(folder).iterdir() if path.suffix in (".png", ".jpg"))
    with Engine(model) as engine:
        for path, result in zip(pictures, engine.stream(pictures), strict=True):
            result.save(Path(out, path.stem + ".png"))
        stats = engine.stats
        print(
            f"{len(pictures)} pictures, {stats['p50_ms']:.1f} ms each (p95 {stats['p95_ms']:.1f})"
        )


if __name__ == "__main__":
    main()
