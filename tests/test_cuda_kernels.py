"""Every CUDA kernel alone, through the shim of cuda_host/: kind x tile x precision at every class of
shapes. Integers come out equal; random values within a bound derived from the number of terms.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cuda_shim import DTYPES, run_layer

TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
UNIT = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}  # unit roundoffs
U = UNIT["f32"]
SEED, FRAME = 12345, 7
KERNELS = [
    (kind, tile, dtype)
    for dtype in DTYPES
    for tile in (("64x64",) if dtype == "f32" else ("64x64", "64x32", "16x32"))
    for kind in ("conv", "deconv")
] + [(kind, "64x64 patch", dtype) for dtype in ("f16", "bf16") for kind in ("conv", "deconv")]


class Shape(NamedTuple):
    """Rows are the output's pixels of a convolution, the input's of a transposed one."""

    n: int
    mh: int
    mw: int
    c0: int
    c1: int
    co: int
    splits: int = 1
    norm: bool = True
    affine: bool = True
    slope: float = 0.25
    dropout: bool = False


# Every class that a kernel tells apart; sizes odd, channels no multiples of a vector or a tile.
SHAPES = {
    "several tiles, the last one cut": Shape(1, 11, 7, 5, 0, 11),
    "several column tiles, batch": Shape(2, 9, 9, 24, 0, 70, affine=False, slope=0.0),
    "whole images in a tile": Shape(3, 3, 5, 8, 0, 9),
    "more images than a tile holds": Shape(18, 2, 2, 7, 0, 16, slope=1.0),
    "one pixel": Shape(1, 1, 1, 17, 0, 33),
    "one pixel each": Shape(5, 1, 1, 6, 0, 8),
    "two by two": Shape(1, 2, 2, 12, 0, 40, norm=False),
    "one row": Shape(2, 1, 3, 9, 0, 12),
    "one column of many": Shape(1, 70, 1, 3, 0, 8),
    "split in two": Shape(1, 4, 4, 40, 0, 24, splits=2),
    "split unevenly, cut tiles": Shape(2, 5, 7, 37, 0, 20, splits=5),
    "split among more than there is": Shape(1, 2, 1, 3, 0, 5, splits=16, norm=False),
    "split, batch in a tile": Shape(4, 2, 2, 50, 0, 10, splits=3),
    "skip": Shape(1, 6, 5, 9, 20, 18, slope=0.0),
    "skip, one tap's channels over slices": Shape(2, 4, 3, 72, 41, 8, slope=0.0),
    "skip, split": Shape(1, 3, 3, 33, 64, 65, splits=4, norm=False),
    "three slices of a patch": Shape(1, 9, 10, 130, 33, 9),
    "dropout": Shape(2, 4, 5, 11, 13, 8, slope=0.0, dropout=True),
    "plain copy of one channel": Shape(1, 8, 8, 1, 0, 1, norm=False, affine=False, slope=1.0),
}


def kept(layer: int, images: int, elements: int) -> np.ndarray:
    """norm.cpp's dropout, (images, elements) of bool."""
    with np.errstate(over="ignore"):
        image = np.arange(images, dtype=np.uint64)[:, None] + np.uint64(FRAME)
        element = np.arange(elements, dtype=np.uint64)[None]
        z = np.uint64(SEED) + np.uint64(0x9E3779B97F4A7C15) * (image + np.uint64(1))
        z = z + np.uint64((0xD1B54A32D192ED03 * (layer + 1)) % 2**64)
        z = z + np.uint64(0x8CB92BA72F3D8DD7) * (element + np.uint64(1))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((z ^ (z >> np.uint64(31))) >> np.uint64(63)).astype(bool)


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float64)).permute(0, 3, 1, 2)


def stored(y: torch.Tensor, dtype: str) -> np.ndarray:
    """(n, c, h, w) float64 as a map of `dtype` holds it, NHWC."""
    return y.to(TORCH[dtype]).permute(0, 2, 3, 1).double().numpy()


def operands(arrays: dict[str, np.ndarray], slope: float, dropout: bool) -> torch.Tensor:
    """What is multiplied with the weights, in float64: both sources, affine, dropout, activation."""
    parts = []
    for i in range(2):
        if f"src{i}" not in arrays:
            continue
        x = nchw(arrays[f"src{i}"])
        if f"affine{i}" in arrays:
            scale, shift = torch.from_numpy(arrays[f"affine{i}"].astype(np.float64)).unbind(1)
            x = x * scale[:, :, None, None] + shift[:, :, None, None]
        if dropout:
            n, c, h, w = x.shape
            mask = kept(i + 3, n, h * w * c).reshape(n, h, w, c)
            x = x * 2 * torch.from_numpy(mask).permute(0, 3, 1, 2)
        parts.append(torch.maximum(x, slope * x))
    return torch.cat(parts, 1)


def product(kind: str, x: torch.Tensor, weights: np.ndarray) -> torch.Tensor:
    w = torch.from_numpy(weights.astype(np.float64))
    if kind == "conv":
        return F.conv2d(x, w, stride=2, padding=1)
    return F.conv_transpose2d(x, w, stride=2, padding=1)


def make(kind: str, s: Shape, integers: bool) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Inputs of a layer: small integers (halves, with the slope) whose sums float32 holds, or normal
    values."""
    rng = np.random.default_rng([len(kind), s.n, s.mh, s.mw, s.c0, s.c1, s.co])
    hi, wi = (2 * s.mh, 2 * s.mw) if kind == "conv" else (s.mh, s.mw)

    def values(low: int, high: int, *shape: int) -> np.ndarray:
        if integers:
            return rng.integers(low, high, shape, endpoint=True).astype(np.float32)
        return rng.standard_normal(shape).astype(np.float32)

    arrays = {}
    for i, c in enumerate((s.c0, s.c1)):
        if not c:
            continue
        arrays[f"src{i}"] = values(-4, 4, s.n, hi, wi, c)
        if s.affine:
            scale, shift = values(-2, 2, s.n, 1, c), values(-3, 3, s.n, 1, c)
            arrays[f"affine{i}"] = np.concatenate([scale, shift], 1)
    ci = s.c0 + s.c1
    arrays["weights"] = values(-2, 2, *((s.co, ci) if kind == "conv" else (ci, s.co)), 4, 4)
    if s.norm:
        arrays["gamma"], arrays["beta"] = values(1, 3, s.co), values(-2, 2, s.co)
    else:
        arrays["bias"] = values(-5, 5, s.co)
    if s.dropout:
        arrays["dropout"] = np.array([SEED, FRAME], np.uint64)
    ints = {"n": s.n, "hi": hi, "wi": wi, "c0": s.c0, "c1": s.c1, "co": s.co, "splits": s.splits,
            "norm": s.norm, "seed": 3}  # fmt: skip
    if s.dropout:
        ints |= {"dropout0": 3, "dropout1": 4}
    return arrays, ints


class Norm(NamedTuple):
    """Scale and shift of a norm, (n, c), and how far a float32 one may be off."""

    scale: torch.Tensor
    shift: torch.Tensor
    of_scale: torch.Tensor
    of_shift: torch.Tensor


def norm_of(y: torch.Tensor, arrays: dict[str, np.ndarray], eps: float, terms: float) -> Norm:
    """Of y (n, c, h, w), the exact sums of the layer.

    A mean loses `terms` u of the largest value. Squared deviations lose as much once more and see the
    mean's error twice, all over the variance."""
    var, mean = torch.var_mean(y, (2, 3), correction=0)
    gamma, beta = (torch.from_numpy(arrays[k].astype(np.float64)) for k in ("gamma", "beta"))
    constant = var == 0
    scale = torch.where(constant, 0.0, gamma / torch.sqrt(var + eps))
    shift = torch.where(constant, beta, beta - mean * scale)
    of_mean = terms * U * y.abs().amax((2, 3))
    deviation = torch.sqrt(var + eps)
    relative = terms * U + of_mean / deviation * 2 + (of_mean / deviation) ** 2 + 4 * U
    of_scale = relative * scale.abs() + 1e-30
    of_shift = (
        of_mean * scale.abs()
        + mean.abs() * of_scale
        + 4 * U * (beta.abs() + (mean * scale).abs())
        + 1e-30
    )
    return Norm(scale, shift, of_scale, of_shift)


def check_affine(
    got: np.ndarray, y: torch.Tensor, arrays: dict[str, np.ndarray], eps: float
) -> None:
    """got (n, 2, stored) against the norm of y. A mean is a sum of at most 64 terms, divided, times its
    count, summed over the tiles' entries and divided: 64 + entries + 4 terms."""
    c = y.shape[1]
    norm = norm_of(y, arrays, eps, 64 + y.shape[2] * y.shape[3] / 16 + 4)
    got64 = torch.from_numpy(got[:, :, :c].astype(np.float64))
    assert bool(((got64[:, 0] - norm.scale).abs() <= norm.of_scale).all())
    assert bool(((got64[:, 1] - norm.shift).abs() <= norm.of_shift).all())
    assert not got[:, :, c:].any()  # padded channels stay zero in the next layer


def check_integers(cuda_host: ctypes.CDLL, kind: str, tile: str, dtype: str, s: Shape) -> None:
    arrays, ints = make(kind, s, integers=True)
    got = run_layer(cuda_host, kind, dtype, tile, arrays, slope=s.slope, **ints)
    y = product(kind, operands(arrays, s.slope, s.dropout), arrays["weights"])
    assert float(y.abs().max()) * 4 < 2**24  # exact in float32, the slope's quarters included
    if "bias" in arrays:
        y = y + torch.from_numpy(arrays["bias"].astype(np.float64))[:, None, None]
    assert np.array_equal(got["out"][..., : s.co], stored(y, dtype))
    assert not got["out"][..., s.co :].any()
    if s.norm:
        check_affine(got["affine"], y, arrays, 1e-5)


@pytest.mark.parametrize(("kind", "tile", "dtype"), KERNELS)
@pytest.mark.parametrize("name", SHAPES)
def test_integers_are_equal(cuda_host: Any, kind: str, tile: str, dtype: str, name: str) -> None:
    check_integers(cuda_host, kind, tile, dtype, SHAPES[name])


@pytest.mark.parametrize(("kind", "tile", "dtype"), KERNELS)
def test_integers_are_equal_at_random_shapes(
    cuda_host: Any, kind: str, tile: str, dtype: str
) -> None:
    rng = np.random.default_rng([SEED, *map(ord, kind + tile + dtype)])
    for _ in range(5):
        n, mh, mw, c0, co, splits = (int(rng.integers(1, top)) for top in (4, 12, 12, 40, 80, 6))
        c1 = int(rng.integers(0, 40)) * int(rng.integers(0, 2))
        shape = Shape(n, mh, mw, c0, c1, co, splits, bool(rng.integers(2)), bool(rng.integers(2)))
        check_integers(cuda_host, kind, tile, dtype, shape)


@pytest.mark.parametrize(("kind", "tile", "dtype"), KERNELS)
def test_normal_values_stay_within_their_bound(
    cuda_host: Any, kind: str, tile: str, dtype: str
) -> None:
    """Operands are rounded once more than float64 does (a tie may fall the other way: one unit each
    of x and, through the affine, u), sums of K terms lose K u, the result is rounded."""
    s = Shape(2, 5, 6, 20, 13, 24, splits=2, slope=0.2)
    arrays, ints = make(kind, s, integers=False)
    for name in ("src0", "src1", "weights"):
        arrays[name] = torch.from_numpy(arrays[name]).to(TORCH[dtype]).float().numpy()
    got = run_layer(cuda_host, kind, dtype, tile, arrays, slope=s.slope, **ints)
    # The kernel's slope is float32.
    x = operands(arrays, float(np.float32(s.slope)), s.dropout)
    rounded = x.to(TORCH[dtype]).double()
    y = product(kind, rounded, arrays["weights"])
    sums = product(kind, x.abs(), np.abs(arrays["weights"]))
    affine = product(kind, operands({k: np.abs(v) for k, v in arrays.items()}, 1.0, False),
                     np.abs(arrays["weights"]))  # fmt: skip
    terms = 16 * (s.c0 + s.c1)
    bound = terms * U * sums + 2 * UNIT[dtype] * sums + 3 * U * affine
    bound = bound + UNIT[dtype] * (y.abs() + bound) + 2.0**-24
    error = np.abs(got["out"] - y.permute(0, 2, 3, 1).numpy())
    assert np.all(error <= bound.permute(0, 2, 3, 1).numpy())
    # Most operands do not sit at a tie: the typical error is the result's rounding alone.
    typical = UNIT[dtype] * y.abs().mean() + terms * U * sums.mean()
    assert error.mean() <= float(typical)


PICTURES = {
    "odd, reflected": (1, 13, 9, 3, 11, 16, 16),
    "batch, one channel": (3, 20, 33, 1, 8, 32, 48),
    "whole images in a tile": (5, 7, 8, 2, 20, 8, 8),
    "two pixels": (1, 1, 2, 4, 65, 2, 2),
    "one pixel, reflected far": (2, 1, 1, 3, 5, 8, 8),
    "no padding": (1, 16, 18, 3, 64, 16, 18),
}  # n, h, w, ci, co, hi, wi


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pixel_bytes", [1, 4])
@pytest.mark.parametrize("name", PICTURES)
def test_the_first_layer_is_exact(cuda_host: Any, dtype: str, pixel_bytes: int, name: str) -> None:
    n, h, w, ci, co, hi, wi = PICTURES[name]
    rng = np.random.default_rng(h)
    if pixel_bytes == 1:  # all levels: u - 127.5 has 8 bits
        picture: np.ndarray = rng.integers(0, 255, (n, h, w, ci), np.uint8, endpoint=True)
        x = picture - 127.5
    else:
        picture = rng.integers(-64, 64, (n, h, w, ci)).astype(np.float32) / 64
        x = picture.astype(np.float64)
    weights = rng.integers(-3, 3, (co, ci, 4, 4), endpoint=True).astype(np.float32)
    rows, columns = (
        [i if i < size else np.pad(np.arange(size), (0, top), mode="reflect")[i] for i in range(top)]
        for size, top in ((h, hi), (w, wi))
    )  # fmt: skip
    y = product("conv", nchw(x[:, rows][:, :, columns]), weights)
    arrays = {"picture": picture, "weights": weights}
    if pixel_bytes == 1:  # the exact sum, once times 1 / 127.5 in float32
        y = (y.float() * torch.tensor(1 / 127.5, dtype=torch.float32)).double()
    else:
        arrays["bias"] = rng.integers(-4, 4, co).astype(np.float32)
        y = y + torch.from_numpy(arrays["bias"].astype(np.float64))[:, None, None]
    got = run_layer(cuda_host, "first", dtype, "64x64", arrays, n=n, hi=hi, wi=wi, c0=ci, co=co, splits=1,
                    picture_h=h, picture_w=w, pixel_bytes=pixel_bytes, seed=5)  # fmt: skip
    assert np.array_equal(got["out"][..., :co], stored(y, dtype))
    assert not got["out"][..., co:].any()


LASTS = {
    "cropped, skip": (1, 13, 9, 7, 6, 3, 8, 5),
    "batch, one channel": (2, 20, 30, 16, 0, 1, 10, 15),
    "five channels: two column tiles": (1, 6, 6, 24, 9, 5, 3, 3),
    "whole images in a tile": (6, 5, 4, 9, 9, 2, 3, 2),
    "one pixel of map": (3, 2, 2, 10, 3, 3, 1, 1),
    "much of a tap": (1, 16, 16, 70, 62, 3, 8, 8),
}  # n, h, w, c0, c1, co, hi, wi


LAST_KERNELS = [*((d, "64x16") for d in DTYPES), ("f16", "64x16 patch"), ("bf16", "64x16 patch")]


@pytest.mark.parametrize(("dtype", "tile"), LAST_KERNELS)
@pytest.mark.parametrize("pixel_bytes", [1, 4])
@pytest.mark.parametrize("name", LASTS)
def test_the_last_layer_is_exact(
    cuda_host: Any, dtype: str, tile: str, pixel_bytes: int, name: str
) -> None:
    n, h, w, c0, c1, co, hi, wi = LASTS[name]
    rng = np.random.default_rng(w)
    arrays = {"picture": np.zeros((n, h, w, co), np.uint8 if pixel_bytes == 1 else np.float32)}
    for i, c in enumerate((c0, c1)):
        if c:
            arrays[f"src{i}"] = rng.integers(-4, 4, (n, hi, wi, c)).astype(np.float32)
            pair = rng.integers(-2, 2, (n, 2, c), endpoint=True)
            arrays[f"affine{i}"] = pair.astype(np.float32)
    # Powers of two that spread the sums over [-1, 1] and beyond.
    arrays["weights"] = rng.integers(-3, 3, (c0 + c1, co, 4, 4)).astype(np.float32) / 256
    arrays["bias"] = rng.integers(-64, 64, co).astype(np.float32) / 256
    y = product("last", operands(arrays, 0.0, False), arrays["weights"])
    y = y + torch.from_numpy(arrays["bias"].astype(np.float64))[:, None, None]
    wanted = y.permute(0, 2, 3, 1)[:, :h, :w].numpy()
    ints = {"n": n, "hi": hi, "wi": wi, "c0": c0, "c1": c1, "co": co, "splits": 1, "seed": 9,
            "picture_h": h, "picture_w": w, "pixel_bytes": pixel_bytes}  # fmt: skip
    got = run_layer(cuda_host, "last", dtype, tile, arrays, slope=0.0, **ints)["picture"]
    if pixel_bytes == 4:
        assert np.array_equal(got, wanted)
        ints["tanh"] = 1
        got = run_layer(cuda_host, "last", dtype, tile, arrays, slope=0.0, **ints)["picture"]
        assert np.abs(got - np.tanh(wanted)).max() <= 4 * U
    else:  # the rounding rule of image.cpp, in float32
        unit = np.clip(wanted.astype(np.float32), -1, 1)
        assert np.array_equal(got, np.rint((unit + np.float32(1)) * np.float32(127.5)))


PATCHED = {
    "U-Net-256's d5": ("deconv", "f16", 1, 16, 16, True),
    "its d7": ("deconv", "bf16", 1, 64, 64, True),
    "its d8": ("last", "f16", 1, 128, 128, True),
    "a last layer of few pixels": ("last", "f16", 1, 8, 8, True),
    "f32": ("deconv", "f32", 1, 16, 16, False),
    "squares that are half empty": ("deconv", "f16", 1, 9, 9, False),
    "several images in a tile": ("deconv", "f16", 16, 4, 4, False),
    "its e2": ("conv", "f16", 1, 128, 128, True),
    "its e4": ("conv", "bf16", 1, 32, 32, True),
    "a convolution with half-empty squares": ("conv", "f16", 1, 18, 18, False),
}  # fmt: skip


@pytest.mark.parametrize("name", PATCHED)
def test_the_plan_chooses_patches_for_large_maps(cuda_host: Any, name: str) -> None:
    kind, dtype, n, hi, wi, patch = PATCHED[name]
    arrays = {"src0": np.zeros((n, hi, wi, 1)), "weights": np.zeros((1, 1, 4, 4)), "bias": np.zeros(1)}
    arrays["picture"] = np.zeros((n, 2 * hi, 2 * wi, 1))
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    got = run_layer(cuda_host, kind, dtype, None, arrays, n=n, hi=hi, wi=wi, c0=1, co=1, splits=132,
                    picture_h=2 * hi, picture_w=2 * wi, pixel_bytes=4)  # fmt: skip
    assert bool(got["patch"]) == patch


@pytest.mark.parametrize(("dtype", "tile", "rows"), [("f16", "16x32", 16), ("bf16", "64x32", 64)])
def test_the_plan_chooses_small_tiles_and_splits_for_small_maps(
    cuda_host: Any, dtype: str, tile: str, rows: int
) -> None:
    s = Shape(1, int(rows**0.5), int(rows**0.5), 128, 0, 40)
    arrays, ints = make("conv", s, integers=True)
    ints["splits"] = 132  # multiprocessors
    got = run_layer(cuda_host, "conv", dtype, None, arrays, slope=s.slope, **ints)
    assert got["tile"] == tile
    assert got["splits"] > 1
    y = product("conv", operands(arrays, s.slope, False), arrays["weights"])
    assert np.array_equal(got["out"], stored(y, dtype))
