"""Table 2 of the paper: encoder-decoder against U-Net, each with L1 and with L1+cGAN, batch 10."""

RECIPES = {
    "table2_encdec_l1": {"base": "table1_l1", "generator": "encdec", "batch": 10},
    "table2_encdec_l1_cgan": {"base": "table1_l1_cgan", "generator": "encdec", "batch": 10},
    "table2_unet_l1": {"base": "table1_l1", "batch": 10},
    "table2_unet_l1_cgan": {"base": "table1_l1_cgan", "batch": 10},
}
