"""Photos with missing pixels: 14,900 of Paris StreetView, the middle left out, batch 4, 25 epochs."""

RECIPES = {
    "inpainting": {
        "task": "photo with a hole to the whole photo",
        "data_form": "inpainting",
        "batch": 4,
        "epochs": 25,
        "decay_epochs": 0,
    },
}
