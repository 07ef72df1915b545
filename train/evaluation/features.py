"""Distances that a trained network measures: FID, KID and LPIPS. The user brings the network.

Nothing is downloaded: a network is a TorchScript file, which runs without its Python code. torchmetrics'
own are not used (its LPIPS fetches weights and takes no file, its Inception needs torch-fidelity), only
its arithmetic. Figures of different networks, and FIDs of different numbers of pictures, do not compare.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAPS = {  # what a network of the user's maps to what, by what it is for
    "features": "a picture (1, 3, H, W) in [0, 1] to features (1, D)",
    "lpips": "two pictures (1, 3, H, W) in [-1, 1] to one number",
    "fcn": "a photo (1, 3, H, W) in [0, 1] to logits (1, classes, H, W)",
}


class AsTheyAre(torch.nn.Identity):
    """The features are there already: torchmetrics takes them for pictures."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def load(path: Path | str, use: str) -> torch.jit.ScriptModule:
    """A TorchScript file for one of MAPS, on the CPU, in evaluation mode; ValueError where it is none.

    It is code: load only files that you trust.
    """
    try:
        network: torch.jit.ScriptModule = torch.jit.load(str(path), map_location="cpu").eval()
        return network
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"{path}: not a TorchScript file; give a network that maps {MAPS[use]}, "
            "saved by torch.jit.trace(network.eval(), example).save(FILE)"
        ) from error


def to_unit(picture: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None].float() / 255


def extract(network: torch.jit.ScriptModule, picture: np.ndarray) -> Tensor:
    """(D,) float32 features of (H, W, 3) uint8; the network maps (1, 3, H, W) in [0, 1] to (1, D)."""
    with torch.inference_mode():
        features = network(to_unit(picture))
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 1:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"the feature network gave {shape} for one picture, expected (1, D)")
    return features[0].float()


def distances(results: Tensor, truths: Tensor) -> dict[str, Any]:
    """`fid` and `kid` of features (N, D), N >= 2, with N and D; by torchmetrics.

    KID is of all pictures up to 1000, of more the mean over 100 subsets of 1000, always the same.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    n, d = results.shape
    if n < 2:
        raise ValueError(f"FID and KID compare sets of pictures: at least 2 are needed, got {n}")
    fid = FrechetInceptionDistance(feature=AsTheyAre(d), normalize=True)
    kid = KernelInceptionDistance(
        feature=AsTheyAre(d),
        normalize=True,
        subsets=100 if n > 1000 else 1,
        subset_size=min(n, 1000),
    )
    for metric in (fid, kid):
        metric.update(truths, real=True)
        metric.update(results, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean, _ = kid.compute()
    return {"fid": float(fid.compute()), "kid": float(mean), "pictures": n, "features": d}


def perceptual(network: torch.jit.ScriptModule, result: np.ndarray, truth: np.ndarray) -> float:
    """LPIPS of one pair of (H, W, 3) uint8: the network maps two pictures (1, 3, H, W) in [-1, 1],
    the range of the published one, to a single number."""
    with torch.inference_mode():
        distance = network(to_unit(result) * 2 - 1, to_unit(truth) * 2 - 1)
    if not isinstance(distance, Tensor) or distance.numel() != 1:
        shape = tuple(distance.shape) if isinstance(distance, Tensor) else type(distance).__name__
        raise ValueError(f"the LPIPS network gave {shape} for one pair, expected one number")
    return float(distance)
