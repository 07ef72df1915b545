"""The stream kernels (csrc/cuda/stream.cuh) alone, through the shim of cuda_host/: the blocks of a
cluster run together. Integers come out equal; a normalised map within a bound of its norm."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from cuda_shim import run_layer
from test_cuda_kernels import UNIT, Shape, U, make, norm_of, operands, product, stored

KERNELS = [(kind, tile, dtype) for dtype in ("f16", "bf16") for tile in ("64x32", "16x32")
           for kind in ("conv", "deconv")]  # fmt: skip


class Stream(NamedTuple):
    """Blocks of a cluster, slices of a stage (0: the whole ring's share), and the layer."""

    cluster: int
    stage_slices: int
    shape: Shape


# Every class that a kernel tells apart: shares of channels that are no slice, several planes, a ring
# that is used again, cut columns, images that share a thread's column.
STREAMS = {
    "one pixel": Stream(8, 0, Shape(1, 1, 1, 264, 0, 33)),
    "two by two": Stream(4, 1, Shape(1, 2, 2, 136, 0, 40)),
    "four by four": Stream(8, 0, Shape(1, 4, 4, 256, 0, 16)),
    "three by five": Stream(2, 3, Shape(1, 3, 5, 37, 0, 20)),
    "one row": Stream(4, 0, Shape(1, 1, 13, 70, 0, 12)),
    "one column": Stream(1, 1, Shape(1, 16, 1, 9, 0, 70)),
    "several planes": Stream(2, 1, Shape(1, 2, 3, 300, 0, 9)),
    "shares of one piece and none": Stream(8, 1, Shape(1, 2, 2, 40, 0, 8)),
    "one pixel each": Stream(4, 0, Shape(16, 1, 1, 40, 0, 24)),
    "a batch": Stream(8, 2, Shape(3, 2, 2, 72, 0, 35)),
    "a batch, no norm": Stream(2, 0, Shape(5, 1, 3, 30, 0, 10, norm=False)),
    "skip and decoder": Stream(4, 1, Shape(2, 2, 4, 72, 41, 18, slope=0.0)),
    "skip inside a share": Stream(2, 0, Shape(1, 3, 3, 20, 9, 65, slope=0.0, norm=False)),
    "no norm in front": Stream(8, 0, Shape(1, 4, 3, 130, 64, 16, affine=False, slope=0.5)),
    "dropout": Stream(4, 0, Shape(2, 2, 3, 11, 13, 8, slope=0.0, dropout=True)),
}
# Maps that only the larger tile takes.
LARGE = {
    "eight by eight": Stream(8, 0, Shape(1, 8, 8, 128, 0, 32)),
    "seven by nine, cut": Stream(2, 3, Shape(1, 7, 9, 24, 9, 20, slope=0.0)),
    "a full batch": Stream(4, 1, Shape(4, 4, 4, 64, 0, 16)),
    "a pixel each of 64": Stream(8, 0, Shape(64, 1, 1, 16, 0, 8)),
}


def check(
    host: ctypes.CDLL, kind: str, tile: str, dtype: str, s: Stream, without: str = "none"
) -> None:
    arrays, ints = make(kind, s.shape, integers=True)
    arrays.pop(without, None)
    ints |= {"cluster": s.cluster, "stage_slices": s.stage_slices}
    got = run_layer(host, kind, dtype, tile, arrays, slope=s.shape.slope, **ints)
    y = product(kind, operands(arrays, s.shape.slope, s.shape.dropout), arrays["weights"])
    assert float(y.abs().max()) * 4 < 2**24  # exact in float32, the slope's quarters included
    if "bias" in arrays:
        y = y + torch.from_numpy(arrays["bias"].astype(np.float64))[:, None, None]
    out = got["out"]
    assert not out[..., s.shape.co :].any()  # padded channels stay zero in the next layer
    if not s.shape.norm:
        assert np.array_equal(out[..., : s.shape.co], stored(y, dtype))
        return
    norm = norm_of(y, arrays, 1e-5, y.shape[2] * y.shape[3] + 4)  # one sum over all pixels
    scale, shift, of_scale, of_shift = (v[:, :, None, None] for v in norm)
    wanted = y * scale + shift
    bound = y.abs() * of_scale + of_shift + 2 * U * ((y * scale).abs() + wanted.abs())
    bound = bound + UNIT[dtype] * (wanted.abs() + bound) + 2.0**-24
    error = torch.from_numpy(out[..., : s.shape.co].astype(np.float64)).permute(0, 3, 1, 2) - wanted
    assert bool((error.abs() <= bound).all())
    # Most results are the exact ones, rounded.
    assert float(error.abs().mean()) <= 0.6 * UNIT[dtype] * float(wanted.abs().mean()) + 2.0**-24


CASES = [(name, *kernel) for kernel in KERNELS for name in STREAMS]
CASES += [(name, *kernel) for kernel in KERNELS for name in LARGE if kernel[1] == "64x32"]


@pytest.mark.parametrize(("name", "kind", "tile", "dtype"), CASES)
def test_a_layer_equals_its_norm(
    cuda_host: Any, name: str, kind: str, tile: str, dtype: str
) -> None:
    check(cuda_host, kind, tile, dtype, (STREAMS | LARGE)[name])


@pytest.mark.parametrize("kind", ["conv", "deconv"])
def test_each_source_is_told_its_norm(cuda_host: Any, kind: str) -> None:
    """A skip that is normalised on load beside a decoder's map that came normalised, and the reverse."""
    s = Stream(4, 1, Shape(2, 2, 4, 72, 41, 18, slope=0.25))
    for given in ("affine0", "affine1"):
        check(cuda_host, kind, "16x32", "f16", s, without=given)


@pytest.mark.parametrize(("kind", "tile", "dtype"), KERNELS)
def test_random_layers_equal_their_norm(cuda_host: Any, kind: str, tile: str, dtype: str) -> None:
    rng = np.random.default_rng([9, *map(ord, kind + tile + dtype)])
    for _ in range(6):
        most = int(rng.integers(1, 17 if tile == "16x32" else 65))
        mh = int(rng.integers(1, most + 1))
        mw = int(rng.integers(1, most // mh + 1))
        n, c0, co = most // (mh * mw), int(rng.integers(1, 200)), int(rng.integers(1, 70))
        c1 = int(rng.integers(0, 90)) * int(rng.integers(0, 2))
        shape = Shape(n, mh, mw, c0, c1, co, 1, bool(rng.integers(2)), bool(rng.integers(2)))
        cluster = 2 ** int(rng.integers(0, 4))
        check(cuda_host, kind, tile, dtype, Stream(cluster, int(rng.integers(0, 4)), shape))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_of_threads_and_blocks_does_not_change_a_bit(cuda_host: Any, seed: int) -> None:
    arrays, ints = make("deconv", Shape(2, 3, 4, 72, 41, 40), integers=False)
    ints |= {"cluster": 4, "stage_slices": 1}
    first = run_layer(cuda_host, "deconv", "f16", "64x32", arrays, **ints)["out"]
    ints["seed"] = 100 + seed
    assert np.array_equal(run_layer(cuda_host, "deconv", "f16", "64x32", arrays, **ints)["out"], first)


# U-Net-256's deep layers at 256x256 and batch 1: rows' side, channels, and what the plan makes of them on 132
# multiprocessors with an H100's shared memory and with an RTX 50's: blocks of a cluster, slices of a stage.
UNET256 = {
    "e5": ("conv", Shape(1, 8, 8, 512, 0, 512), (8, 4), (8, 3)),
    "e6": ("conv", Shape(1, 4, 4, 512, 0, 512), (8, 4), (8, 2)),
    "e8": ("conv", Shape(1, 1, 1, 512, 0, 512), (8, 1), (8, 1)),
    "d1": ("deconv", Shape(1, 1, 1, 512, 0, 512), (8, 1), (8, 1)),
    "d2": ("deconv", Shape(1, 2, 2, 512, 512, 512), (8, 6), (8, 5)),
    "d4": ("deconv", Shape(1, 8, 8, 512, 512, 512), (8, 4), (8, 3)),
}


@pytest.mark.parametrize("layer", UNET256)
def test_what_the_plan_chooses_for_unet256(cuda_host: Any, layer: str) -> None:
    kind, shape, hopper, small = UNET256[layer]
    arrays, ints = make(kind, shape, integers=True)
    ints["splits"] = 132  # multiprocessors
    for (sm, block), wanted in (((228 << 10, 227 << 10), hopper), ((100 << 10, 99 << 10), small)):
        got = run_layer(cuda_host, kind, "f16", None, arrays, slope=shape.slope, **ints,
                        cluster=sm, stage_slices=block)  # fmt: skip
        assert (got["cluster"], got["stage_slices"]) == wanted
