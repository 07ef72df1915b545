"""Training of pix2pix models: networks, losses, data, recipes, one loop. Needs the `train` extra."""
