"""Our networks under the names of junyanz/pytorch-CycleGAN-and-pix2pix, so that people can go back.

His U-Net is a recursion: B(k) = model.model.1 followed by (k-1) times .model.3 is the block of our
e(k+1) and d(N-k). Written are the generators that his code can build; what it cannot hold (a norm
at the bottleneck, no skips, another eps, biases beside a batch norm) raises, naming what.
"""

from __future__ import annotations

from typing import Any

import torch
from pix2pix_fast.train.networks import PatchGAN, ResNet, UNet
from torch import Tensor, nn

State = dict[str, Tensor]


def generator_state(net: nn.Module) -> State:
    """The state dict of `latest_net_G.pth` for `net`."""
    if isinstance(net, UNet):
        return _unet(net)
    if isinstance(net, ResNet):
        return _resnet(net)
    raise ValueError(f"a U-Net or ResNet generator is needed, got {type(net).__name__}")


def _unet(net: UNet) -> State:
    if not net.skips:
        raise ValueError("junyanz's code has no encoder-decoder without skips")
    if net.bottleneck_norm:
        raise ValueError(f"junyanz's U-Net has no norm on e{net.depth}, this one has")
    if not net.tanh:
        raise ValueError("junyanz's U-Net ends in tanh, this one does not")
    _refuse_eps(net)
    if net.depth < 5:
        raise ValueError(f"junyanz's U-Nets have at least 5 levels, this one has {net.depth}")
    n = net.depth
    state: State = {}

    def put(name: str, conv: str, norm: str | None) -> None:
        block: Any = net.get_submodule(name)
        has_bias, normed = net.norm == "instance" or name == f"d{n}", "norm" in block
        if not has_bias and not normed:  # in front of a per-image norm it would cancel
            _refuse_bias(name, block["conv"])
        _conv(state, conv, block["conv"], bias=has_bias)
        if norm is not None and normed:
            _norm(state, norm, block["norm"])

    def b(k: int) -> str:
        return "model.model.1" + ".model.3" * (k - 1)

    put("e1", "model.model.0", None)
    for k in range(1, n - 1):
        put(f"e{k + 1}", f"{b(k)}.model.1", f"{b(k)}.model.2")
    put(f"e{n}", f"{b(n - 1)}.model.1", None)
    put("d1", f"{b(n - 1)}.model.3", f"{b(n - 1)}.model.4")
    for k in range(n - 2, 0, -1):
        put(f"d{n - k}", f"{b(k)}.model.5", f"{b(k)}.model.6")
    put(f"d{n}", "model.model.3", None)
    return state


def _resnet(net: ResNet) -> State:
    if not net.tanh:
        raise ValueError("junyanz's ResNet ends in tanh, this one does not")
    if net.blocks not in (6, 9):
        raise ValueError(f"junyanz's ResNets have 6 or 9 blocks, this one has {net.blocks}")
    _refuse_eps(net)
    state: State = {}
    bias = net.c1[0].bias is not None

    def put(layer: Any, conv: str, norm: str) -> None:
        _conv(state, conv, layer[0], bias=bias)
        _norm(state, norm, layer[1])

    for layer, at in ((net.c1, 1), (net.c2, 4), (net.c3, 7)):
        put(layer, f"model.{at}", f"model.{at + 1}")
    for k in range(1, net.blocks + 1):
        block: Any = net.get_submodule(f"b{k}")
        first, second = block[0], block[-1]
        shift = len(block) - 3  # a dropout moves the second pair by one
        at = f"model.{9 + k}.conv_block"
        put(first, f"{at}.1", f"{at}.2")
        put(second, f"{at}.{5 + shift}", f"{at}.{6 + shift}")
    up = 10 + net.blocks
    put(net.u1, f"model.{up}", f"model.{up + 1}")
    put(net.u2, f"model.{up + 3}", f"model.{up + 4}")
    _conv(state, f"model.{up + 7}", net.c4, bias=True)
    return state


def discriminator_state(net: PatchGAN) -> State:
    """The state dict of `latest_net_D.pth` for `net`."""
    _refuse_eps(net)
    state: State = {}
    if net.n == 0:
        first, second = net.layers[0], net.layers[1]
        _conv(state, "net.0", first[0], bias=True)
        _conv(state, "net.2", second[0], bias=second[0].bias is not None)
        _norm(state, "net.3", second[1])
        _conv(state, "net.5", net.last, bias=net.last.bias is not None)
        return state
    for k, layer in enumerate(net.layers):
        at = 0 if k == 0 else 3 * k - 1
        conv = layer[0]
        _conv(state, f"model.{at}", conv, bias=conv.bias is not None)
        if k > 0:
            _norm(state, f"model.{at + 1}", layer[1])
    _conv(state, f"model.{3 * len(net.layers) - 1}", net.last, bias=True)
    return state


def _conv(state: State, name: str, conv: nn.Module, *, bias: bool) -> None:
    weight: Tensor = conv.weight
    state[f"{name}.weight"] = weight.detach().float().cpu().contiguous()
    if bias:
        value = conv.bias
        # a convolution of ours without one: zeros say the same
        state[f"{name}.bias"] = (
            value.detach().float().cpu() if isinstance(value, Tensor) else torch.zeros(_co(conv))
        )


def _co(conv: nn.Module) -> int:
    return int(conv.out_channels)


def _norm(state: State, name: str, norm: nn.Module) -> None:
    """BatchNorm2d's five entries; a per-image norm has no running ones: 0 and 1, uncounted."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if weight is None or bias is None:
        return  # no norm, or one without weight and bias
    channels = weight.numel()
    state[f"{name}.weight"] = weight.detach().float().cpu()
    state[f"{name}.bias"] = bias.detach().float().cpu()
    mean = getattr(norm, "running_mean", None)
    var = getattr(norm, "running_var", None)
    count = getattr(norm, "num_batches_tracked", None)
    state[f"{name}.running_mean"] = torch.zeros(channels) if mean is None else mean.float().cpu()
    state[f"{name}.running_var"] = torch.ones(channels) if var is None else var.float().cpu()
    state[f"{name}.num_batches_tracked"] = torch.tensor(0) if count is None else count.cpu()


def _refuse_eps(net: nn.Module) -> None:
    for module in net.modules():
        eps = getattr(module, "eps", 1e-5)
        if isinstance(eps, float) and abs(eps - 1e-5) > 1e-9:
            raise ValueError(f"junyanz's norms have eps 1e-5, this network has {eps:g}")


def _refuse_bias(name: str, conv: nn.Module) -> None:
    value = conv.bias
    if isinstance(value, Tensor) and bool((value != 0).any()):
        raise ValueError(f"junyanz's network has no bias on {name}, this one has")
