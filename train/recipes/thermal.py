"""Thermal to colour: 36,609 pairs of KAIST, the thermal picture left, batch 4, 10 epochs."""

RECIPES = {
    "thermal2colour": {
        "task": "thermal picture to colour photo",
        "batch": 4,
        "epochs": 10,
        "decay_epochs": 0,
    },
}
