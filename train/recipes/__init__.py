"""Recipes: a module of this folder lists one or several under RECIPES, each only with what differs.

DEFAULTS is the method as junyanz's PyTorch code runs it on the paper's values ("junyanz" in
docs/training.md); a recipe names its `base`, or differs from DEFAULTS. `load` resolves, checks
every name, and returns one flat dict of plain values, which is saved as JSON in the run folder and
in each model's card.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

Values = dict[str, Any]

DEFAULTS: Values = {
    # what it is
    "task": "",  # words for the card, "labels to photo"
    "follows": "junyanz",  # a label for the card: whose values the recipe has
    # generator
    "generator": "unet",  # unet | encdec | resnet6 | resnet9
    "depth": 8,  # levels of the U-Net: 8 for 256x256, 7 for 128x128
    "ngf": 64,
    "norm": "batch",  # batch | image | instance | none (both networks)
    "eps": 1e-5,
    "bottleneck_norm": False,
    "dropout": "junyanz",  # junyanz: d2..d4 | paper: d1..d3 | none
    # discriminator
    "d_layers": 3,  # n = 0..6: receptive fields 1, 16, 34, 70, 142, 286, 574
    "ndf": 64,
    "conditional": True,  # D sees (input, output); False: the output alone
    # objective
    "gan": "vanilla",  # vanilla | lsgan | wgangp
    "gan_weight": 1.0,  # 0: no discriminator at all
    "l1_weight": 100.0,
    "penalty_weight": 10.0,  # wgangp only
    "halve_d": True,  # junyanz halves D's loss, the paper's code does not
    # data
    "data_form": "pairs",  # pairs | folders | colorization | edges | inpainting
    "direction": "AtoB",  # A is the left half, or folder A
    "mirrored": False,  # the pair files were flipped left-right as a whole
    "in_channels": 3,
    "out_channels": 3,
    "load_size": 286,  # resized to this square, then cropped at random to `size`
    "size": 256,
    "mirror": True,  # flip half of the pairs
    # optimisation
    "batch": 1,
    "accumulate": 1,  # batches per step
    "lr": 2e-4,
    "beta1": 0.5,
    "beta2": 0.999,
    "epochs": 100,  # at full rate
    "decay_epochs": 100,  # then linearly to 0
    # machine
    "precision": "f32",  # f32 | bf16 | f16 (autocast)
    "channels_last": True,
    "compile": False,
    "workers": 0,
    "seed": 0,
    "save_every": 5000,  # steps, beside the end of each epoch; 0: then only
    # reports
    "log_every": 50,  # steps
    "sample_every": 1,  # epochs; 0: never
    "evaluate_every": 5,  # epochs; 0: never, so that no best.pt is written
    "evaluate_count": 100,  # held-out pairs used for the figures while training
}

# The least that a number may be; `load` refuses less. Others may be any of their type.
LEAST: Values = {
    **dict.fromkeys(("ngf", "ndf", "in_channels", "out_channels", "size"), 1),
    **dict.fromkeys(("gan_weight", "l1_weight", "penalty_weight", "lr", "eps"), 0),
    **dict.fromkeys(("epochs", "decay_epochs", "workers", "seed"), 0),
    **dict.fromkeys(("batch", "accumulate", "evaluate_count", "log_every"), 1),
    **dict.fromkeys(("sample_every", "evaluate_every", "save_every"), 0),
}


def names() -> list[str]:
    """Every recipe's name, sorted."""
    return sorted(_all())


def load(name: str, **overrides: Any) -> Values:
    """The values of recipe `name`, `overrides` on top; ValueError for unknown names."""
    recipes = _all()
    if "follows" in overrides:
        raise ValueError(
            "follows only labels a recipe; what it stands for are the values "
            "dropout, halve_d, epochs and decay_epochs"
        )
    if name not in recipes:
        raise ValueError(f"no recipe {name!r}; there are: {', '.join(sorted(recipes))}")
    chain: list[Values] = [overrides]
    base: str | None = name
    while base is not None:
        recipe = dict(recipes[base])
        base = recipe.pop("base", None)
        chain.append(recipe)
    values = dict(DEFAULTS)
    for layer in reversed(chain):
        unknown = set(layer) - set(DEFAULTS)
        if unknown:
            raise ValueError(f"recipe {name}: no value is called {', '.join(sorted(unknown))}")
        for key, value in layer.items():
            values[key] = _checked(key, value)
    return {"recipe": name, **values}


def _checked(key: str, value: Any) -> Any:
    """`value` in the type of the default, from a string too (`--set ngf=16`)."""
    value = _typed(key, value)
    if key in LEAST and not value >= LEAST[key]:
        raise ValueError(f"{key} is at least {LEAST[key]}, got {value}")
    return value


def _typed(key: str, value: Any) -> Any:
    default = DEFAULTS[key]
    if isinstance(default, bool):
        if value in (True, "true", "True", "1", "yes"):
            return True
        if value in (False, "false", "False", "0", "no"):
            return False
        raise ValueError(f"{key} is true or false, got {value!r}")
    try:
        typed = type(default)(value)
        if isinstance(value, float) and typed != value:
            raise ValueError  # 16.7 is no number of channels
        return typed
    except (TypeError, ValueError):
        raise ValueError(f"{key} is of type {type(default).__name__}, got {value!r}") from None


def _all() -> dict[str, Values]:
    found: dict[str, Values] = {}
    for module in pkgutil.iter_modules(__path__):
        found.update(importlib.import_module(f"{__name__}.{module.name}").RECIPES)
    return found
