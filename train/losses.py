"""The objective: a GAN term (three kinds, conditional or not) and L1, each with its weight.

    vanilla  D: softplus(-D(real)) + softplus(D(fake))     G: softplus(-D(fake))     (BCE on logits)
    lsgan    D: (D(real) - 1)^2 + D(fake)^2                G: (D(fake) - 1)^2
    wgangp   D: D(fake) - D(real) + penalty                G: -D(fake)

Every term is the mean over patches and images. D's sum is halved where the recipe says so
(junyanz); the penalty never is, so that beside halved terms it weighs twice.
L_G = gan_weight * GAN + l1_weight * mean|G(x) - t|.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("vanilla", "lsgan", "wgangp")


def gan_term(kind: str, logits: Tensor, real: bool) -> Tensor:
    """Scalar: how far D's `logits` (any shape) are from saying `real`, in float32 or better."""
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if kind == "vanilla":
        return F.softplus(-logits if real else logits).mean()
    if kind == "lsgan":
        return ((logits - 1.0 if real else logits) ** 2).mean()
    if kind == "wgangp":
        return -logits.mean() if real else logits.mean()
    raise ValueError(f"gan is one of {', '.join(KINDS)}, got {kind!r}")


def gradient_penalty(
    d: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor | None = None
) -> Tensor:
    """mean((|dD(m)/dm| - 1)^2) at m between real and fake, each (n, c, h, w); alpha (n, 1, 1, 1).

    The norm is over all channels of what D sees, so of the whole pair when D is conditional.
    """
    if alpha is None:
        alpha = torch.rand(real.shape[0], 1, 1, 1, device=real.device, dtype=real.dtype)
    mixed = (alpha * real + (1 - alpha) * fake).detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(d(mixed).sum(), mixed, create_graph=True)
    return ((slope.flatten(1).norm(dim=1) - 1.0) ** 2).mean()


@dataclass(frozen=True)
class Objective:
    """The weighted sum that a recipe asks for."""

    gan: str = "vanilla"
    gan_weight: float = 1.0
    l1_weight: float = 100.0
    conditional: bool = True
    halve_d: bool = True
    penalty_weight: float = 10.0

    def __post_init__(self) -> None:
        if self.gan not in KINDS:
            raise ValueError(f"gan is one of {', '.join(KINDS)}, got {self.gan!r}")
        for name in ("gan_weight", "l1_weight", "penalty_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is at least 0, got {getattr(self, name)}")
        if self.gan_weight == 0 and self.l1_weight == 0:
            raise ValueError("gan_weight and l1_weight are both 0: nothing to train")

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Objective:
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})

    def seen(self, x: Tensor, y: Tensor) -> Tensor:
        """What D reads of input x and output y: (n, ci + co, h, w), or y alone."""
        return torch.cat([x, y], 1) if self.conditional else y

    def d_loss(
        self, d: nn.Module, x: Tensor, target: Tensor, fake: Tensor, plain: nn.Module | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """D's loss and its parts; `fake` is G(x) and gets no gradient.

        plain: D itself where `d` is compiled, for the penalty: torch.compile's graphs have no
        second derivative.
        """
        fake_seen = self.seen(x, fake.detach())
        real_seen = self.seen(x, target)
        parts = {
            "d_fake": gan_term(self.gan, d(fake_seen), real=False),
            "d_real": gan_term(self.gan, d(real_seen), real=True),
        }
        loss = (parts["d_fake"] + parts["d_real"]) * (0.5 if self.halve_d else 1.0)
        if self.gan == "wgangp":
            parts["d_penalty"] = gradient_penalty(plain or d, real_seen, fake_seen)
            loss = loss + self.penalty_weight * parts["d_penalty"]
        return loss, parts

    def g_loss(
        self, d: nn.Module | None, x: Tensor, target: Tensor, fake: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """G's loss and its parts; the caller freezes D's weights."""
        parts = {"l1": (fake.float() - target if _half(fake) else fake - target).abs().mean()}
        loss = self.l1_weight * parts["l1"]
        if self.gan_weight > 0 and d is not None:
            parts["g_gan"] = gan_term(self.gan, d(self.seen(x, fake)), real=True)
            loss = loss + self.gan_weight * parts["g_gan"]
        return loss, parts


def _half(x: Tensor) -> bool:
    return x.dtype in (torch.bfloat16, torch.float16)
