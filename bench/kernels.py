"""Every kernel that this CPU can run, on the layers of U-Net-256 (ngf 64, 256x256).

    python bench/kernels.py [-k avx512/conv4x4s2_winograd3_f32] [--threads 2]

Columns: microseconds (shortest of the repeats), GFLOP/s of what the kernel computes, GFLOP/s of the
layer as written (direct convolution), GB/s of its weights. A layer alone in a loop finds its weights
in the shared cache: P2P_TRACE=1 shows the same kernels inside the network.
"""

from __future__ import annotations

import argparse

import nets
import numpy as np

from pix2pix_fast import _core
from pix2pix_fast.tuning import end_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", default="", help="kernels whose id contains this")
    parser.add_argument("--threads", type=int, default=_core.cpu()["cores"])
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    model = nets.unet(64)
    layers = model.layers("image")
    size, sizes = 256, {}
    for layer in layers:
        sizes[layer["name"]] = size
        size = size // 2 if layer["op"] == "conv4x4s2" else size * 2
    rng = np.random.default_rng(0)
    header = f"{'kernel':40} {'layer':5} {'map':>16} {'us':>9} {'GFLOP/s':>8} {'direct':>8}"
    print(f"{header} {'GB/s':>6}")
    for kernel in _core.kernels():
        room, name = kernel.split("/")
        op, algorithm, _ = name.split("_")
        if room not in _core.cpu()["runnable"] or room == "scalar" or options.k not in kernel:
            continue
        for layer in layers:
            ends = {layers[0]["name"]: "first", layers[-1]["name"]: "last"}
            end = ends.get(layer["name"], "")
            if layer["op"] != op or end_of(algorithm) != end:
                continue
            hw, ci, co = sizes[layer["name"]], layer["ci"], layer["co"]
            shape = (co, ci, 4, 4) if op == "conv4x4s2" else (ci, co, 4, 4)
            run = _core.run_kernel(
                kernel,
                rng.standard_normal((hw, hw, ci), np.float32),
                rng.standard_normal(shape, np.float32),
                threads=options.threads,
                repeats=options.repeats,
            )
            seconds = min(run["seconds"])
            outputs = (hw // 2) ** 2 * 16 if op == "conv4x4s2" else (hw * 2) ** 2 * 4
            print(
                f"{kernel:40} {layer['name']:5} {f'{hw}x{hw}x{ci}>{co}':>16} {seconds * 1e6:9.0f} "
                f"{2e-9 * run['macs'] / seconds:8.0f} {2e-9 * outputs * ci * co / seconds:8.0f} "
                f"{1e-9 * run['weight_bytes'] / seconds:6.1f}"
            )


if __name__ == "__main__":
    main()
