"""The two networks while they learn: one step of D, one step of G, and their state."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from pix2pix_fast.train import distributed, networks, state
from pix2pix_fast.train.losses import Objective
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]  # input (n, ci, h, w), target (n, co, h, w) in [-1, 1]
AUTOCAST = {"f32": None, "bf16": torch.bfloat16, "f16": torch.float16}

# f16 losses are scaled by 2^16 at first, by half as much after each gradient that overflows. Below
# this nothing is left to lose by scaling less: the gradients themselves are not finite.
LEAST_SCALE = 2.0**-10


class TrainingStopped(RuntimeError):
    """A loss or a gradient stopped being finite; the message names the step and its pairs."""


class Trainer:
    """Both networks, their optimisers, and one step; everything that last.pt holds."""

    def __init__(self, values: dict[str, Any], device: str | torch.device = "cpu") -> None:
        if values["precision"] not in AUTOCAST:
            raise ValueError(f"precision is {', '.join(AUTOCAST)}, got {values['precision']!r}")
        networks.refuse_size(values)
        self.values, self.device = values, torch.device(device)
        self.objective = Objective.from_values(values)
        self.step_count = 0
        self.d_moved = False  # in the step under way
        torch.manual_seed(values["seed"])
        self.g = self._place(networks.make_generator(values))
        self.d: nn.Module | None = None
        if values["gan_weight"] > 0:
            self.d = self._place(networks.make_discriminator(values))
        torch.manual_seed(values["seed"] + distributed.rank())  # dropout differs between processes
        self.opt_g = self._adam(self.g)
        self.opt_d = self._adam(self.d) if self.d is not None else None
        # torch.compile wraps only the call: state dicts keep their names
        self.run_g = torch.compile(self.g) if values["compile"] else self.g
        self.run_d = torch.compile(self.d) if values["compile"] and self.d else self.d
        f16 = values["precision"] == "f16"
        self.scaler_g = torch.amp.GradScaler(self.device.type, enabled=f16)
        self.scaler_d = torch.amp.GradScaler(self.device.type, enabled=f16)

    def _place(self, net: nn.Module) -> nn.Module:
        networks.init_weights(net)
        net = net.to(self.device)
        if self.values["channels_last"]:
            net = net.to(memory_format=torch.channels_last)
        return net.train()

    def _adam(self, net: nn.Module) -> torch.optim.Adam:
        v = self.values
        # fused: one pass over each tensor; 4 times less memory traffic than one op at a time
        return torch.optim.Adam(
            net.parameters(), lr=v["lr"], betas=(v["beta1"], v["beta2"]), fused=True
        )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = AUTOCAST[self.values["precision"]]
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype)

    def set_learning_rate(self, rate: float) -> None:
        for optimiser in (self.opt_g, self.opt_d):
            for group in optimiser.param_groups if optimiser else ():
                group["lr"] = rate

    def to_device(self, x: Tensor) -> Tensor:
        form = torch.channels_last if self.values["channels_last"] else torch.contiguous_format
        return x.to(self.device, memory_format=form, non_blocking=True)

    def step(self, batches: list[Batch]) -> dict[str, Tensor]:
        """One D step and one G step on the mean over `batches`; the parts of both losses.

        Raises TrainingStopped when a loss is not finite, before the network it belongs to moves,
        and when f16 gradients never are.
        """
        share = 1.0 / len(batches)
        batches = [(self.to_device(x), self.to_device(t)) for x, t in batches]
        total: dict[str, Tensor] = {}

        def add(parts: dict[str, Tensor]) -> None:
            for name, value in parts.items():
                total[name] = total.get(name, 0.0) + value.detach() * share

        self.d_moved = False
        fakes = []
        for x, _ in batches:
            with self.autocast():
                fakes.append(self.run_g(x))
        if self.d is not None and self.opt_d is not None:
            self.d.requires_grad_(True)
            self.opt_d.zero_grad(set_to_none=True)
            for (x, t), fake in zip(batches, fakes, strict=True):
                with self.autocast():
                    loss, parts = self.objective.d_loss(self.run_d, x, t, fake, self.d)
                add(parts)
                self._refuse_not_finite(parts)
                self.scaler_d.scale(loss * share).backward()
            distributed.average_gradients(self.d)
            self._move(self.opt_d, self.scaler_d, "D")
            self.d_moved = True
            self.d.requires_grad_(False)  # G's step needs only D's input gradient
        self.opt_g.zero_grad(set_to_none=True)
        for (x, t), fake in zip(batches, fakes, strict=True):
            with self.autocast():
                loss, parts = self.objective.g_loss(self.run_d, x, t, fake)
            add(parts)
            self._refuse_not_finite(parts)
            self.scaler_g.scale(loss * share).backward()
        distributed.average_gradients(self.g)
        self._move(self.opt_g, self.scaler_g, "G")
        self.step_count += 1
        return total

    def _move(self, optimiser: torch.optim.Adam, scaler: torch.amp.GradScaler, name: str) -> None:
        """One step of Adam; with f16 it is left out when a gradient overflowed."""
        scaler.step(optimiser)
        scaler.update()
        if scaler.is_enabled() and scaler.get_scale() < LEAST_SCALE:
            raise TrainingStopped(
                f"{name}'s gradients overflow f16 at every scale, so that it learns nothing; "
                "--set precision=bf16 or f32"
            )

    def is_finite(self) -> bool:
        """Whether every weight of both networks, and all that Adam keeps for it, is a number."""
        optimisers = [o for o in (self.opt_g, self.opt_d) if o is not None]
        weights = [p for o in optimisers for group in o.param_groups for p in group["params"]]
        kept = [t for o in optimisers for of_one in o.state.values() for t in of_one.values()]
        return all(bool(t.isfinite().all()) for t in (*weights, *kept))

    def _refuse_not_finite(self, parts: dict[str, Tensor]) -> None:
        values = {name: float(value.detach()) for name, value in parts.items()}
        if not all(math.isfinite(v) for v in values.values()):
            shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise TrainingStopped(f"a loss is not finite: {shown}")

    def state_dict(self) -> dict[str, Any]:
        return {
            "values": self.values,
            "step": self.step_count,
            "g": self.g.state_dict(),
            "d": self.d.state_dict() if self.d else None,
            "opt_g": self.opt_g.state_dict(),
            "opt_d": self.opt_d.state_dict() if self.opt_d else None,
            "scalers": [self.scaler_g.state_dict(), self.scaler_d.state_dict()],
            "random": distributed.gather(state.random_state(self.device)),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.g.load_state_dict(saved["g"])
        self.opt_g.load_state_dict(saved["opt_g"])
        if self.d is not None and self.opt_d is not None:
            self.d.load_state_dict(saved["d"])
            self.opt_d.load_state_dict(saved["opt_d"])
        self.scaler_g.load_state_dict(saved["scalers"][0])
        self.scaler_d.load_state_dict(saved["scalers"][1])
        self.step_count = saved["step"]
        if len(saved["random"]) != distributed.world():
            raise state.StateError(
                f"the run was made by {len(saved['random'])} processes, not {distributed.world()}"
            )
        state.restore_random_state(saved["random"][distributed.rank()], self.device)

    @torch.no_grad()
    def translate(self, x: Tensor) -> Tensor:
        """G on (n, ci, h, w) as the engine runs it: each image's own statistics, no dropout."""
        return networks.image_twin(self.g)(self.to_device(x)).float().cpu()
