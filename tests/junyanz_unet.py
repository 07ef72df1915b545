"""junyanz's U-Net written down once more, so that state dicts of the tests have his genuine names.

After pytorch-CycleGAN-and-pix2pix, models/networks.py: the blocks nest outside in, each holding its
submodule, and concatenate [input, output]. Knows nothing of pix2pix_fast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

NORMS: dict[str, Callable[..., nn.Module]] = {
    "batch": functools.partial(nn.BatchNorm2d, affine=True, track_running_stats=True),
    "instance": functools.partial(nn.InstanceNorm2d, affine=False, track_running_stats=False),
    "affine": functools.partial(nn.InstanceNorm2d, affine=True, track_running_stats=False),
    "none": lambda channels: nn.Identity(),
}


class UnetSkipConnectionBlock(nn.Module):
    def __init__(
        self,
        outer_nc: int,
        inner_nc: int,
        input_nc: int | None = None,
        submodule: nn.Module | None = None,
        outermost: bool = False,
        innermost: bool = False,
        norm: str = "batch",
        use_dropout: bool = False,
        bottleneck_norm: bool = False,
        skips: bool = True,
    ) -> None:
        super().__init__()
        self.outermost, self.skips = outermost, skips
        norm_layer = NORMS[norm]
        use_bias = norm == "instance"
        input_nc = outer_nc if input_nc is None else input_nc
        both = inner_nc * 2 if skips else inner_nc
        downconv = nn.Conv2d(input_nc, inner_nc, 4, 2, 1, bias=use_bias)
        downrelu = nn.LeakyReLU(0.2, True)
        uprelu = nn.ReLU(True)
        if outermost:
            upconv = nn.ConvTranspose2d(both, outer_nc, 4, 2, 1)
            model = [downconv, submodule, uprelu, upconv, nn.Tanh()]
        elif innermost:
            upconv = nn.ConvTranspose2d(inner_nc, outer_nc, 4, 2, 1, bias=use_bias)
            extra = [norm_layer(inner_nc)] if bottleneck_norm else []
            model = [downrelu, downconv, *extra, uprelu, upconv, norm_layer(outer_nc)]
        else:
            upconv = nn.ConvTranspose2d(both, outer_nc, 4, 2, 1, bias=use_bias)
            model = [downrelu, downconv, norm_layer(inner_nc), submodule]
            model += [uprelu, upconv, norm_layer(outer_nc)]
            model += [nn.Dropout(0.5)] if use_dropout else []
        self.model = nn.Sequential(*model)  # type: ignore[arg-type]

    def forward(self, x: Any) -> Any:
        if self.outermost or not self.skips:
            return self.model(x)
        return torch.cat([x, self.model(x)], 1)


class UnetGenerator(nn.Module):
    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        num_downs: int = 8,
        ngf: int = 64,
        norm: str = "batch",
        use_dropout: bool = True,
        bottleneck_norm: bool = False,
        skips: bool = True,
    ) -> None:
        super().__init__()
        block = functools.partial(UnetSkipConnectionBlock, norm=norm, skips=skips)
        unet = block(ngf * 8, ngf * 8, innermost=True, bottleneck_norm=bottleneck_norm)
        for _ in range(num_downs - 5):
            unet = block(ngf * 8, ngf * 8, submodule=unet, use_dropout=use_dropout)
        unet = block(ngf * 4, ngf * 8, submodule=unet)
        unet = block(ngf * 2, ngf * 4, submodule=unet)
        unet = block(ngf, ngf * 2, submodule=unet)
        self.model = block(output_nc, ngf, input_nc, submodule=unet, outermost=True)

    def forward(self, x: Any) -> Any:
        return self.model(x)


def varied(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, norms and running statistics that differ everywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif value.ndim == 4:
                value.normal_(0, 0.05, generator=generator)
            elif value.is_floating_point():
                value.normal_(1.0 if name.endswith("weight") else 0.0, 0.1, generator=generator)
    return net
