"""Training of pix2pix models: networks, losses, data, recipes and one loop. Needs torch (extra `train`)."""
