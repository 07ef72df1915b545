"""The network as data: what a pix2pix U-Net is, before any weights.

`layers` is the list that the C++ core, the exporters and the tests read; `shapes` says which
tensors belong to it. Read next: model.py for the weights, ../csrc/model.h for the same in the core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from .errors import ModelFormatError
from .tensorfile import Shape, show

MAX_CHANNELS = 4096


@dataclass(frozen=True)
class Architecture:
    """A pix2pix U-Net: layers e1..eN, d1..dN (d1 innermost), each 4x4, stride 2, padding 1.

    e_k has ngf * min(2^(k-1), 8) channels; dk (k >= 2) reads [e(N+1-k), d(k-1)] with skips, else
    d(k-1). Norms stand after e2..e(N-1), d1..d(N-1), and after eN with bottleneck_norm.

    depth: N, 2 to 9. ngf, in_channels, out_channels: 1 to 4096.
    skips: False is the paper's encoder-decoder.
    norm: "image": statistics of each picture; "running": stored ones are in the file as well;
        "none": no norms.
    affine: norms have weight and bias. eps: of the norms, 1e-12 to 1.
    dropout: the layers among d1..d(N-1) followed by dropout of 0.5.
    tanh: at the end, else identity.
    trained_norm: the statistics it was trained with: "image", "batch" (the same where the batch was
        1) or "none"; left empty it follows from `norm`.

    Raises ModelFormatError naming the field.
    """

    depth: int
    ngf: int
    in_channels: int
    out_channels: int
    skips: bool = True
    norm: Literal["image", "running", "none"] = "image"
    affine: bool = True
    eps: float = 1e-5
    bottleneck_norm: bool = False
    dropout: tuple[str, ...] = ()
    tanh: bool = True
    trained_norm: str = ""

    def __post_init__(self) -> None:
        _whole("depth", self.depth, 2, 9)
        for name in ("ngf", "in_channels", "out_channels"):
            _whole(name, getattr(self, name), 1, MAX_CHANNELS)
        for name in ("skips", "affine", "bottleneck_norm", "tanh"):
            if type(getattr(self, name)) is not bool:
                _refuse(name, "true or false", getattr(self, name))
        if self.norm not in ("image", "running", "none"):
            _refuse("norm", "'image', 'running' or 'none'", self.norm)
        if type(self.eps) not in (int, float) or not 1e-12 <= self.eps <= 1:
            _refuse("eps", "a number from 1e-12 to 1", self.eps)
        places = [f"d{k}" for k in range(1, self.depth)]
        if not isinstance(self.dropout, tuple) or len(set(self.dropout)) != len(self.dropout):
            _refuse("dropout", "a tuple of different layer names", self.dropout)
        for layer in self.dropout:
            if layer not in places:
                _refuse("dropout", f"layers among d1..d{self.depth - 1}", layer)
        implied = {"image": "image", "running": "batch", "none": "none"}[self.norm]
        if self.trained_norm == "":
            object.__setattr__(self, "trained_norm", implied)
        allowed = ("none",) if self.norm == "none" else ("image", "batch")
        if self.trained_norm not in allowed:
            _refuse("trained_norm", f"one of {allowed} with norm '{self.norm}'", self.trained_norm)

    @property
    def multiple(self) -> int:
        """Heights and widths are padded to a multiple of this."""
        return 1 << self.depth

    def layers(self, norm: str = "image") -> list[dict[str, Any]]:
        """The layer list of the core: name, op, ci, co, slope, norm, eps, skip, dropout, tanh.

        norm="running" describes the net after `Model.core_tensors("running")` folded the norms.
        """
        if norm not in ("image", "running"):
            raise ValueError(f"norm: expected 'image' or 'running', got {norm!r}")
        n = self.depth
        width = [self.in_channels] + [self.ngf * min(2**k, 8) for k in range(n)]
        normed = set(self.normed()) if norm == "image" else set()
        layers: list[dict[str, Any]] = []

        def add(name: str, op: str, ci: int, co: int, slope: float, skip: str = "") -> None:
            layers.append(
                {
                    "name": name,
                    "op": op,
                    "ci": ci,
                    "co": co,
                    "slope": slope,
                    "norm": name in normed,
                    "eps": float(self.eps),
                    "skip": skip,
                    "dropout": 0.5 if name in self.dropout else 0.0,
                    "tanh": self.tanh and name == f"d{n}",
                }
            )

        for k in range(1, n + 1):
            add(f"e{k}", "conv4x4s2", width[k - 1], width[k], 1.0 if k == 1 else 0.2)
        for k in range(1, n + 1):
            skip = f"e{n + 1 - k}" if self.skips and k > 1 else ""
            ci = width[n + 1 - k] * (2 if skip else 1)
            co = self.out_channels if k == n else width[n - k]
            add(f"d{k}", "deconv4x4s2", ci, co, 0.0, skip)
        return layers

    def normed(self) -> list[str]:
        """Names of the layers followed by a norm."""
        if self.norm == "none":
            return []
        last = self.depth if self.bottleneck_norm else self.depth - 1
        return [f"e{k}" for k in range(2, last + 1)] + [f"d{k}" for k in range(1, self.depth)]

    def shapes(self) -> dict[str, Shape]:
        """Every tensor that the file holds, in layer order; `<layer>.bias` may be absent there.

        Convolutions are (co, ci, 4, 4), transposed ones (ci, co, 4, 4), the rest (co,).
        """
        shapes: dict[str, Shape] = {}
        normed = set(self.normed())
        for layer in self.layers():
            name, ci, co = layer["name"], layer["ci"], layer["co"]
            conv = layer["op"] == "conv4x4s2"
            shapes[f"{name}.weight"] = (co, ci, 4, 4) if conv else (ci, co, 4, 4)
            shapes[f"{name}.bias"] = (co,)
            if name in normed:
                parts = ["weight", "bias"] if self.affine else []
                parts += ["mean", "var"] if self.norm == "running" else []
                shapes |= {f"{name}.norm.{part}": (co,) for part in parts}
        return shapes


def _refuse(name: str, expected: str, got: object) -> NoReturn:
    raise ModelFormatError(f"architecture: {name} must be {expected}, got {show(got)}")


def _whole(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        _refuse(name, f"a whole number from {low} to {high}", value)
