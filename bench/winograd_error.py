"""How much each minimal filtering F(m x m, 2 x 2) loses in float32, and what it costs.

    python bench/winograd_error.py

Random normal data and weights, sums over K channels in float32 (numpy's pairwise sums), against
float64. Growth is the relative L2 error divided by that of the direct sum in float32. The point
infinity is always there. Multiplications are per output and channel, 4 for the direct sum.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

POINTS = {
    "F(2,2)  0 1": [0, 1],
    "F(3,2)  0 1 -1": [0, 1, -1],
    "F(4,2)  0 1 -1 1/2": [0, 1, -1, Fraction(1, 2)],
    "F(4,2)  0 -1 1/2 2": [0, -1, Fraction(1, 2), 2],
    "F(4,2)  0 1 -1/2 -2": [0, 1, Fraction(-1, 2), -2],
    "F(5,2)  0 1 -1 1/2 2": [0, 1, -1, Fraction(1, 2), 2],
    "F(5,2)  0 +-1/2 +-3/2": [0, Fraction(1, 2), Fraction(-1, 2), Fraction(3, 2), Fraction(-3, 2)],
    "F(5,2)  0 1 -1 1/2 -2": [0, 1, -1, Fraction(1, 2), -2],
}


def toom_cook(points: list[Fraction | int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A^T, G, B^T) of y = A^T((G g) * (B^T d)) for a 2-tap filter, float64, exact to rounding."""
    n = len(points) + 1
    m = n - 1
    f = [Fraction(p) for p in points]
    # The product of two polynomials of m and 2 coefficients, evaluated at n points; transposed, it is
    # the filter: d has n values, y has m.
    at = [[p**i for p in f] + [Fraction(int(i == m - 1))] for i in range(m)]
    g = [[Fraction(1), p] for p in f] + [[Fraction(0), Fraction(1)]]
    evaluate = [[p**i for i in range(n)] for p in f] + [[Fraction(int(i == n - 1)) for i in range(n)]]
    inverse = np.linalg.inv(np.array(evaluate, dtype=float))  # interpolation
    return np.array(at, float), np.array(g, float), inverse.T


def growth(points: list[Fraction | int], channels: int = 512, tiles: int = 200) -> float:
    at, g, bt = toom_cook(points)
    m, n = at.shape
    # numbers on the same scale at every point
    scale = np.sqrt((bt**2).sum(1))
    bt, g = bt / scale[:, None], g * scale[:, None]
    rng = np.random.default_rng(0)
    d = rng.standard_normal((tiles, channels, n, n))
    w = rng.standard_normal((channels, 2, 2))
    exact = sum(
        np.einsum("tcij,c->tij", d[:, :, a : a + m, b : b + m], w[:, a, b])
        for a in (0, 1)
        for b in (0, 1)
    )

    def f32(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float32)

    direct = sum(
        (f32(d[:, :, a : a + m, b : b + m]) * f32(w[:, a, b])[None, :, None, None]).sum(1)
        for a in (0, 1)
        for b in (0, 1)
    )
    d32, w32 = f32(d), f32(w)
    exact32 = sum(  # of the rounded numbers
        np.einsum("tcij,c->tij", d32[:, :, a : a + m, b : b + m].astype(float), w32[:, a, b].astype(float))
        for a in (0, 1)
        for b in (0, 1)
    )
    v = f32(bt) @ d32 @ f32(bt).T
    u = f32(g @ w32.astype(float) @ g.T)
    products = (v * u[None]).sum(1)
    y = f32(at) @ products @ f32(at).T
    assert np.allclose(y, exact, atol=1e-2)

    def error(z: np.ndarray) -> float:
        return float(np.linalg.norm(z - exact32) / np.linalg.norm(exact32))

    return error(y) / error(direct)


def main() -> None:
    print(f"{'':24}{'products':>9}{'saving':>8}{'weights':>9}{'growth':>8}")
    for name, points in POINTS.items():
        n = len(points) + 1
        m = n - 1
        products = n * n / (m * m)
        print(f"{name:24}{products:9.2f}{4 / products:7.2f}x{n * n / 4:8.2f}x{growth(points):8.1f}")


if __name__ == "__main__":
    main()
