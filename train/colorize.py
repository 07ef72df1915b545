"""Colours for a picture, by a model of the recipe `colorization` and the engine.

    python -m pix2pix_fast.train.colorize colour.safetensors gray.jpg colour.png

Such a network reads the lightness of Lab as L/50 - 1 and writes a and b, each over 110 (junyanz's
scale too); `translate` would give these two numbers a pixel. Here they are joined with the
picture's own lightness.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from pix2pix_fast.train import colour

if TYPE_CHECKING:
    from pix2pix_fast import Engine


def colorize(engine: Engine, picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of a gray or colour `picture` (H, W, 1 or 3) uint8, uint16 or float 0..1.

    Of a colour picture only the lightness is used. Raises ValueError for a model that does not
    write two channels from one, or a picture of other channels.
    """
    ci, co = engine.info["in_channels"], engine.info["out_channels"]
    if (ci, co) != (1, 2):
        raise ValueError(
            f"a colorization model reads 1 channel and writes 2, this one {ci} and {co}"
        )
    if picture.ndim != 3 or picture.shape[2] not in (1, 3):
        raise ValueError(f"picture: expected (H, W, 1) or (H, W, 3), got {picture.shape}")
    rgb = np.broadcast_to(picture, (*picture.shape[:2], 3))
    lightness = colour.split(rgb)[0]  # (1, H, W)
    ab = engine.translate(lightness[0].numpy(), value_range=(-1.0, 1.0))  # (H, W, 2)
    return colour.join(lightness, torch.from_numpy(ab).permute(2, 0, 1))


if __name__ == "__main__":
    from pix2pix_fast.train.cli import colorize as verb

    verb()
