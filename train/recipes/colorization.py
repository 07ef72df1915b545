"""Black and white to colour, from any photos: lightness in, a and b of Lab out; mirroring alone."""

RECIPES = {
    "colorization": {
        "task": "gray to colour (Lab)",
        "data_form": "colorization",
        "in_channels": 1,
        "out_channels": 2,
        "load_size": 256,
        "batch": 4,
        "epochs": 6,
        "decay_epochs": 0,
    },
}
