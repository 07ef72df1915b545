"""The small nets that the border, engine, CLI and concurrency tests run: about a millisecond per
picture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import pix2pix_fast
from pix2pix_fast.model import Architecture, Model


def tiny_model(
    depth: int = 3,
    ci: int = 3,
    co: int = 3,
    ngf: int = 8,
    seed: int = 0,
    dropout: tuple[str, ...] = (),
) -> Model:
    """A U-Net with random weights whose pictures are varied (so that a swap of pixels or channels
    would show)."""
    rng = np.random.default_rng(seed)
    architecture = Architecture(
        depth=depth,
        ngf=ngf,
        in_channels=ci,
        out_channels=co,
        norm="image",
        affine=True,
        dropout=dropout,
    )
    tensors: dict[str, np.ndarray] = {}
    for layer in architecture.layers():
        shape = (
            (layer["co"], layer["ci"]) if layer["op"] == "conv4x4s2" else (layer["ci"], layer["co"])
        )
        scale = 1.4 / np.sqrt(layer["ci"] * 4)
        tensors[f"{layer['name']}.weight"] = rng.normal(0, scale, (*shape, 4, 4)).astype(np.float32)
        if layer["norm"]:
            tensors[f"{layer['name']}.norm.weight"] = rng.normal(1, 0.1, layer["co"]).astype(
                np.float32
            )
            tensors[f"{layer['name']}.norm.bias"] = rng.normal(0, 0.1, layer["co"]).astype(
                np.float32
            )
        else:
            tensors[f"{layer['name']}.bias"] = rng.normal(0, 0.1, layer["co"]).astype(np.float32)
    return Model(architecture, tensors, {"name": "tiny"})


def noise(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """Pixels over the whole range of `dtype` (floats: 0..1)."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "u":
        return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    return rng.random(shape).astype(dtype)


def environment(**extra: str) -> dict[str, str]:
    """For a fresh process that is to import the same package as this one."""
    path = os.pathsep.join(
        [str(Path(pix2pix_fast.__file__).parents[1]), str(Path(__file__).parent)]
    )
    return {**os.environ, "PYTHONPATH": path, **extra}


def child(code: str, *arguments: str, timeout: float = 60, **extra: str) -> str:
    """What a fresh Python prints when it runs `code`; its failure is ours."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment(**extra),
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
