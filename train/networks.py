"""The networks of pix2pix in PyTorch: what is trained, what the engine is tested against, the eager
baseline.

U-Net and encoder-decoder: e1..eN, d1..dN, every layer a 4x4 convolution with stride 2 and padding
1; ResNet-6/9: c1..c3, b1..b9, u1, u2, c4;  PatchGAN with n = 0..6: c1..c(n+2).
d1 is the innermost decoder layer; dk (k >= 2) reads [skip e(N+1-k), d(k-1)], in this order.
Plain float32 or float64 on any device. The shape after each layer stands beside it.
Read next: losses.py for what they minimise, ../csrc/model.h for the same list in the engine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from pix2pix_fast.model import Model

# "batch": statistics over the batch in training, running ones in eval mode; with weight and bias.
# "image": statistics of each image alone, always; with weight and bias. Equals "batch" at batch 1.
# "instance": the same without weight and bias (and convolutions with biases, as in junyanz's code).
NormKind = Literal["batch", "image", "instance", "none"]
NORMS: tuple[NormKind, ...] = ("batch", "image", "instance", "none")


class ImageNorm(nn.Module):
    """Normalise every image and channel by its own mean and biased variance; (n, c, h, w) to the
    same.

    A batch-norm layer in training mode gives the same on one image; in a batch it mixes the images.
    PyTorch's InstanceNorm refuses 1x1 maps: here they come out as the bias (or 0), as the method
    does. Computed in float32 at least, as BatchNorm is: the gradient of rsqrt(eps) overflows f16.
    """

    def __init__(self, channels: int, *, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        kind, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)  # (n, c, 1, 1)
        x = (x - mean) * torch.rsqrt(var + self.eps)
        if self.weight is not None and self.bias is not None:
            x = x * self.weight[:, None, None] + self.bias[:, None, None]
        return x.to(kind)


class BatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d that takes one value per channel too, where the result is the bias.

    PyTorch raises there; the paper's batch-1 runs with a norm at the 1x1 bottleneck need it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return x * 0 + self.bias[:, None, None]
        return super().forward(x)


def make_norm(kind: NormKind, channels: int, eps: float = 1e-5) -> nn.Module:
    """One norm layer of `kind` for `channels` channels."""
    if kind == "batch":
        return BatchNorm(channels, eps=eps)
    if kind == "image":
        return ImageNorm(channels, eps=eps)
    if kind == "instance":
        return ImageNorm(channels, affine=False, eps=eps)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"norm is one of {', '.join(NORMS)}, got {kind!r}")


def dropout_places(style: Literal["junyanz", "paper", "none"], depth: int) -> tuple[str, ...]:
    """Decoder layers before a dropout: d2..d(depth-4) in junyanz's code, d1..d3 in the paper's."""
    if style == "none":
        return ()
    if style == "junyanz":
        return tuple(f"d{k}" for k in range(2, depth - 3))
    if style == "paper":
        return tuple(f"d{k}" for k in range(1, min(4, depth)))
    raise ValueError(f"dropout is 'junyanz', 'paper' or 'none', got {style!r}")


def keep_mask(seed: int, frame: int, layer: int, h: int, w: int, c: int) -> np.ndarray:
    """The engine's seeded dropout restated: (c, h, w) bool, True where the element is kept (p =
    0.5).

    `layer` is the position in e1..eN, d1..dN from 0; an element's number is (y*w + x)*c + channel.
    """
    element = np.arange(h * w * c, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = np.uint64(seed & 0xFFFFFFFFFFFFFFFF) * np.uint64(1)
        z = z + np.uint64(0x9E3779B97F4A7C15) * np.uint64(frame + 1)
        z = z + np.uint64(0xD1B54A32D192ED03) * np.uint64(layer + 1)
        z = z + np.uint64(0x8CB92BA72F3D8DD7) * (element + np.uint64(1))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    keep: np.ndarray = (z >> np.uint64(63)).astype(bool)
    return keep.reshape(h, w, c).transpose(2, 0, 1)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Reflect `x` (n, c, h, w) at the right and bottom up to the next multiple; repeats when
    needed.

    The index rule is np.pad(mode="reflect"); an axis of one pixel repeats that pixel.
    """
    h, w = x.shape[2:]

    def index(size: int) -> np.ndarray:
        if size == 1:
            return np.zeros(multiple, dtype=np.int64)
        return np.pad(np.arange(size), (0, -size % multiple), mode="reflect")

    rows, columns = (torch.from_numpy(index(size)).to(x.device) for size in (h, w))
    return x[:, :, rows][:, :, :, columns]


def init_weights(
    net: nn.Module, gain: float = 0.02, generator: torch.Generator | None = None
) -> None:
    """The paper's start: convolutions N(0, gain), norm weights N(1, gain), every bias 0."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.weight.normal_(0.0, gain, generator=generator)
            elif isinstance(module, ImageNorm | BatchNorm) and module.weight is not None:
                module.weight.normal_(1.0, gain, generator=generator)
            else:
                continue
            if module.bias is not None:
                module.bias.zero_()


class UNet(nn.Module):
    """The U-Net generator, or with `skips=False` the paper's encoder-decoder.

    Maps (n, in_channels, h, w) in [-1, 1] to (n, out_channels, h, w); h and w multiples of 2^depth
    (`translate` takes any size). Layer e_k is ngf * min(2^(k-1), 8) channels wide.

    norm: see NORMS. eps: of the norms. bottleneck_norm: one on e_depth too (TensorFlow ports).
    dropout: names of the decoder layers followed by dropout of 0.5.
    biases: "last" (dN only: batch norm in junyanz's code), "all", or the names of layers with one.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        *,
        depth: int = 8,
        ngf: int = 64,
        skips: bool = True,
        norm: NormKind = "batch",
        eps: float = 1e-5,
        bottleneck_norm: bool = False,
        dropout: Collection[str] = (),
        biases: Literal["last", "all"] | Collection[str] | None = None,
        tanh: bool = True,
    ) -> None:
        super().__init__()
        if not 2 <= depth <= 9:
            raise ValueError(f"depth is 2 to 9, got {depth}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.depth, self.ngf, self.skips, self.tanh = depth, ngf, skips, tanh
        self.norm, self.eps, self.bottleneck_norm = norm, eps, bottleneck_norm
        self.dropout = tuple(dropout)
        width = [in_channels] + [ngf * min(2 ** (k - 1), 8) for k in range(1, depth + 1)]
        self.names = [f"e{k}" for k in range(1, depth + 1)] + [f"d{k}" for k in range(1, depth + 1)]
        unknown = set(self.dropout) - set(self.names)
        if unknown:
            raise ValueError(
                f"dropout names layers that do not exist: {', '.join(sorted(unknown))}"
            )
        if biases is None:
            biases = "all" if norm == "instance" else "last"  # junyanz's rule
        if biases == "last":
            biases = {f"d{depth}"}
        elif biases == "all":
            biases = set(self.names)

        def block(name: str, conv: nn.Module, co: int, normed: bool) -> nn.ModuleDict:
            parts: dict[str, nn.Module] = {"conv": conv}
            if normed and norm != "none":
                parts["norm"] = make_norm(norm, co, eps)
            if name in self.dropout:
                parts["dropout"] = nn.Dropout(0.5)
            return nn.ModuleDict(parts)

        # depth 8, ngf 64, 256x256: e1 (64, 128, 128), e2 (128, 64, 64), e3 (256, 32, 32),
        # e4 (512, 16, 16), e5 (512, 8, 8), e6 (512, 4, 4), e7 (512, 2, 2), e8 (512, 1, 1)
        for k in range(1, depth + 1):
            name, co = f"e{k}", width[k]
            conv = nn.Conv2d(width[k - 1], co, 4, 2, 1, bias=name in biases)
            self.add_module(name, block(name, conv, co, bottleneck_norm if k == depth else k > 1))
        # d1 (512, 2, 2), d2 (512, 4, 4), d3 (512, 8, 8), d4 (512, 16, 16), d5 (256, 32, 32),
        # d6 (128, 64, 64), d7 (64, 128, 128), d8 (3, 256, 256)
        for k in range(1, depth + 1):
            name, co = f"d{k}", out_channels if k == depth else width[depth - k]
            ci = width[depth + 1 - k] * (
                2 if skips and k > 1 else 1
            )  # skip channels, then decoder's
            up = nn.ConvTranspose2d(ci, co, 4, 2, 1, bias=name in biases)
            self.add_module(name, block(name, up, co, k < depth))

    def forward(
        self,
        x: Tensor,
        *,
        seed: int | None = None,
        frame: int = 0,
        record: Callable[[str, Tensor], None] | None = None,
    ) -> Tensor:
        """`seed`: the engine's counter-based dropout, not PyTorch's; `record`: see activations."""
        stack: list[Tensor] = []
        for k in range(1, self.depth + 1):
            x = self._layer(f"e{k}", F.leaky_relu(x, 0.2) if k > 1 else x, seed, frame, record)
            stack.append(x)
        stack.pop()  # the innermost map is not a skip
        for k in range(1, self.depth + 1):
            if k > 1 and self.skips:
                x = torch.cat([stack.pop(), x], 1)
            x = self._layer(f"d{k}", F.relu(x), seed, frame, record)
        return torch.tanh(x) if self.tanh else x

    def _layer(
        self,
        name: str,
        x: Tensor,
        seed: int | None,
        frame: int,
        record: Callable[[str, Tensor], None] | None,
    ) -> Tensor:
        parts: Any = self.get_submodule(name)
        x = parts["conv"](x)
        if record is not None:
            record(name, x)
        if "norm" in parts:
            x = parts["norm"](x)
        if name not in self.dropout:
            return x
        if seed is None:
            return parts["dropout"](x)
        n, c, h, w = x.shape
        layer = self.names.index(name)
        keep = np.stack([keep_mask(seed, frame + i, layer, h, w, c) for i in range(n)])
        return x * torch.from_numpy(keep).to(x) * 2

    def activations(self, x: Tensor) -> dict[str, Tensor]:
        """Raw layer outputs (convolution + bias, before the norm), (n, co, h, w), by layer name."""
        outputs: dict[str, Tensor] = {}
        self(x, record=outputs.__setitem__)
        return outputs

    def translate(self, x: Tensor, *, seed: int | None = None, frame: int = 0) -> Tensor:
        """Any h and w >= 1: reflect at right and bottom to a multiple of 2^depth, run, crop."""
        h, w = x.shape[2:]
        return self(pad_to_multiple(x, 2**self.depth), seed=seed, frame=frame)[:, :, :h, :w]

    @classmethod
    def from_model(cls, model: Model, norm: Literal["image", "running"] = "image") -> UNet:
        """The same network as `model` in float32 and eval mode, one parameter for one tensor.

        norm="image": statistics of each image; "running": the stored ones, not folded.
        """
        a = model.architecture
        kind: NormKind = "none"
        if a.norm != "none":
            kind = "batch" if norm == "running" else ("image" if a.affine else "instance")
        tensors = {name: np.asarray(model.tensors[name]) for name in model.tensors}
        net = cls(
            a.in_channels,
            a.out_channels,
            depth=a.depth,
            ngf=a.ngf,
            skips=a.skips,
            norm=kind,
            eps=a.eps,
            bottleneck_norm=a.bottleneck_norm,
            dropout=a.dropout,
            biases={
                name[:-5] for name in tensors if name.count(".") == 1 and name.endswith(".bias")
            },
            tanh=a.tanh,
        )
        net.load_tensors(tensors)
        return net.eval()

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Float32 under our file's names: <layer>.weight, .bias, .norm.{weight,bias,mean,var}."""
        return {
            _file_name(name): value.detach().float().cpu().contiguous().numpy()
            for name, value in self.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }

    def load_tensors(self, tensors: dict[str, np.ndarray]) -> None:
        """The reverse of `to_tensors`; unknown statistics are skipped, a missing tensor raises."""
        state = self.state_dict()
        for name, value in state.items():
            if name.endswith("num_batches_tracked"):
                continue
            source = tensors.get(_file_name(name))
            if source is None and name.endswith((".norm.weight", ".norm.bias")):
                continue  # running statistics without weight and bias: 1 and 0
            if source is None:
                raise ValueError(
                    f"tensor {_file_name(name)} is missing, expected {tuple(value.shape)}"
                )
            value.copy_(torch.from_numpy(np.array(source, dtype=np.float32)))


_SUFFIXES = {"running_mean": "mean", "running_var": "var"}


def _file_name(name: str) -> str:
    """`e2.conv.weight` -> `e2.weight`, `e2.norm.running_mean` -> `e2.norm.mean`."""
    layer, part, leaf = name.split(".")
    return f"{layer}.{leaf}" if part == "conv" else f"{layer}.norm.{_SUFFIXES.get(leaf, leaf)}"


class ResNet(nn.Module):
    """The ResNet generator of CycleGAN's code with `blocks` (6 or 9) residual blocks, reflection
    padding.

    Maps (n, in_channels, h, w) to (n, out_channels, h, w); h and w multiples of 4.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        *,
        ngf: int = 64,
        blocks: int = 9,
        norm: NormKind = "batch",
        eps: float = 1e-5,
        dropout: bool = False,
        tanh: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.ngf, self.blocks = (
            in_channels,
            out_channels,
            ngf,
            blocks,
        )
        self.tanh = tanh
        bias = norm == "instance"

        def layer(conv: nn.Module, co: int) -> nn.Sequential:
            return nn.Sequential(conv, make_norm(norm, co, eps))

        def block(c: int) -> nn.Sequential:
            first = layer(nn.Conv2d(c, c, 3, 1, 1, bias=bias, padding_mode="reflect"), c)
            second = layer(nn.Conv2d(c, c, 3, 1, 1, bias=bias, padding_mode="reflect"), c)
            return nn.Sequential(first, nn.ReLU(), *[nn.Dropout(0.5)] * dropout, second)

        g = ngf  # ngf 64, 256x256:
        self.c1 = layer(nn.Conv2d(in_channels, g, 7, 1, 3, bias=bias, padding_mode="reflect"), g)
        # c1 (64, 256, 256)
        self.c2 = layer(nn.Conv2d(g, g * 2, 3, 2, 1, bias=bias), g * 2)  # (128, 128, 128)
        self.c3 = layer(nn.Conv2d(g * 2, g * 4, 3, 2, 1, bias=bias), g * 4)  # (256, 64, 64)
        for k in range(1, blocks + 1):
            self.add_module(f"b{k}", block(g * 4))  # (256, 64, 64)
        self.u1 = layer(nn.ConvTranspose2d(g * 4, g * 2, 3, 2, 1, 1, bias=bias), g * 2)
        # u1 (128, 128, 128)
        self.u2 = layer(nn.ConvTranspose2d(g * 2, g, 3, 2, 1, 1, bias=bias), g)  # (64, 256, 256)
        self.c4 = nn.Conv2d(g, out_channels, 7, 1, 3, padding_mode="reflect")  # (3, 256, 256)

    def forward(self, x: Tensor) -> Tensor:
        for name in ("c1", "c2", "c3"):
            x = F.relu(self.get_submodule(name)(x))
        for k in range(1, self.blocks + 1):
            x = x + self.get_submodule(f"b{k}")(x)
        x = F.relu(self.u1(x))
        x = F.relu(self.u2(x))
        x = self.c4(x)
        return torch.tanh(x) if self.tanh else x


class PatchGAN(nn.Module):
    """The discriminator: one logit per patch. n = 0..6 gives receptive fields 1, 16, 34, 70, 142,
    286, 574.

    Reads (n, in_channels, h, w): the input's channels then the output's when conditional (the
    caller concatenates, see losses.py), the output's alone when not. n strided layers, then two of
    stride 1.
    """

    RECEPTIVE_FIELDS = (1, 16, 34, 70, 142, 286, 574)

    def __init__(
        self,
        in_channels: int = 6,
        *,
        n: int = 3,
        ndf: int = 64,
        norm: NormKind = "batch",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if not 0 <= n <= 6:
            raise ValueError(f"n is 0 to 6, got {n}")
        self.in_channels, self.n, self.ndf = in_channels, n, ndf
        bias = norm == "instance"
        width = [in_channels] + [ndf * min(2**k, 8) for k in range(max(n, 1) + 1)]
        self.layers = nn.ModuleList()
        # n 3, ndf 64, 256x256: (64, 128, 128), (128, 64, 64), (256, 32, 32), (512, 31, 31), (1, 30,
        # 30)
        for k in range(1, len(width)):
            ci, co, first = width[k - 1], width[k], k == 1
            kernel, stride, padding = (1, 1, 0) if n == 0 else (4, 2 if k <= n else 1, 1)
            conv = nn.Conv2d(ci, co, kernel, stride, padding, bias=first or bias)
            norms = [] if first else [make_norm(norm, co, eps)]
            self.layers.append(nn.Sequential(conv, *norms, nn.LeakyReLU(0.2)))
        kernel, padding = (1, 0) if n == 0 else (4, 1)
        self.last = nn.Conv2d(width[-1], 1, kernel, 1, padding, bias=n > 0 or bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.last(x)
        return out


def image_twin(net: nn.Module) -> nn.Module:
    """`net` as the engine runs it: each image's own statistics, no dropout; weights are shared."""
    with torch.no_grad():
        twin = copy.deepcopy(net, {id(p): p for p in net.parameters()})
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BatchNorm):
                norm = ImageNorm(child.num_features, eps=child.eps)
                norm.weight, norm.bias = child.weight, child.bias
                parent.add_module(name, norm)
    return twin.eval()


def refuse_size(values: dict[str, Any]) -> None:
    """ValueError when pictures of `size` x `size` do not fit a recipe's networks."""
    size, kind = values["size"], values["generator"]
    multiple = 4 if kind.startswith("resnet") else 2 ** values["depth"]
    if size % multiple:
        why = "" if kind.startswith("resnet") else f" (2^depth, depth {values['depth']})"
        raise ValueError(f"size {size}: a {kind} takes multiples of {multiple}{why}")
    if kind.startswith("resnet") and size < 8:  # its blocks reflect a quarter of it by one pixel
        raise ValueError(f"size {size}: a {kind} needs 8 or more")
    n = values["d_layers"]
    if values["gan_weight"] > 0 and n > 0 and size // 2**n < 3:  # the last two layers take 1 each
        raise ValueError(
            f"size {size}: with d_layers {n} the discriminator needs {3 * 2**n} or more"
        )


def make_generator(values: dict[str, Any]) -> nn.Module:
    """A generator from a recipe's values: generator = unet | encdec | resnet6 | resnet9."""
    kind = values["generator"]
    shared: dict[str, Any] = {"ngf": values["ngf"], "norm": values["norm"], "eps": values["eps"]}
    channels = (values["in_channels"], values["out_channels"])
    if kind in ("unet", "encdec"):
        depth = values["depth"]
        return UNet(
            *channels,
            depth=depth,
            skips=kind == "unet",
            bottleneck_norm=values["bottleneck_norm"],
            dropout=dropout_places(values["dropout"], depth),
            **shared,
        )
    if kind in ("resnet6", "resnet9"):
        return ResNet(
            *channels, blocks=int(kind[-1]), dropout=values["dropout"] != "none", **shared
        )
    raise ValueError(f"generator is unet, encdec, resnet6 or resnet9, got {kind!r}")


def make_discriminator(values: dict[str, Any]) -> PatchGAN:
    """The discriminator of a recipe's values."""
    seen = values["in_channels"] * values["conditional"] + values["out_channels"]
    return PatchGAN(
        seen, n=values["d_layers"], ndf=values["ndf"], norm=values["norm"], eps=values["eps"]
    )
