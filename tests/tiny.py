"""The small nets that the border, engine, CLI and concurrency tests run: about a millisecond per
picture."""

from __future__ import annotations

import numpy as np

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
