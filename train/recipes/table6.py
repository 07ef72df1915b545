"""Table 6 of the paper: photo to labels on Cityscapes, where L1 alone wins. Its losses as table 1's."""

LABELS = {"task": "street photo to labels", "direction": "AtoB"}

RECIPES = {
    "table6_l1": {"base": "table1_l1", **LABELS},
    "table6_cgan": {"base": "table1_cgan", **LABELS},
    "table6_l1_cgan": {"base": "table1_l1_cgan", **LABELS},
}
