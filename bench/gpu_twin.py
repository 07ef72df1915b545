"""The tiny twin of U-Net-256 on the GPU against the CPU engine: 64x64, ngf 8, six levels, every
precision, odd sizes, a batch. For compute-sanitizer (bench/gpu_check.sh), which slows a net down a
thousandfold. No torch.
"""

from __future__ import annotations

import sys

import nets
import numpy as np

from pix2pix_fast import Engine, backends


def main() -> int:
    missing = backends.available()["cuda"]
    if missing:
        print(f"bench/gpu_twin.py: {missing}", file=sys.stderr)
        return 3
    model = nets.unet(ngf=8, depth=6)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, shape, np.uint8) for shape in ((64, 64, 3), (2, 50, 64, 3))]
    cpu = Engine(model, backend="cpu")
    wrong = 0
    for precision, levels in (("f16", 4), ("bf16", 24), ("f32", 1)):
        engine = Engine(model, backend="cuda", precision=precision)
        for picture in pictures:
            wanted, got = (e.translate(picture).astype(int) for e in (cpu, engine))
            difference = int(np.abs(got - wanted).max())
            wrong += difference > levels
            print(f"{precision} {picture.shape}: at most {difference} levels from the CPU")
        engine.close()
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
