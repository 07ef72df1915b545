"""One convolution of the net on small integers, its float64 reference, and the proof that every
intermediate of the kernel under test is exact in float32.

Why exact. Let u be the unit in which all intermediates are whole numbers. A float32 holds every whole
multiple of u up to 2^24 u, so sums and products that stay below are exact in any order, and the
kernel must equal the reference bit for bit. `largest_intermediate` computes a bound on all of them
from the data at hand (absolute values through every stage), in units of u.

    direct        operands and sums are integers                                        u = 1
    F(3x3,2x2)    weights: sums of four taps over 4; input and output: additions        u = 1/4
    F(4x4,2x2)    weights hold ninths in each axis: multiples of 81 make them integers  (1)
                  input: halves in each axis                                            (1/4)
                  output: m2 is a whole number in its axis (its input row is -2 1 1) and is divided
                  by at most 8; the halves of the other rows are multiplied by 1, 2, 4, 8  u = 1/64
    2taps         F(2x2,2x2): additions everywhere                                      u = 1
    4taps         F(4x4,2x2) with the ninths in the input transform: sources and shifts that are
                  multiples of 81 make its values whole (a product by the nearest float32 of 1/9, 2/9
                  or 4/9 is off by 2^-27 of itself and rounds to the whole number); the weights
                  are sums of taps                                      the rest as F(4x4,2x2)
    F(5x5,2x2)    weights hold fifteenths in each axis, outputs sixteenths: more digits than a float32
                  has beside the sums. Not exact; the outputs must be within 1/4 of the whole
                  numbers, and `largest_intermediate` proves from the data that rounding alone
                  cannot exceed that, for whole tiles everywhere and for short ones (F(4x4,2x2)
                  without the point -2) everywhere: a tile is one or the other in each axis, and
                  the bound of a mixed tile lies between
    slope 1/4     activations are quarters: u is four times smaller

bf16 kernels round their operands: transformed inputs and weights must also be bf16 numbers (8 bits,
checked). They sum in float32, so the same bound holds, and round each output once.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pix2pix_fast import _core

Array = NDArray[Any]
UNIT = 2.0**-24  # rounding error of float32, relative


@dataclass(frozen=True)
class Filter:
    """F(m, 2): y = at [ (g w) * (bt x) ]; the matrices of body/winograd.inl restated."""

    bt: Array
    g: Array
    at: Array
    sum_units: int | None  # 1/u of the products, for integer inputs; None: not exact
    out_units: int | None  # 1/u of the outputs

    @property
    def tile(self) -> int:
        return len(self.at)

    @property
    def growth(self) -> float:
        """How much larger than of the filter itself (2x2 taps) rounding can get: the bound of the
        absolute values of all paths from an input to an output, worst output."""
        paths = abs(self.at) @ (abs(self.g).sum(1) * abs(self.bt).sum(1))
        return float(paths.max() / 2) ** 2


FOUR_OUTPUTS = np.array(
    [[1, 1, 1, 1, 0], [0, 1, -0.5, -2, 0], [0, 1, 0.25, 4, 0], [0, 1, -1 / 8, -8, 1]]
)
WINOGRAD3 = Filter(
    bt=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1.0]]),
    g=np.array([[1, 0], [0.5, 0.5], [0.5, -0.5], [0, 1]]),
    at=np.array([[1, 1, 1, 0], [0, 1, -1, 0], [0, 1, 1, 1.0]]),
    sum_units=4,
    out_units=4,
)
FILTERS = {
    "winograd3": WINOGRAD3,
    "lastwinograd3": WINOGRAD3,
    "winograd2taps": Filter(
        bt=np.array([[1, -1, 0], [0, 1, 0], [0, -1, 1.0]]),
        g=np.array([[1, 0], [1, 1], [0, 1.0]]),
        at=np.array([[1, 1, 0], [0, 1, 1.0]]),
        sum_units=1,
        out_units=1,
    ),
    "winograd4": Filter(
        bt=np.array(
            [
                [1, 1.5, -1.5, -1, 0],
                [0, 1, 2.5, 1, 0],
                [0, -2, 1, 1, 0],
                [0, -0.5, -0.5, 1, 0],
                [0, -1, -1.5, 1.5, 1],
            ]
        ),
        g=np.array([[9, 0], [2, 2], [8, -4], [-1, 2], [0, 9]]) / 9,
        at=FOUR_OUTPUTS,
        sum_units=4,
        out_units=64,
    ),
    "winograd4taps": Filter(
        bt=np.array(
            [
                [9, 13.5, -13.5, -9, 0],
                [0, 2, 5, 2, 0],
                [0, -8, 4, 4, 0],
                [0, 0.5, 0.5, -1, 0],
                [0, -9, -13.5, 13.5, 9],
            ]
        )
        / 9,
        g=np.array([[1, 0], [1, 1], [2, -1], [1, -2], [0, 1.0]]),
        at=FOUR_OUTPUTS,
        sum_units=4,
        out_units=64,
    ),
    "winograd5": Filter(
        bt=np.array(
            [
                [1, -1.5, -2, 1.5, 1, 0],
                [0, -1, 0.5, 2.5, 1, 0],
                [0, 1, -2.5, 0.5, 1, 0],
                [0, -2, -1, 2, 1, 0],
                [0, 0.5, -1, -0.5, 1, 0],
                [0, 1, -1.5, -2, 1.5, 1],
            ]
        ),
        g=np.array([[15, 0], [5, 5], [-5, 5], [-16, -8], [1, -2], [0, 15]]) / 15,
        at=np.array(
            [
                [1, 1, 1, 1, 1, 0],
                [0, 1, -1, 1 / 2, -2, 0],
                [0, 1, 1, 1 / 4, 4, 0],
                [0, 1, -1, 1 / 8, -8, 0],
                [0, 1, 1, 1 / 16, 16, 1],
            ]
        ),
        sum_units=None,
        out_units=None,
    ),
}
# What the last tiles of a map use instead, at all points but -2: the same weights.
SHORT5 = replace(
    FILTERS["winograd5"],
    bt=np.array(
        [
            [1, -2, -1, 2, 0],
            [0, -1.5, 1.5, 3, 0],
            [0, 0.5, -1.5, 1, 0],
            [0, -2.5, 0, 2.5, 0],
            [0, 0.5, -1, -0.5, 1],
        ]
    ),
    g=np.delete(FILTERS["winograd5"].g, 4, axis=0),
    at=np.delete(FILTERS["winograd5"].at[:4], 4, axis=1) + np.eye(4, 5, 1) * [0, 0, 0, 0, 1],
)
FILTERS["winograd4columns"] = FILTERS["winograd4taps"]  # the same transforms, half of the weights' at load
# Those whose transposed convolution has tiles of its own for every phase.
OWN_TILES = ("winograd2taps", "winograd4", "winograd4taps", "winograd4columns")
NEAR = 0.25  # of a whole number, where a kernel cannot be exact


def to_bf16(values: Array) -> Array:
    """Nearest bf16, ties to even, as float64; `values` are exact in float32."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return kept.astype(np.uint32).view(np.float32).astype(np.float64)


def is_bf16(values: Array) -> bool:
    return np.array_equal(to_bf16(values), values)


def parts(kernel: str) -> tuple[str, str, str]:
    """"avx2/conv4x4s2_winograd3_f32" -> ("conv4x4s2", "winograd3", "f32")."""
    op, algorithm, dtype = kernel.split("/")[1].split("_")
    return op, algorithm, dtype


def is_exact(kernel: str) -> bool:
    """Whether small integers give the result bit for bit; else within NEAR."""
    filter = FILTERS.get(parts(kernel)[1])
    return filter is None or filter.out_units is not None


def rounds_operands(kernel: str) -> bool:
    """Whether products are of bf16 operands: the first layer's are float32 except on tiles."""
    _, algorithm, dtype = parts(kernel)
    return dtype == "bf16" and (algorithm != "first" or kernel.startswith("amx/"))


@dataclass(frozen=True)
class Case:
    kernel: str
    src: Array  # (h, w, ci)
    weight: Array  # (co, ci, 4, 4) or (ci, co, 4, 4), skip channels first
    skip: Array | None = None
    bias: Array | None = None
    scale: Array | None = None
    shift: Array | None = None
    slope: float = 1.0
    tanh: bool = False
    tile_block: int = -1

    def __str__(self) -> str:
        skip = 0 if self.skip is None else self.skip.shape[2]
        h, w, ci = self.src.shape
        return (
            f"{self.kernel}: {h}x{w}, channels {skip}+{ci} > {self.co}, slope {self.slope}, "
            f"tile_block {self.tile_block}"
        )

    @property
    def down(self) -> bool:
        return parts(self.kernel)[0] == "conv4x4s2"

    @property
    def co(self) -> int:
        return int(self.weight.shape[0 if self.down else 1])

    def run(self, threads: int = 1) -> dict[str, Any]:
        return _core.run_kernel(
            self.kernel,
            self.src,
            self.weight,
            skip=self.skip,
            bias=self.bias,
            scale=self.scale,
            shift=self.shift,
            slope=self.slope,
            tanh=self.tanh,
            tile_block=self.tile_block,
            threads=threads,
        )

    def activated(self) -> Array:
        """(h, w, ci of both sources) float64: what the convolution sees inside the picture."""
        x = self.src if self.skip is None else np.concatenate([self.skip, self.src], 2)
        x = x.astype(np.float64)
        if self.scale is not None and self.shift is not None:
            x = x * self.scale + self.shift
        return np.maximum(x, self.slope * x)

    def exact(self) -> Array:
        """(ho, wo, co) float64 before bias; padding is zero after the norm and the activation."""
        return convolve(self.activated(), self.weight, self.down)


def convolve(x: Array, weight: Array, down: bool) -> Array:
    t = torch.from_numpy(x).double().permute(2, 0, 1)[None]
    f = F.conv2d if down else F.conv_transpose2d
    out = f(t, torch.from_numpy(weight).double(), stride=2, padding=1)
    return out[0].permute(1, 2, 0).numpy()


def transformed(case: Case, filter: Filter) -> tuple[Array, Array]:
    """V (1 or phases, tiles, points, points, k) and U (phases, points, points, k, co) of the kernel,
    float64. The phases of a transposed convolution share their tiles where `own_tiles` does not say
    otherwise."""
    x = np.pad(case.activated(), ((1, 1), (1, 1), (0, 0)))
    w = case.weight.astype(np.float64)
    phases = [(py, px) for py in (0, 1) for px in (0, 1)]
    if case.down:  # four phases of the input, side by side in k
        images = [np.concatenate([x[py::2, px::2] for py, px in phases], 2)]
        w = w.transpose(2, 3, 1, 0)  # (4, 4, ci, co)
        weights = np.concatenate([w[py::2, px::2] for py, px in phases], 2)[None]
    else:  # four phases of the output
        own = parts(case.kernel)[1] in OWN_TILES
        images = [x[py : py + len(x) - 1, px : px + x.shape[1] - 1] for py, px in phases]
        images = images if own else [x]
        w = w.transpose(2, 3, 0, 1)
        weights = np.stack([w[3 - py :: -2, 3 - px :: -2] for py, px in phases])
    m = filter.tile
    v = []
    for image in images:
        tiles = [-(-(size - 1) // m) for size in image.shape[:2]]
        short = [m * t + 1 - size for t, size in zip(tiles, image.shape, strict=False)]
        image = np.pad(image, [(0, short[0]), (0, short[1]), (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(image, (m + 1, m + 1), (0, 1))[::m, ::m]
        v.append(np.einsum("ai,yxkij,bj->yxabk", filter.bt, windows, filter.bt))
    u = np.einsum("ai,pijkn,bj->pabkn", filter.g, weights, filter.g)
    return np.stack([x.reshape(-1, *x.shape[2:]) for x in v]), u


def largest_intermediate(case: Case) -> float:
    """Bound on every intermediate in its unit, below 2^24 where the kernel must be exact, or on the
    rounding, below 2^24 where it must be near. Infinite where a bf16 operand would be rounded."""
    _, algorithm, _ = parts(case.kernel)
    fine = 4 if case.slope == 0.25 else 1
    bias = 0.0 if case.bias is None else float(abs(case.bias).max())
    rounds = rounds_operands(case.kernel)
    if algorithm not in FILTERS:
        x = case.activated()
        if rounds and not (is_bf16(x) and is_bf16(case.weight)):
            return np.inf
        # + 1: the last layer's output is mapped to the caller's range by way of y + 1
        return fine * (float(convolve(abs(x), abs(case.weight), case.down).max()) + bias + 1)
    filter = FILTERS[algorithm]
    if filter.sum_units is None or filter.out_units is None:
        return fine * max(rounding(case, one) for one in (filter, SHORT5)) / NEAR
    v, u = transformed(case, filter)
    if rounds and not (is_bf16(v) and is_bf16(u)):
        return np.inf
    v = v.transpose(0, 2, 3, 1, 4)
    sums = abs(v) @ abs(u)  # (phases, n, n, tiles, co)
    products = v @ u
    outputs = np.einsum("ia,pabtn,jb->ptijn", abs(filter.at), abs(products), abs(filter.at))
    largest = filter.out_units * (float(outputs.max()) + bias + algorithm.startswith("last"))
    return fine * max(filter.sum_units * float(sums.max()), largest)


def rounding(case: Case, filter: Filter) -> float:
    """Bound on an output's error in units of 2^-24: the absolute values of all paths to it, times the
    roundings along one: 2 in each axis of the input transform, 1 of a weight, the sum, 4 in each
    axis of the output transform, the bias."""
    positive = replace(filter, bt=abs(filter.bt), g=abs(filter.g))
    size = replace(case, src=abs(case.activated()).astype(np.float32), weight=abs(case.weight))
    v, u = transformed(replace(size, skip=None, scale=None, shift=None, slope=1.0), positive)
    sums = v.transpose(0, 2, 3, 1, 4) @ u
    outputs = np.einsum("ia,pabtn,jb->ptijn", abs(filter.at), sums, abs(filter.at))
    bias = 0.0 if case.bias is None else float(abs(case.bias).max())
    return (v.shape[4] + 14) * float(outputs.max()) + bias


def nonzero(rng: np.random.Generator, largest: int, size: Any) -> Array:
    values = rng.integers(1, largest + 1, size) * rng.choice([-1, 1], size)
    return values.astype(np.float32)


# Values of (source, shift, weight) up to; the scale is up to 2 (F(4x4,2x2): 1).
RANGES = {
    ("direct", "f32"): (12, 8, 32),
    ("direct", "bf16"): (12, 8, 32),
    ("winograd3", "f32"): (2, 3, 7),
    ("winograd2taps", "f32"): (2, 3, 7),
    ("winograd3", "bf16"): (5, 5, 15),
    ("winograd4", "f32"): (1, 1, 1),
    ("winograd4taps", "f32"): (1, 1, 2),
    ("winograd4columns", "f32"): (1, 1, 2),
    ("winograd5", "f32"): (1, 2, 5),
}


def ninths(algorithm: str) -> tuple[np.float32, np.float32]:
    """What taps and what sources must be multiples of to be divisible by 9 in both axes."""
    taps = 81 if algorithm == "winograd4" else 1
    return np.float32(taps), np.float32(81 if algorithm in ("winograd4taps", "winograd4columns") else 1)


def random_case(kernel: str, index: int, seed: int = 0) -> Case:
    """A shape and integers for it, the same for the same arguments. 33 neighbouring indices meet every
    channel tail 1..33 on both sides."""
    rng = np.random.default_rng([seed, index, zlib.crc32(kernel.encode())])
    op, algorithm, dtype = parts(kernel)
    first, last = algorithm == "first", algorithm.startswith("last")
    ci, co, skip = 1 + index * 5 % 33, 1 + index % 33, 0
    h, w = (1 if rng.random() < 0.2 else int(rng.integers(1, 15)) for _ in range(2))
    four = algorithm.startswith("winograd4")
    if index % 15 == 7:  # deep: sums longer than one run of registers (256 words)
        ci, h, w = int(rng.integers(34, 70 if four else 330)), min(h, 6), min(w, 6)
    if index % 15 == 11:  # wide: several panels of output channels
        ci, co, h, w = 1 + ci % 9, int(rng.integers(34, 300)), min(h, 7), min(w, 7)
    if index % 15 == 13:  # large
        ci, co, h, w = 1 + ci % 9, 1 + co % 9, int(rng.integers(15, 50)), int(rng.integers(15, 50))
    if first:
        ci = 1 + index % 8
    if last:
        co = 1 + index % 8
    if op == "conv4x4s2":
        h, w = 2 * h, 2 * w
    elif rng.random() < 0.5:
        skip = 1 + index * 7 % 33
    source, most, tap = RANGES[("direct" if algorithm in ("first", "last") else algorithm.removeprefix("last"), dtype)]
    if algorithm == "winograd5" and ci > 33:
        tap = 1  # long sums of larger taps leave the exact range, thinned till they do not they are zero
    if four and ci + skip <= 2:
        tap = 3  # short sums of -1 and 1 are zero too often
    tile_block = [-1, 0, int(rng.integers(1, 40))][index % 3]
    slope = 1.0 if first else [0.0, 1.0, 0.25][int(rng.integers(3))]
    shape = (co, ci + skip, 4, 4) if op == "conv4x4s2" else (ci + skip, co, 4, 4)
    tap_unit, unit = ninths(algorithm)
    thinned = 0
    for _ in range(200):
        case = Case(
            kernel,
            nonzero(rng, source, (h, w, ci)) * unit,
            nonzero(rng, tap, shape) * tap_unit,
            skip=nonzero(rng, source, (h, w, skip)) * unit if skip else None,
            bias=nonzero(rng, 15, co) if index % 4 else None,
            slope=slope,
            tile_block=tile_block,
        )
        if not first and index % 6:
            case = replace(
                case,
                scale=nonzero(rng, 1 if four else 2, ci + skip),
                shift=nonzero(rng, most, ci + skip) * unit,
            )
        # Long sums leave the exact range: thin the weights, more every time.
        density = 0.8 ** (thinned / 2)
        if density < 1:
            case.weight[...] *= rng.random(shape) < density
        if largest_intermediate(case) >= 2**24:
            thinned += 1
        elif np.mean(case.exact() == 0) <= 0.3:
            return case
    raise AssertionError(f"no exact case with enough nonzero outputs: {case}")
