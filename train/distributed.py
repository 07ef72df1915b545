"""Several processes that train one model: started by torchrun, gloo on CPUs, nccl on GPUs.

Gradients are averaged in one flat all-reduce per network instead of by DistributedDataParallel: a
GAN step runs D twice per backward and freezes it in between, which DDP's buckets and buffers do not
suit (docs/decisions/010-data-parallel.md). The result is the gradient of the joined batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def start(device: str = "auto") -> str:
    """Joins torchrun's group if there is one; the device of this process.

    "auto" is this process's GPU if there is one, "cuda" that GPU or a ValueError.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":  # PyTorch's current GPU would be the same one in every process
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device}: PyTorch {torch.__version__} sees no GPU; cpu works")
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):  # PyTorch knows others, which nothing here is tested on
        raise ValueError(f"device: expected auto, cpu or cuda, got {device!r}")
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    return device


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


class ProcessLost(RuntimeError):
    """Another process of the training is gone, for a reason that it told itself."""


@contextmanager
def _others_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        noticed = str(error).partition("\n")[0].partition(". ")[0]
        raise ProcessLost(
            f"process {rank()} cannot reach the others; the first that ended says why ({noticed})"
        ) from error


def average_gradients(net: nn.Module) -> None:
    """Replaces every gradient of `net` by the mean over all processes."""
    if world() == 1:
        return
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    with _others_there():
        dist.all_reduce(flat)
    flat /= world()
    for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


def gather(value: Any) -> list[Any]:
    """`value` of every process, in rank order."""
    values: list[Any] = [value]
    if world() > 1:
        values = [None] * world()
        with _others_there():
            dist.all_gather_object(values, value)
    return values


def mean(figures: dict[str, float]) -> dict[str, float]:
    """Each of the figures' mean over all processes."""
    everyones = gather(figures)
    return {name: sum(one[name] for one in everyones) / len(everyones) for name in figures}


def any_true(flag: bool) -> bool:
    """Whether `flag` holds in any process."""
    return any(gather(flag))
