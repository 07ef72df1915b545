"""Lab colours for colorization, and edges found in photos: numpy only, both seen from data.py.

Lab: sRGB, D65 white; L in 0..100, a and b about -110..110. The network sees L/50 - 1 and (a,
b)/110.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

RGB_TO_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) sRGB in 0..1 to (..., 3) Lab, float64."""
    rgb = np.asarray(rgb, dtype=np.float64)
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    t = linear @ RGB_TO_XYZ.T / WHITE
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16.0 / 116.0)
    return np.stack(
        [
            116.0 * f[..., 1] - 16.0,
            500.0 * (f[..., 0] - f[..., 1]),
            200.0 * (f[..., 1] - f[..., 2]),
        ],
        axis=-1,
    )


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """(..., 3) Lab to (..., 3) sRGB, clipped to 0..1, float64."""
    fy = (lab[..., 0] + 16.0) / 116.0
    f = np.stack([fy + lab[..., 1] / 500.0, fy, fy - lab[..., 2] / 200.0], axis=-1)
    t = np.where(f > 0.2068966, f**3, (f - 16.0 / 116.0) / 7.787)
    linear = np.clip((t * WHITE) @ np.linalg.inv(RGB_TO_XYZ).T, 0.0, None)
    rgb = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, linear * 12.92)
    return np.clip(rgb, 0.0, 1.0)


def split(rgb: np.ndarray) -> tuple[Tensor, Tensor]:
    """(H, W, 3) uint8, uint16 or float 0..1 to L (1, H, W), ab (2, H, W): float32 about [-1, 1]."""
    top = float(np.iinfo(rgb.dtype).max) if rgb.dtype.kind == "u" else 1.0
    lab = rgb_to_lab(rgb / top).transpose(2, 0, 1).astype(np.float32)
    return torch.from_numpy(lab[:1] / 50.0 - 1.0), torch.from_numpy(lab[1:] / 110.0)


def is_lab(values: dict[str, Any]) -> bool:
    """Whether a recipe's network reads lightness and writes a and b."""
    return bool(values["data_form"] == "colorization" and values["out_channels"] == 2)


def join(lightness: Tensor, ab: Tensor) -> np.ndarray:
    """The reverse of `split`: (H, W, 3) uint8."""
    return np.rint(_rgb(lightness, ab) * 255.0).astype(np.uint8)


def to_rgb(lightness: Tensor, ab: Tensor) -> Tensor:
    """The same as (3, H, W) float32 in [-1, 1]: what a colorization is judged by."""
    rgb = torch.from_numpy(_rgb(lightness, ab)).float()
    return rgb.permute(2, 0, 1) * 2.0 - 1.0


def _rgb(lightness: Tensor, ab: Tensor) -> np.ndarray:
    lab = torch.cat([(lightness.float() + 1.0) * 50.0, ab.float() * 110.0]).permute(1, 2, 0)
    return lab_to_rgb(lab.detach().cpu().double().numpy())


def edges(rgb: np.ndarray, low: float = 0.08, high: float = 0.2) -> np.ndarray:
    """Black lines on white where the photo changes: (H, W, 3) any dtype to (H, W, 3) uint8.

    Canny's steps: blur, gradient, thin to local maxima across the edge, keep weak ones that touch
    strong ones. The paper used a learned detector (HED) for its shoes and handbags; this one needs
    no weights, and its lines are noisier.
    """
    top = float(np.iinfo(rgb.dtype).max) if rgb.dtype.kind == "u" else 1.0
    gray = (rgb / top) @ np.array([0.299, 0.587, 0.114])
    taps = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16.0
    for axis in (0, 1):
        pad = [(2, 2) if a == axis else (0, 0) for a in (0, 1)]
        wide = np.pad(gray, pad, mode="edge")
        size = gray.shape[axis]
        gray = sum(t * np.take(wide, range(i, i + size), axis) for i, t in enumerate(taps))
    wide = np.pad(gray, 1, mode="edge")
    gx = (
        (wide[:-2, 2:] - wide[:-2, :-2])
        + 2 * (wide[1:-1, 2:] - wide[1:-1, :-2])
        + (wide[2:, 2:] - wide[2:, :-2])
    )
    gy = (
        (wide[2:, :-2] - wide[:-2, :-2])
        + 2 * (wide[2:, 1:-1] - wide[:-2, 1:-1])
        + (wide[2:, 2:] - wide[:-2, 2:])
    )
    strength = np.hypot(gx, gy)
    # thin: compare with both neighbours along the gradient, rounded to four directions
    sector = np.rint(np.arctan2(gy, gx) / (np.pi / 4)).astype(int) % 4
    around = np.pad(strength, 1)
    h, w = strength.shape
    keep = np.zeros((h, w), dtype=bool)
    for k, (dy, dx) in enumerate([(0, 1), (1, 1), (1, 0), (1, -1)]):
        ahead = around[1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]
        behind = around[1 - dy : 1 - dy + h, 1 - dx : 1 - dx + w]
        keep |= (sector == k) & (strength >= ahead) & (strength > behind)
    weak, lines = keep & (strength > low), keep & (strength > high)
    for _ in range(max(h, w)):  # grow the strong lines along the weak ones
        near = np.pad(lines, 1)
        grown = weak & np.max(
            [near[y : y + h, x : x + w] for y in range(3) for x in range(3)], axis=0
        )
        if np.array_equal(grown, lines):
            break
        lines = grown | lines
    return np.repeat(np.where(lines, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
