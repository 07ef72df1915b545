"""Whole nets through the CUDA plan and kernels on a machine without a GPU (cuda_host/), against
float64 and against PyTorch in the same precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cuda_shim import DTYPES, H100_SHARED, run_net
from pix2pix_fast.train.networks import UNet
from tiny import noise, tiny_model

from pix2pix_fast.model import Model


def reference(model: Model, x: np.ndarray, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """The net in PyTorch's arithmetic of `dtype`, float64 (n, h, w, c) in [-1, 1]."""
    net = UNet.from_model(model).to(dtype)
    values = x / 127.5 - 1 if x.dtype == np.uint8 else x
    with torch.no_grad():
        y = net.translate(torch.from_numpy(values.astype(np.float64)).permute(0, 3, 1, 2).to(dtype))
    return y.permute(0, 2, 3, 1).double().numpy()


def rms(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((got - wanted) ** 2)))


def psnr(got: np.ndarray, wanted: np.ndarray) -> float:
    """dB of pictures in [-1, 1]."""
    got = got / 127.5 - 1 if got.dtype == np.uint8 else got
    return float(20 * np.log10(2 / max(rms(got, wanted), 1e-15)))


# dB; bf16 has three bits less than f16, 6 dB each
FLOORS = {"f32": 90.0, "f16": 45.0, "bf16": 27.0}
TORCH = {"f16": torch.float16, "bf16": torch.bfloat16}
NETS = [(3, 3, 3, 8, (1, 16, 24)), (3, 1, 2, 12, (2, 13, 37)), (5, 3, 3, 16, (3, 64, 32))]


# Shared memory of a block where there are clusters (an H100's, an RTX 50's), 0 where there are none.
SHARED = {"clusters": H100_SHARED, "clusters, 99 KB": 99 << 10, "no clusters": 0}
KERNELS = [(d, s) for d in DTYPES for s in SHARED if d != "f32" or s == "no clusters"]


@pytest.mark.parametrize(("dtype", "shared"), KERNELS)
@pytest.mark.parametrize(("depth", "ci", "co", "ngf", "size"), NETS)
def test_a_net_equals_float64(
    cuda_host: Any, dtype: str, shared: str, depth: int, ci: int, co: int, ngf: int,
    size: tuple[int, int, int],
) -> None:  # fmt: skip
    model = tiny_model(depth, ci, co, ngf)
    x = noise((*size, ci), "float32") * 2 - 1
    got = run_net(cuda_host, model, x, dtype, shared=SHARED[shared])
    assert psnr(got, reference(model, x)) > FLOORS[dtype]
    u8 = noise((*size, ci), "uint8")
    got = run_net(cuda_host, model, u8, dtype, shared=SHARED[shared])
    assert psnr(got, reference(model, u8)) > min(FLOORS[dtype], 50)


@pytest.mark.parametrize("dtype", DTYPES)
def test_thread_and_block_order_do_not_change_a_bit(cuda_host: Any, dtype: str) -> None:
    model, x = tiny_model(3, ngf=16), noise((2, 32, 40, 3), "uint8")
    first = run_net(cuda_host, model, x, dtype, seed=1)
    assert np.array_equal(first, run_net(cuda_host, model, x, dtype, seed=2))


def check_against_torch(cuda_host: Any, model: Model, dtype: str) -> None:
    """At least the floor's dB in 8 bit, and at most twice the error of PyTorch in `dtype`; with
    clusters and without."""
    x = noise((1, 256, 256, 3), "float32") * 2 - 1
    exact = reference(model, x)
    theirs = rms(reference(model, x, TORCH[dtype]), exact)
    for name in ("clusters", "no clusters"):
        got = run_net(cuda_host, model, x, dtype, shared=SHARED[name])
        levels = np.rint((np.clip(got, -1, 1) + 1) * 127.5).astype(np.uint8)
        decibels, error = psnr(levels, exact), rms(got, exact)
        print(f"{dtype}, {name}: {decibels:.1f} dB, rms {error:.2e}, PyTorch {theirs:.2e}")
        assert decibels > FLOORS[dtype]
        assert error <= 2 * theirs


def test_the_whole_unet256_in_f16(cuda_host: Any) -> None:
    check_against_torch(cuda_host, tiny_model(8, ngf=64), "f16")


def test_the_whole_depth_in_bf16(cuda_host: Any) -> None:
    check_against_torch(cuda_host, tiny_model(8, ngf=16), "bf16")


def test_the_whole_depth_in_f32(cuda_host: Any) -> None:
    model, x = tiny_model(8, ngf=8), noise((1, 256, 256, 3), "float32") * 2 - 1
    assert psnr(run_net(cuda_host, model, x, "f32"), reference(model, x)) > FLOORS["f32"]
