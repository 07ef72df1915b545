"""Table 1 of the paper: the losses, on Cityscapes labels to photo. L1+cGAN is the method itself.

"GAN" is the unconditional discriminator, which sees the output alone. 200 epochs at a constant
rate and dropout on d1..d3, as the paper's code.
"""

PAPER = {
    "base": "cityscapes",
    "follows": "paper",
    "dropout": "paper",
    "halve_d": False,
    "epochs": 200,
    "decay_epochs": 0,
}

RECIPES = {
    "table1_l1": {**PAPER, "gan_weight": 0.0},
    "table1_gan": {**PAPER, "l1_weight": 0.0, "conditional": False},
    "table1_cgan": {**PAPER, "l1_weight": 0.0},
    "table1_l1_gan": {**PAPER, "conditional": False},
    "table1_l1_cgan": PAPER,
}
