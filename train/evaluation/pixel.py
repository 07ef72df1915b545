"""L1, PSNR and SSIM of outputs against truths, by torchmetrics, pixel values in 0..1.

These reward blur: an L1-only model wins them and looks worse. They tell a broken model from a
working one and compare runs of one recipe; how real a picture looks they do not measure.
"""

from __future__ import annotations

from collections.abc import Iterable

from pix2pix_fast.train.data import DataError
from torch import Tensor

NAMES = ("l1", "psnr", "ssim")
SMALLEST = 6  # SSIM's window of 11 pixels reflects 5 of a picture's at each border


def pixel_metrics(pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Mean over (output, truth) pairs, each (c, h, w) in [-1, 1]: l1 (0..1), psnr (dB), ssim
    (-1..1).

    Each picture counts the same; a PSNR is capped at 100 dB, so that one perfect picture is finite.
    DataError for pictures smaller than SSIM's window allows.
    """
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    sums, count = dict.fromkeys(NAMES, 0.0), 0
    for output, truth in pairs:
        y, t = ((v.detach().float().clamp(-1, 1)[None] + 1) / 2 for v in (output, truth))
        if min(y.shape[2:]) < SMALLEST:
            raise DataError(
                f"{y.shape[2]}x{y.shape[3]} (height x width), but SSIM's window needs "
                f"{SMALLEST} pixels each way"
            )
        psnr = peak_signal_noise_ratio(y, t, data_range=1.0)
        sums["l1"] += (y - t).abs().mean().item()
        sums["psnr"] += min(psnr.item(), 100.0)  # NaN stays NaN: no picture is perfect by it
        sums["ssim"] += float(structural_similarity_index_measure(y, t, data_range=1.0))
        count += 1
    if not count:
        raise ValueError("no pictures to compare")
    return {name: value / count for name, value in sums.items()}
