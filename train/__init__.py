"""Training of pix2pix models: networks, losses, data, recipes, loop. Needs the extra `train`."""
