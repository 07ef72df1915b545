"""Pictures per second of training, the plain eager float32 loop and our settings interleaved.

    python -m pix2pix_fast.train.benchmark --ngf 64 --rounds 8

The plain loop is what a user of the method's PyTorch code runs: float32, contiguous, Adam as
PyTorch makes it unasked (one operation at a time on a CPU, lists of tensors on a GPU).
Every variant takes the same real-sized random pair; rounds go variant by variant in one process, so
that a slow minute of the machine hits all of them. Shown are the median over rounds and the ratio
to the plain loop.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from typing import Any

import torch
from pix2pix_fast.train import recipes
from pix2pix_fast.train.trainer import Trainer

PLAIN = {"precision": "f32", "channels_last": False, "compile": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain eager f32": PLAIN,
    "f32, fused Adam": PLAIN,
    "f32, channels-last": {**PLAIN, "channels_last": True},
    "bf16": {**PLAIN, "precision": "bf16"},
    "bf16, channels-last": {**PLAIN, "precision": "bf16", "channels_last": True},
    "bf16, channels-last, compile": {
        "precision": "bf16",
        "channels_last": True,
        "compile": True,
    },
}


def make(name: str, ngf: int, ndf: int, batch: int, device: str) -> Trainer:
    """The trainer of one variant on the facades recipe."""
    values = recipes.load("facades", ngf=ngf, ndf=ndf, batch=batch, **VARIANTS[name])
    trainer = Trainer(values, device)
    if name == "plain eager f32":
        trainer.opt_g, trainer.opt_d = (
            torch.optim.Adam(net.parameters(), lr=values["lr"], betas=(0.5, 0.999))
            for net in (trainer.g, trainer.d)
            if net is not None
        )
    return trainer


def wait(device: str) -> None:
    """Until the device has done what it was given: the last optimiser step is not waited for."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ngf", type=int, default=64)
    parser.add_argument("--ndf", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps per round and variant")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", help="variants that contain one of these words, comma-separated")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    names = list(VARIANTS)
    if options.only:
        words = options.only.split(",")
        names = [n for n in names if n == names[0] or any(w in n for w in words)]
    pair = [torch.rand(options.batch, 3, 256, 256) * 2 - 1 for _ in range(2)]
    trainers = {n: make(n, options.ngf, options.ndf, options.batch, options.device) for n in names}
    times: dict[str, list[float]] = {n: [] for n in names}
    for trainer in trainers.values():
        for _ in range(2):
            trainer.step([(pair[0], pair[1])])
    for _ in range(options.rounds):
        for name, trainer in trainers.items():
            wait(options.device)
            start = time.perf_counter()
            for _ in range(options.steps):
                trainer.step([(pair[0], pair[1])])
            wait(options.device)
            times[name].append((time.perf_counter() - start) / options.steps)
    plain = statistics.median(times[names[0]])
    result = {
        "machine": platform.processor() or platform.machine(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        **vars(options),
        "pictures_per_second": {n: options.batch / statistics.median(t) for n, t in times.items()},
        "spread": {n: (max(t) - min(t)) / statistics.median(t) for n, t in times.items()},
    }
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:32} {options.batch / median:8.2f} pictures/s  {plain / median:5.2f}x")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
