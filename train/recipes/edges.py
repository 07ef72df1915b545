"""Drawings to photos: 50,000 shoes or 137,000 handbags, edges left, batch 4, 15 epochs."""

RECIPES = {
    "edges2shoes": {
        "task": "shoe edges to photo",
        "batch": 4,
        "epochs": 15,
        "decay_epochs": 0,
        "load_size": 256,  # no jitter
        "mirror": False,
    },
    "edges2handbags": {"base": "edges2shoes", "task": "handbag edges to photo"},
    # The same from a folder of photos alone: edges found by colour.py.
    "photos2drawing": {
        "base": "edges2shoes",
        "task": "drawing to photo, edges made from the photos",
        "data_form": "edges",
    },
    # 2000 mirrored pairs, shoes and handbags together, at a width for two CPU cores; so few pairs
    # want jitter and mirroring.
    "drawing_small": {
        "base": "edges2shoes",
        "task": "drawing of a shoe or handbag to photo",
        "mirrored": True,
        "load_size": 286,
        "mirror": True,
        "batch": 1,
        "ngf": 16,
        "ndf": 32,
        "precision": "bf16",
        "epochs": 10,
        "decay_epochs": 5,
    },
}
