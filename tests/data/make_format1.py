"""Writes format1.safetensors, the golden file of format version 1: run once, kept for ever.

Every weight is a small whole number over 64, so that float32 and bfloat16 hold it exactly and the
test can restate it without reading this file's arithmetic back.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pix2pix_fast.model import Architecture, Model, save

ARCHITECTURE = {
    "depth": 3,
    "ngf": 2,
    "in_channels": 1,
    "out_channels": 3,
    "norm": "running",
    "bottleneck_norm": True,
    "dropout": ("d1",),
    "eps": 0.001,
}
CARD = {
    "name": "golden file of format 1",
    "direction": "BtoA",
    "size": [8, 8],
    "value_range": [-1, 1],
    "training": {"lr": 0.0002, "steps": 0, "nested": {"list": [1, 2.5, None, True, "ä"]}},
}


def golden_tensor(index: int, shape: tuple[int, ...]) -> np.ndarray:
    """Tensor `index` of the file: (37 i + 11 index) mod 127 - 63, over 64; variances positive."""
    i = np.arange(int(np.prod(shape)))
    return (((37 * i + 11 * index) % 127 - 63) / 64).astype(np.float32).reshape(shape)


def golden_model() -> Model:
    architecture = Architecture(**ARCHITECTURE)
    tensors = {}
    for index, (name, shape) in enumerate(architecture.shapes().items()):
        value = golden_tensor(index, shape)
        tensors[name] = np.abs(value) + 1 if name.endswith(".var") else value
    return Model(architecture, tensors, CARD)


if __name__ == "__main__":
    save(golden_model(), Path(__file__).with_name("format1.safetensors"), dtype="bf16")
