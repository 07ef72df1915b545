"""Table 3 of the paper: D's receptive field, with L1+cGAN. 70x70 is the method itself."""

RECIPES = {
    "table3_pixel": {"base": "table1_l1_cgan", "d_layers": 0},
    "table3_16": {"base": "table1_l1_cgan", "d_layers": 1},
    "table3_70": {"base": "table1_l1_cgan", "d_layers": 3},
    "table3_286": {"base": "table1_l1_cgan", "d_layers": 5},
}
