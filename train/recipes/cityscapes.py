"""Cityscapes: 2975 pairs, the photo left and the labels right in the published pictures."""

RECIPES = {
    "cityscapes": {"task": "street labels to photo", "direction": "BtoA"},
    "cityscapes_labels": {
        "base": "cityscapes",
        "task": "street photo to labels",
        "direction": "AtoB",
    },
}
