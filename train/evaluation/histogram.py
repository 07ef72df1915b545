"""Colours of a whole set of pictures against the true ones': the paper's Figure 7.

A histogram of L, of a and of b over all pixels of all pictures, each normalised to sum 1; the score of
a channel is the sum over bins of min(results, truths): 1 for equal distributions, 0 for disjoint ones.
The paper does not say its bins: here they are one unit wide, which the record repeats beside the score.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pix2pix_fast.train import colour

# Lab of sRGB in D65: L 0..100, a -86.2..98.3, b -107.9..94.5. A bin of a and b has its centre at 0: with
# an edge there the rounding of each gray would choose its bin.
BINS = {"L": (0.0, 100.0, 100), "a": (-110.5, 110.5, 221), "b": (-110.5, 110.5, 221)}


class Histograms:
    """Of one set of pictures: `counts` channel -> (bins,) int64."""

    def __init__(self) -> None:
        self.counts = {name: np.zeros(count, np.int64) for name, (_, _, count) in BINS.items()}

    def add(self, picture: np.ndarray) -> None:
        """(H, W, 3) uint8 sRGB."""
        lab = colour.rgb_to_lab(picture / 255.0)
        for channel, (name, (low, high, count)) in enumerate(BINS.items()):
            values = np.clip(lab[..., channel], low, high)  # white's L may be 100 + 1e-14
            self.counts[name] += np.histogram(values, bins=count, range=(low, high))[0]

    def shares(self, name: str) -> np.ndarray:
        """(bins,) float64 that sum to 1."""
        shares: np.ndarray = self.counts[name] / self.counts[name].sum()
        return shares


def intersection(results: Histograms, truths: Histograms) -> dict[str, Any]:
    """`L`, `a`, `b` in 0..1, and `bins`: lowest, highest and number of each."""
    scores: dict[str, Any] = {
        name: float(np.minimum(results.shares(name), truths.shares(name)).sum()) for name in BINS
    }
    return scores | {"bins": {name: list(bins) for name, bins in BINS.items()}}


def plot(results: Histograms, truths: Histograms) -> str:
    """SVG of the marginal distributions, log10 of probability from 1e-6 to 1, as the paper draws them."""
    wide, high, gap, floor = 260, 200, 50, -6
    scores = intersection(results, truths)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{3 * (wide + gap) + 10}" '
        f'height="{high + 90}" font-family="sans-serif" font-size="12">'
        '<rect width="100%" height="100%" fill="#fff"/>'
    ]
    for panel, (name, (low, top, count)) in enumerate(BINS.items()):
        parts.append(f'<g transform="translate({panel * (wide + gap) + gap},30)">')
        parts.append(f'<text y="-10">{name}: intersection {scores[name]:.3f}</text>')
        for power in range(floor, 1):
            y = high * power / floor
            parts.append(f'<path d="M0 {y:.1f}H{wide}" stroke="#ddd"/>')
            parts.append(f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{power}</text>')
        for value in (-100, 0, 50, 100) if low < 0 else (0, 50, 100):
            x = wide * (value - low) / (top - low)
            parts.append(f'<text x="{x:.1f}" y="{high + 18}" text-anchor="middle">{value}</text>')
        for one, ink in ((truths, "#000"), (results, "#d4501e")):
            shares = np.maximum(np.log10(np.maximum(one.shares(name), 1e-300)), floor)
            step = wide / count
            points = " ".join(
                f"{(i + 0.5) * step:.1f},{high * share / floor:.1f}"
                for i, share in enumerate(shares)
            )
            parts.append(f'<polyline points="{points}" fill="none" stroke="{ink}"/>')
        parts.append("</g>")
    parts.append(
        f'<text x="{gap}" y="{high + 72}">log10 of probability; black: true pictures, '
        '<tspan fill="#d4501e">orange: results</tspan></text></svg>'
    )
    return "\n".join(parts)
