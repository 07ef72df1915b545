"""CMP facades: 400 pairs, the photo left and the labels right."""

RECIPES = {
    "facades": {"task": "facade labels to photo", "direction": "BtoA"},
    "facades_labels": {"base": "facades", "task": "facade photo to labels", "direction": "AtoB"},
    # What two CPU cores can train in a background hour: a quarter of the width, bf16.
    "facades_small": {
        "base": "facades",
        "ngf": 16,
        "ndf": 32,
        "precision": "bf16",
        "epochs": 40,
        "decay_epochs": 20,
    },
}
