"""Every kernel of every room by itself: integers bit for bit, real numbers within the bound of their
algorithm, statistics against float64.

`pytest -k avx512/conv4x4s2_winograd3_f32` runs one kernel; P2P_EXHAUSTIVE=1 runs 5,000 shapes each
(P2P_EXHAUSTIVE=n: n shapes). The case in a failure's message is rebuilt by
`kernel_reference.random_case(kernel, index, seed)`.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import numpy as np
import pytest
from conftest import SEED
from kernel_reference import (
    FILTERS,
    NEAR,
    SHORT5,
    UNIT,
    Array,
    Case,
    convolve,
    is_exact,
    largest_intermediate,
    ninths,
    parts,
    random_case,
    rounds_operands,
    to_bf16,
)

from pix2pix_fast import _core

KERNELS = _core.kernels()
RUNNABLE = _core.cpu()["runnable"]
EXHAUSTIVE = int(os.environ.get("P2P_EXHAUSTIVE", "0"))
CASES = 66 if not EXHAUSTIVE else (5000 if EXHAUSTIVE == 1 else EXHAUSTIVE)
# weights of 24 bits (body/fixed24.inl)
PACKED = [k for k in KERNELS if k.endswith("_direct_f32") and not k.startswith("scalar/")]
STATISTICS = [k for k in KERNELS if not parts(k)[1].startswith(("first", "last"))]


def need(kernel: str) -> None:
    room = kernel.split("/")[0]
    if room not in RUNNABLE:
        pytest.skip(f"this CPU ({_core.cpu()['name']}) cannot run the room {room}")


def assert_same(got: Array, exact: Array, case: Case) -> None:
    """`got` is the exact result, rounded once where the kernel stores bf16."""
    _, algorithm, dtype = parts(case.kernel)
    want = to_bf16(exact) if dtype == "bf16" and not algorithm.startswith("last") else exact
    near = 0.0 if is_exact(case.kernel) else NEAR * (0.25 if case.slope == 0.25 else 1)
    wrong = np.argwhere(~(abs(got - want) <= near))
    assert len(wrong) == 0, (
        f"{case}: {len(wrong)} of {want.size} differ, first at {wrong[0]}: "
        f"{got[tuple(wrong[0])]} instead of {want[tuple(wrong[0])]}"
    )


def expected(case: Case) -> Array:
    exact = case.exact() + (0.0 if case.bias is None else case.bias.astype(np.float64))
    assert abs(exact).max() < 2**53 / 64  # float64 sums are exact too
    return exact


def values_of(got: dict[str, Array], exact: Array, case: Case) -> Array:
    """What the kernel took its statistics of."""
    return exact if is_exact(case.kernel) else got["dst"].astype(np.float64)


def assert_statistics(got: dict[str, Array], values: Array, case: Case) -> None:
    """scale = 1 / sqrt(var + 1e-5), shift = -mean scale of `values` (ho, wo, co), float64.

    A block of n values sums d = y - first and d^2 in float32, so the sum of squared deviations is
    off by at most 3 n u sum(d^2) (u = 2^-24), and its mean by u |mean| for its storage. d^2 is at
    most (2 max |y - mean|)^2. Where all these sums are whole numbers below 2^24, only the last
    roundings remain.
    """
    values = values.reshape(-1, values.shape[2])
    count = len(values)
    mean = values.mean(0)
    deviation = values - mean
    var = (deviation**2).mean(0)
    reach = 2 * abs(deviation).max(0)
    size = np.sqrt(var) + 1e-30
    whole = np.all(values % 1 == 0) and count * reach.max() ** 2 < 2**24
    summed = 4 * UNIT if whole else 3 * count * UNIT
    error_mean = UNIT * abs(mean) + summed * reach
    # mean of a block off by e: its n (mean_b - mean)^2 changes by at most 2 e |mean_b - mean| + e^2
    error_var = summed * reach**2 + 2 * error_mean * size + error_mean**2
    varied = var > 0
    want = np.where(varied, 1 / np.sqrt(var + 1e-5), 0)
    bound = want * (0.5 * error_var / (var + 1e-5) * 1.5 + 4 * UNIT)
    assert np.all(got["scale"][~varied] == 0), f"{case}: a constant channel needs scale 0"
    assert np.all(got["shift"][~varied] == 0), f"{case}: a constant channel gives beta"
    close = abs(got["scale"] - want) <= bound
    assert close.all(), f"{case}: scale {got['scale'][~close]} instead of {want[~close]}"
    bound = abs(mean) * bound + want * error_mean + UNIT * abs(mean * want) * 2
    close = abs(got["shift"] + mean * want) <= bound
    assert close.all(), f"{case}: shift {got['shift'][~close]} instead of {(-mean * want)[~close]}"


# Integers


@pytest.mark.parametrize("kernel", KERNELS)
def test_integers_are_exact(kernel: str) -> None:
    need(kernel)
    print(f"P2P_TEST_SEED={SEED}, {CASES} shapes")
    zeros = []
    for index in range(CASES):
        case = random_case(kernel, index, SEED)
        exact = expected(case)
        zeros.append(np.mean(exact == 0))
        got = case.run()
        assert_same(got["dst"], exact, case)
        twice = case.run(threads=2)
        for name in ("dst", "scale", "shift"):
            same = twice[name].tobytes() == got[name].tobytes()
            assert same, f"{case}: {name} depends on threads"
        if got["scale"].size:
            assert_statistics(got, values_of(got, exact, case), case)
    assert np.mean(zeros) <= 0.3


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_schedule_gives_the_same_values(kernel: str) -> None:
    need(kernel)
    for index in (13, 28, 40):
        case = random_case(kernel, index, SEED)
        exact = expected(case)
        for tile_block in (-1, 0, 1, 2, 7, 1 << 20):
            case = replace(case, tile_block=tile_block)
            got = case.run(threads=2)
            assert_same(got["dst"], exact, case)
            if got["scale"].size:
                assert_statistics(got, values_of(got, exact, case), case)


@pytest.mark.parametrize("kernel", KERNELS)
def test_wrong_references_are_caught(kernel: str) -> None:
    """The comparison can fail: one tap, one unit in one output, and padding before the norm."""
    need(kernel)
    case = replace(random_case(kernel, 13, SEED), bias=None, slope=1.0)
    got = case.run()["dst"]
    assert_same(got, case.exact(), case)

    off = case.exact()
    off[-1, -1, -1] += abs(off).max() / 100 + 1
    with pytest.raises(AssertionError, match="1 of .* differ"):
        assert_same(got, off, case)

    wrong = replace(case, weight=case.weight.copy())
    wrong.weight[0, 0, 1, 2] += 200
    with pytest.raises(AssertionError, match="differ"):
        assert_same(got, wrong.exact(), case)

    if parts(kernel)[1] == "first":
        return
    assert case.scale is not None and case.shift is not None
    x = np.pad(case.activated(), ((2, 2), (2, 2), (0, 0)))
    x[:2] = x[-2:] = x[:, :2] = x[:, -2:] = case.shift
    early = convolve(x, case.weight, case.down)
    early = early[1:-1, 1:-1] if case.down else early[4:-4, 4:-4]
    with pytest.raises(AssertionError, match="differ"):
        assert_same(got, early, case)


def test_the_guard_of_the_exact_range_can_fail() -> None:
    case = random_case("scalar/conv4x4s2_direct_f32", 1, SEED)
    assert largest_intermediate(case) < 2**24
    assert largest_intermediate(replace(case, weight=case.weight * np.float32(2**20))) > 2**24
    rounded = replace(case, kernel="avx512bf16/conv4x4s2_direct_bf16", weight=case.weight + 256)
    assert largest_intermediate(rounded) == np.inf


# Real numbers


def real_case(kernel: str, index: int, seed: int) -> Case:
    """The shape of `random_case` with normal numbers; bf16 kernels read bf16 numbers."""
    case = random_case(kernel, index, seed)
    rng = np.random.default_rng([seed, index])
    bf16 = rounds_operands(kernel)

    def normal(shape: tuple[int, ...]) -> Array:
        values = rng.standard_normal(shape).astype(np.float32)
        return to_bf16(values).astype(np.float32) if bf16 else values

    scaled = case.scale is not None
    channels = case.src.shape[2] + (0 if case.skip is None else case.skip.shape[2])
    return replace(
        case,
        src=normal(case.src.shape),
        skip=None if case.skip is None else normal(case.skip.shape),
        weight=rng.standard_normal(case.weight.shape).astype(np.float32),
        bias=None if case.bias is None else normal(case.bias.shape),
        scale=rng.uniform(0.5, 2, channels).astype(np.float32) if scaled else None,
        shift=normal((channels,)) if scaled else None,
        slope=1.0 if parts(kernel)[1] == "first" else [0.0, 0.2, 1.0][index % 3],
    )


def real_bound(case: Case) -> float:
    """c eps K max|x| max|w| growth, c = 1: K terms, each rounded a few times (2^-24; a bf16 operand
    2^-8; eps is twice that); the sums run in pieces of at most 256, so their own growth is covered
    by max|x| max|w| instead of the mean of |x w|, ten times smaller. The output is rounded once
    more. Weights of 24 bits are off by up to 2^-23 of the largest."""
    _, algorithm, dtype = parts(case.kernel)
    low = rounds_operands(case.kernel)
    x = case.activated()
    taps = 16 if case.down else 4
    most = taps * x.shape[2] * float(abs(x).max()) * float(abs(case.weight).max())
    growth = FILTERS[algorithm].growth if algorithm in FILTERS else 1.0
    output = (2.0**-8 if dtype == "bf16" else UNIT) * float(abs(expected(case)).max() + 1)
    weights = 2.0**-23 * most if case.kernel in PACKED else 0.0
    return (2.0**-7 if low else 2.0**-23) * most * growth + weights + output


@pytest.mark.parametrize("kernel", KERNELS)
def test_real_numbers_are_within_the_bound(kernel: str) -> None:
    need(kernel)
    for index in range(0, 45, 2):
        case = real_case(kernel, index, SEED)
        want = expected(case)
        got = case.run(threads=2)["dst"]
        error = abs(got - want)
        assert np.isfinite(got).all() and error.max() <= real_bound(case), f"{case}: {error.max()}"
        # Typical error, far below the worst case: what a lost term or tap would exceed.
        typical = np.sqrt(np.mean(error**2) / np.mean(want**2))
        assert typical <= (1.5e-2 if parts(kernel)[2] == "bf16" else 2e-6), f"{case}: {typical}"


# What parts the rows of two phases (kOwnC of vec.h) with the algorithm; 63 and 47: parts that begin within short tiles.
PARTED = {
    "direct": [(56, 56)],
    "winograd2taps": [(36, 36)],
    "winograd3": [(50, 50)],
    "winograd4": [(50, 46)],
    "winograd4taps": [(50, 46)],
    "winograd4columns": [(50, 46)],
    "winograd5": [(63, 63), (47, 63), (47, 47)],
}


@pytest.mark.parametrize("kernel", [k for k in STATISTICS if k.startswith("avx2/")])
def test_rows_in_parts(kernel: str) -> None:
    """Where C of all rows exceeds what two phases keep, every part has its own A and statistics. Large
    A's take turns, more of them in a turn where many threads want work."""
    need(kernel)
    op, algorithm, _ = parts(kernel)
    down, rng = op == "conv4x4s2", np.random.default_rng(SEED)
    few, many = ((20, 0, 40), (140, 0, 136)) if down else ((5, 17, 40), (130, 17, 72))
    for (h, w), (ci, skip, co) in itertools.product(PARTED[algorithm], (few, many)):
        case = Case(
            kernel,
            rng.standard_normal(((2 * h, 2 * w) if down else (h, w)) + (ci,)).astype(np.float32),
            rng.standard_normal((co, ci, 4, 4) if down else (ci + skip, co, 4, 4)).astype(
                np.float32
            ),
            skip=rng.standard_normal((h, w, skip)).astype(np.float32) if skip else None,
            bias=rng.standard_normal(co).astype(np.float32),
            slope=0.2,
            tile_block=0,
        )
        got, want = case.run(), expected(case)
        assert got["stat_blocks"] >= (2 if down else 8), f"{case}: one part"
        assert got["phases"] > 2 or co < 72, f"{case}: no turns"
        assert abs(got["dst"] - want).max() <= real_bound(case), f"{case}"
        assert np.sqrt(np.mean((got["dst"] - want) ** 2) / np.mean(want**2)) <= 2e-6, f"{case}"
        assert_statistics(got, got["dst"].astype(np.float64), case)
        for threads in (2, 9):
            again = case.run(threads)
            assert again["phases"] <= got["phases"], f"{case}"
            for name in ("dst", "scale", "shift"):
                same = again[name].tobytes() == got[name].tobytes()
                assert same, f"{case}: {name} depends on threads"


@pytest.mark.parametrize("kernel", [k for k in KERNELS if parts(k)[1].startswith("last")])
@pytest.mark.parametrize(
    ("h", "w", "ci", "skip", "co"),
    [
        (5, 70, 64, 64, 3),  # a row of tiles in several blocks, the last one shorter
        (2, 5, 2700, 0, 1),  # blocks of one tile, sums in pieces
        *(
            (4, 9, 20, 0, co) for co in (4, 5, 12, 13, 64)
        ),  # a window's row in one vector and in many
    ],
)
def test_the_last_layer_in_blocks(kernel: str, h: int, w: int, ci: int, skip: int, co: int) -> None:
    need(kernel)
    rng = np.random.default_rng(SEED)
    low = rounds_operands(kernel)

    def normal(*shape: int) -> Array:
        values = rng.standard_normal(shape).astype(np.float32)
        return to_bf16(values).astype(np.float32) if low else values

    case = Case(
        kernel,
        normal(h, w, ci),
        normal(ci + skip, co, 4, 4),
        skip=normal(h, w, skip) if skip else None,
        bias=normal(co),
        slope=0.2,
    )
    got, want = case.run()["dst"], expected(case)
    typical = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
    assert abs(got - want).max() <= real_bound(case), f"{case}"
    assert typical <= (1.5e-2 if low else 2e-6), f"{case}: {typical}"
    assert case.run(threads=2)["dst"].tobytes() == got.tobytes()


@pytest.mark.parametrize(
    "kernel", [k for k in KERNELS if parts(k)[1].endswith(("taps", "columns"))]
)
def test_weights_formed_on_the_way_over_many_chunks(kernel: str) -> None:
    """Several chunks of channels times several blocks of rows, and (AVX-512) a narrow last panel: what is kept
    between positions is written anew for every chunk (64 or 128 channels with AVX2, 256 with AVX-512)."""
    need(kernel)
    rng = np.random.default_rng(SEED)
    down = parts(kernel)[0] == "conv4x4s2"
    ci, skip, co = (300, 0, 40) if down else (300, 33, 40)
    h, w = (28, 36) if down else (14, 18)
    case = Case(
        kernel,
        rng.standard_normal((h, w, ci)).astype(np.float32),
        rng.standard_normal((co, ci, 4, 4) if down else (ci + skip, co, 4, 4)).astype(np.float32),
        skip=rng.standard_normal((h, w, skip)).astype(np.float32) if skip else None,
        bias=rng.standard_normal(co).astype(np.float32),
        slope=0.2,
    )
    want = expected(case)
    for tile_block in (-1, 0, 5):
        got = replace(case, tile_block=tile_block).run(threads=2)["dst"]
        typical = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
        assert abs(got - want).max() <= real_bound(case) and typical <= 2e-6, f"{case}: {typical}"


@pytest.mark.parametrize("kernel", PACKED)
def test_weights_of_24_bits(kernel: str) -> None:
    """Of a single pixel an output is a weight: off by at most 2^-23 of the largest one of the output's column and
    phase, and not at all where it is a multiple of 2^-22 of it."""
    need(kernel)
    down, rng = parts(kernel)[0] == "conv4x4s2", np.random.default_rng(SEED)
    ci, co, side = 5, 40, 4 if parts(kernel)[0] == "conv4x4s2" else 2
    weight = rng.standard_normal((co, ci, 4, 4) if down else (ci, co, 4, 4))
    weight *= 2.0 ** -rng.integers(0, 30, weight.shape)  # of every magnitude below the largest ...
    columns = np.moveaxis(
        weight, 0 if down else 1, 0
    )  # ... which is of another one in every column
    columns *= 2.0 ** rng.integers(-60, 60, co)[:, None, None, None]
    columns[:, :, 1::2, ::2] *= 2.0**-11  # which is smaller in one of a transposed convolution's phases
    columns[3] = 0
    columns[4] = -(2.0**-140)  # a denormal number
    columns[5] = np.float32(3.4e38)
    largest = abs(columns).max((1, 2, 3))
    whole = 2.0 ** np.floor(np.log2(largest + 1e-300) - 21)[:, None, None, None]
    columns[20:] = np.round(columns[20:] / whole[20:]) * whole[20:]
    weight = weight.astype(np.float32)
    columns = abs(np.moveaxis(weight.astype(np.float64), 0 if down else 1, 0))
    phases = 1 if down else 2  # a side; those of a transposed convolution meet every second tap
    largest = np.array(
        [[columns[:, :, 1 - y :: 2, 1 - x :: 2].max((1, 2, 3)) for x in range(2)] for y in range(2)]
        if phases == 2
        else [[columns.max((1, 2, 3))]]
    )
    error = np.zeros((phases, phases, co))
    for y, x, c in np.ndindex(side, side, ci):
        src = np.zeros((side, side, ci), np.float32)
        src[y, x, c] = 1
        case = Case(kernel, src, weight)
        off = abs(case.run()["dst"] - case.exact())
        for i, j in np.ndindex(phases, phases):
            error[i, j] = np.maximum(error[i, j], off[i::phases, j::phases].max((0, 1)))
    tiny = largest < 2.0**-90  # below a column's least power of two
    assert np.all(error[~tiny] <= 2.0**-23 * largest[~tiny]), error / largest
    assert np.all(error[tiny] <= 2.0**-113), error[tiny]
    assert np.all(error[..., 20:] == 0) and error[..., :20].max() > 0


@pytest.mark.parametrize("kernel", PACKED)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_shows(kernel: str, wrong: float) -> None:
    need(kernel)
    case = random_case(kernel, 13, SEED)
    weight = case.weight.copy()
    weight[(1, 0, 1, 1) if case.down else (0, 1, 1, 1)] = wrong
    got = replace(case, weight=weight, bias=None).run()["dst"]
    assert np.isnan(got[..., 1]).any()
    assert np.isfinite(np.delete(got, 1, -1)).all()


def test_the_short_filter_is_a_filter() -> None:
    """y[a] = d[a] g[0] + d[a + 1] g[1] by the matrices of the reference, all of them."""
    rng = np.random.default_rng(SEED)
    for filter in (*FILTERS.values(), SHORT5):
        d, g = rng.standard_normal(filter.tile + 1), rng.standard_normal(2)
        got = filter.at @ ((filter.bt @ d) * (filter.g @ g))
        assert np.allclose(got, d[:-1] * g[0] + d[1:] * g[1], atol=1e-12), filter


@pytest.mark.parametrize("kernel", [k for k in KERNELS if parts(k)[1].startswith("last")])
def test_tanh_is_within_3e_7_of_float64(kernel: str) -> None:
    """tanh itself 2e-7; the way to the caller's float range [-1, 1] by y + 1 adds 2^-24."""
    need(kernel)
    worst = 0.0
    for index in range(12):
        case = random_case(kernel, index, SEED)
        case = replace(case, weight=case.weight / np.float32(2 ** (9 + index % 5)), tanh=True)
        case = replace(case, bias=np.linspace(-1, 1, case.co).astype(np.float32))
        want = np.tanh(expected(case))
        # sums of exact 2^-13ths, and the bias rounded into them
        slack = UNIT * (1 + float(abs(expected(case)).max()))
        error = abs(case.run()["dst"] - want)
        near = abs(expected(case)) < 20
        worst = max(worst, float(error[near].max()))
        assert error.max() <= 2e-7 + 2.0**-24 + slack, f"{case}: {error.max()}"
    assert worst > 0


def test_tanh_of_every_magnitude() -> None:
    for kernel in (
        k for k in KERNELS if parts(k)[1].startswith("last") and k.split("/")[0] in RUNNABLE
    ):
        bias = np.concatenate([np.linspace(-12, 12, 4001), [0.0, 1e-30, -1e-30, 88, -200, 1e30]])
        bias = bias.astype(np.float32)
        weight = np.zeros((1, len(bias), 4, 4), np.float32)
        case = Case(kernel, np.zeros((1, 1, 1), np.float32), weight, bias=bias, tanh=True)
        error = abs(case.run()["dst"] - np.tanh(bias.astype(np.float64)))
        assert error.max() <= 2e-7 + 2.0**-24, (
            f"{kernel}: {error.max()} at {bias[error.argmax() % len(bias)]}"
        )


@pytest.mark.parametrize("kernel", STATISTICS)
def test_a_flat_area_stays_flat(kernel: str) -> None:
    """Bit for bit, in each output phase: a norm may divide what is not flat by 1/316."""
    need(kernel)
    case = real_case(kernel, 14, SEED)
    channels = case.weight.shape[1 if case.down else 0]
    rng = np.random.default_rng(SEED)
    flat = np.tile(rng.standard_normal(channels).astype(np.float32), (32, 36, 1))
    case = replace(case, src=flat, skip=None, bias=None, scale=None, shift=None)
    dst = case.run()["dst"]
    step = 1 if case.down else 2
    inner = dst[5 * step : -5 * step, 5 * step : -5 * step]  # of tiles that see no padding
    for y in range(step):
        for x in range(step):
            area = inner[y::step, x::step].reshape(-1, case.co)
            assert abs(area).max() > 0
            assert np.all(area == area[0]), f"{kernel}: {abs(area - area[0]).max()}"


# Statistics


@pytest.mark.parametrize("kernel", STATISTICS)
def test_statistics_of_small_whole_numbers(kernel: str) -> None:
    """Sums of squares below 2^24 (not with the multiples of 81 of F(4x4,2x2)): only the last roundings
    remain, so biased against unbiased variance or a pixel counted twice would show."""
    need(kernel)
    for index in range(13, 66, 15):
        case = random_case(kernel, index, SEED)
        rng = np.random.default_rng([SEED, index])
        tap_unit, unit = ninths(parts(kernel)[1])
        thin = rng.random(case.weight.shape) < 0.3
        case = replace(case, weight=np.sign(case.weight) * thin * tap_unit, bias=None, slope=1.0)
        case = replace(case, scale=None, shift=None, src=np.sign(case.src) * unit)
        if case.skip is not None:
            case = replace(case, skip=np.sign(case.skip) * unit)
        for tile_block in (-1, 0, 5):
            case = replace(case, tile_block=tile_block)
            got = case.run(threads=2)
            assert_same(got["dst"], expected(case), case)
            assert_statistics(got, values_of(got, expected(case), case), case)


@pytest.mark.parametrize("kernel", STATISTICS)
def test_statistics_of_a_mean_far_above_the_deviation(kernel: str) -> None:
    """Mean 1000, deviation about 1e-2: sums of squares without a shift would be off by 600 times the
    variance. The values are exact multiples of a power of two, rounded by the bias alone."""
    need(kernel)
    for index in (13, 28, 43):
        case = random_case(kernel, index, SEED)
        raw = case.exact()
        power = np.exp2(np.round(np.log2(1e-2 / raw.std()))).astype(np.float32)
        bias = np.full(case.co, 1000, np.float32)
        case = replace(case, weight=case.weight * power, bias=bias)
        values = (case.exact() + 1000).astype(np.float32).astype(np.float64)
        got = case.run(threads=2)
        assert_statistics(got, values, case)
        # What the consumer computes from them: z off by a few thousandths at most.
        mean, std = values.mean((0, 1)), np.sqrt(values.var((0, 1)) + 1e-5)
        z = (values - mean) / std
        ours = values * got["scale"].astype(np.float64) + got["shift"]
        assert abs(ours - z).max() <= 2 * UNIT * 1000 / std.min() + 0.02


@pytest.mark.parametrize("kernel", STATISTICS)
def test_constant_channels_give_beta_exactly(kernel: str) -> None:
    need(kernel)
    for index in (2, 13, 26, 40):
        case = random_case(kernel, index, SEED)
        constant = np.arange(case.co) % 2 == 0
        axis = 0 if case.down else 1
        shape = [-1 if a == axis else 1 for a in range(4)]
        bias = np.linspace(-1000, 1000, case.co).astype(np.float32)
        case = replace(case, weight=np.where(constant.reshape(shape), 0, case.weight), bias=bias)
        for tile_block in (-1, 0, 3):
            got = replace(case, tile_block=tile_block).run(threads=2)
            assert np.all(got["scale"][constant] == 0) and np.all(got["shift"][constant] == 0)
            if got["dst"].shape[0] * got["dst"].shape[1] > 4 and not constant.all():
                assert np.all(got["scale"][~constant] > 0)


@pytest.mark.parametrize("kernel", [k for k in STATISTICS if "/conv" in k])
def test_one_pixel_has_no_deviation(kernel: str) -> None:
    need(kernel)
    case = Case(
        kernel,
        np.full((2, 2, 5), 3, np.float32),
        np.full((7, 5, 4, 4), 81, np.float32),
        bias=np.arange(7, dtype=np.float32),
    )
    got = case.run()
    assert np.all(got["scale"] == 0) and np.all(got["shift"] == 0)


# The door


@pytest.mark.parametrize("room", RUNNABLE)
def test_the_measured_peak_is_no_more_than_a_core_can_do(room: str) -> None:
    """Two multiply-adds of 16 lanes a cycle at 8 GHz: what was not run would seem faster."""
    assert 0 < _core.peaks(isa=room, threads=1)["flops"] < 64 * 8e9


def test_all_ids_are_well_formed_and_the_scalar_room_is_complete() -> None:
    assert len(set(KERNELS)) == len(KERNELS)
    for kernel in KERNELS:
        op, algorithm, dtype = parts(kernel)
        assert op in ("conv4x4s2", "deconv4x4s2") and dtype in ("f32", "bf16")
        assert algorithm in ("direct", "first", "last", *FILTERS)
    for name in ("conv4x4s2_first", "conv4x4s2_direct", "deconv4x4s2_direct", "deconv4x4s2_last"):
        assert f"scalar/{name}_f32" in KERNELS


def test_the_door_refuses_what_no_kernel_takes() -> None:
    x, w = np.zeros((4, 4, 3), np.float32), np.zeros((5, 3, 4, 4), np.float32)
    run = _core.run_kernel
    with pytest.raises(ValueError, match="unknown kernel 'nowhere/conv4x4s2'"):
        run("nowhere/conv4x4s2", x, w)
    with pytest.raises(ValueError, match="even sizes"):
        run("scalar/conv4x4s2_direct_f32", x[:3], w)
    with pytest.raises(ValueError, match="expected 3 input channels, got 4"):
        run("scalar/conv4x4s2_direct_f32", x, np.zeros((5, 4, 4, 4), np.float32))
    with pytest.raises(ValueError, match="threads must be"):
        run("scalar/conv4x4s2_direct_f32", x, w, threads=0)
    with pytest.raises(ValueError, match="the first layer has one source"):
        run("scalar/conv4x4s2_first_f32", x, np.zeros((5, 6, 4, 4), np.float32), skip=x)
