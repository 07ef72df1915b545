"""Every layer's raw output (before its norm) against float64, by name, for the rooms that run here."""
# ruff: noqa: E402

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from model_files import random_model
from pix2pix_fast.train.networks import UNet

from pix2pix_fast import _core
from pix2pix_fast.architecture import Architecture

RUNNABLE = list(_core.cpu()["runnable"])
BASE = Architecture(depth=6, ngf=16, in_channels=3, out_channels=3)
# One layer's own error in its units of 2^-24 (float32) or 2^-9 (bfloat16): sums of up to 2048 products
# in pieces of 256, times F(4x4,2x2)'s growth. An input's error passes a convolution as the input does
# (relative errors stay), but a norm of 2x2 values divides by their deviation, which may be a tenth of
# their mean: the bound grows tenfold there, once down (e5 reads no 2x2 norm, e6 does) and stays.
ONE = {"f32": 64 * 2.0**-24, "bf16": 8 * 2.0**-9}


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize(
    ("room", "precision"),
    [(r, "f32") for r in RUNNABLE] + [(r, "bf16") for r in RUNNABLE if r in ("avx512bf16", "amx")],
)
def test_layers_by_name(room: str, precision: str, skips: bool) -> None:
    a = replace(BASE, skips=skips)
    model = random_model(a, seed=8, biases="last")
    rng = np.random.default_rng(0)
    blocks = rng.uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    x = blocks.repeat(8, 1).repeat(8, 2)
    engine = _core.Engine(
        model.layers("image"),
        model.core_tensors("image"),
        size=(128, 128),
        isa=room,
        precision=precision,
    )
    got = engine.activations(x)
    net = UNet.from_model(model).double()
    with torch.no_grad():
        want = net.activations(torch.from_numpy(x.transpose(0, 3, 1, 2)).double())
    assert list(got) == list(want) == [layer["name"] for layer in model.layers("image")]
    for depth, (name, exact) in enumerate(want.items()):
        y = exact.permute(0, 2, 3, 1).numpy()
        assert got[name].shape == y.shape
        error = np.linalg.norm(got[name] - y) / np.linalg.norm(y)
        after_small_norm = depth >= a.depth - 1
        bound = ONE[precision] * np.sqrt(depth + 1) * (10 if after_small_norm else 1)
        assert error <= bound, f"{name} in {room}: {error:.2e} > {bound:.2e}"
