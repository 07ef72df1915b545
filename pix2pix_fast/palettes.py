"""The colours of label pictures, class by class: what the page draws with and the measures read."""

from __future__ import annotations

Rgb = tuple[int, int, int]

FACADES: dict[str, Rgb] = {  # the twelve classes of CMP Facades, the ones most drawn with first
    "facade": (0, 48, 255),
    "window": (0, 128, 255),
    "door": (0, 208, 255),
    "cornice": (255, 80, 0),
    "sill": (34, 255, 221),
    "balcony": (190, 255, 64),
    "blind": (255, 240, 0),
    "moulding": (115, 255, 140),
    "pillar": (255, 0, 0),
    "deco": (255, 160, 0),
    "shop": (176, 0, 0),
    "background": (0, 0, 221),
}
CITYSCAPES: dict[str, Rgb] = {  # the nineteen that its measures count, in their order
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
