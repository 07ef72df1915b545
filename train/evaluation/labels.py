"""Label pictures against true ones (the paper's Table 6), and the FCN score (Tables 1 to 3).

One confusion matrix over all pictures, row = true class, column = predicted:

    pixel   trace / sum
    class   mean over true classes of diagonal / row
    IoU     mean over classes of diagonal / (row + column - diagonal)

as scripts/eval_cityscapes of the original code has them, with two differences. A class that occurs
nowhere has no score; the original adds 1e-12 to every divisor, so that such a class counts as 0. And a
prediction that is none of the classes (void, or a network's channel beyond them) is counted in a last
column, wrong for its true class; the original lets it slip into the next row. Pixels whose truth is
void count nowhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pix2pix_fast.train.evaluation.features import to_unit
from torch import Tensor

from pix2pix_fast import palettes


class Palette(NamedTuple):
    """The colours of label pictures."""

    classes: dict[str, tuple[int, int, int]]
    void: tuple[tuple[int, int, int], ...] = ()  # of pixels that nobody asks about


FACADES = Palette(palettes.FACADES)

CITYSCAPES = Palette(
    palettes.CITYSCAPES,
    # Pole groups and licence plates have the colours of poles and cars: nobody can tell them apart.
    void=(
        (0, 0, 0),  # unlabelled, ego vehicle, rectification border, out of roi, static
        (111, 74, 0),  # dynamic
        (81, 0, 81),  # ground
        (250, 170, 160),  # parking
        (230, 150, 140),  # rail track
        (180, 165, 180),  # guard rail
        (150, 100, 100),  # bridge
        (150, 120, 90),  # tunnel
        (0, 0, 90),  # caravan
        (0, 0, 110),  # trailer
    ),
)

PALETTES = {"facades": FACADES, "cityscapes": CITYSCAPES}


def palette(name: str) -> Palette:
    """One of PALETTES, or a JSON file {"classes": {"road": [128, 64, 128], ...}, "void": [[0, 0, 0]]};
    ValueError for anything else."""
    if name in PALETTES:
        return PALETTES[name]
    try:
        found = json.loads(Path(name).read_text(encoding="utf-8"))
        classes = {str(key): _colour(value) for key, value in found["classes"].items()}
        void = tuple(_colour(value) for value in found.get("void", []))
    except FileNotFoundError:
        known = ", ".join(PALETTES)
        raise ValueError(f"palette {name}: neither {known} nor a JSON file that exists") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"palette {name}: {error!r}; expected "
            '{"classes": {"road": [128, 64, 128], ...}, "void": [[0, 0, 0]]}'
        ) from error
    if not classes or len({*classes.values(), *void}) < len(classes) + len(void):
        raise ValueError(f"palette {name}: needs a class, and every colour once")
    return Palette(classes, void)


def _colour(value: Any) -> tuple[int, int, int]:
    r, g, b = (int(v) for v in value)
    if not all(0 <= v <= 255 for v in (r, g, b)):
        raise ValueError(f"colour {value} is not within 0..255")
    return r, g, b


def decode(picture: np.ndarray, palette: Palette) -> np.ndarray:
    """(H, W, 3) uint8 to (H, W) int64: the class of the nearest colour in RGB (the first of equally
    near ones), len(classes) where that is a void one.

    Published label pictures are JPEGs of maps that were resized, and a network's are never exact.
    """
    pixels = picture.astype(np.int32)
    best = np.full(picture.shape[:2], np.iinfo(np.int32).max, np.int32)
    classes = np.zeros(picture.shape[:2], np.int64)
    for index, colour in enumerate((*palette.classes.values(), *palette.void)):
        distance = ((pixels - np.array(colour, np.int32)) ** 2).sum(axis=2, dtype=np.int32)
        nearer = distance < best
        best[nearer] = distance[nearer]
        classes[nearer] = min(index, len(palette.classes))
    return classes


def segment(network: torch.jit.ScriptModule, photo: np.ndarray, h: int, w: int) -> np.ndarray:
    """(H, W, 3) uint8 to (h, w) int64: the channel with the highest logit.

    The network maps (1, 3, h, w) float32 RGB in [0, 1] to logits (1, channels, h, w). The photo goes
    to the size of the labels first, bilinearly, and labels are never resized: both as the paper's
    score wants it (256x256 to 1024x2048). ValueError for logits of another shape.
    """
    x = to_unit(photo)
    if x.shape[2:] != (h, w):
        x = torch.nn.functional.interpolate(x, (h, w), mode="bilinear", align_corners=False)
    with torch.inference_mode():
        logits = network(x)
    if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[2:] != (h, w):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the segmentation network gave {shape} for {tuple(x.shape)}, expected logits "
            f"(1, classes, {h}, {w}); let it end in an interpolation to its input's size"
        )
    return logits[0].argmax(dim=0).numpy()


class Confusion:
    """Counts pixels over pictures; `counts` is (classes, classes + 1) int64, see above."""

    def __init__(self, palette: Palette) -> None:
        self.names = list(palette.classes)
        self.counts = np.zeros((len(self.names), len(self.names) + 1), np.int64)

    def add(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Both (H, W) int64 >= 0; in either, len(classes) and more is none of the classes."""
        k = len(self.names)
        asked = truth < k
        places = truth[asked] * (k + 1) + np.minimum(predicted[asked], k)
        self.counts += np.bincount(places, minlength=k * (k + 1)).reshape(k, k + 1)

    def scores(self) -> dict[str, Any]:
        """`pixel`, `class`, `iou` in 0..1; `none` the share of pixels predicted as none of the
        classes; `classes` name -> accuracy, iou (None where the class does not occur) and pixels.

        ValueError when there was no pixel to ask about.
        """
        total = self.counts.sum()
        if not total:
            raise ValueError("no pixel of the true labels has one of the palette's classes")
        right, rows = np.diag(self.counts), self.counts.sum(axis=1)
        union = rows + self.counts[:, :-1].sum(axis=0) - right
        accuracy = [int(a) / int(b) if b else None for a, b in zip(right, rows, strict=True)]
        iou = [int(a) / int(b) if b else None for a, b in zip(right, union, strict=True)]
        return {
            "pixel": float(right.sum() / total),
            "class": _mean(accuracy),
            "iou": _mean(iou),
            "none": float(self.counts[:, -1].sum() / total),
            "classes": {
                name: {"accuracy": a, "iou": i, "pixels": int(n)}
                for name, a, i, n in zip(self.names, accuracy, iou, rows, strict=True)
            },
        }


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)
