"""From a run to a model: our file for the engine, or junyanz's .pth for his code.

    model = to_model("runs/facades")                      # also a Trainer, UNet, last.pt or best.pt
    to_file("runs/facades", "facades.safetensors", dtype="f16")
    to_junyanz("runs/facades", "latest_net_G.pth")        # also one of our model files

`to_file` runs the written file through the engine and through PyTorch and compares the pictures
before it returns. The card tells what was trained, on what, how long, and how well.
"""

from __future__ import annotations

import functools
import logging
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pix2pix_fast.train import junyanz, networks, state
from pix2pix_fast.train.networks import UNet
from pix2pix_fast.train.trainer import Trainer
from torch import nn

from pix2pix_fast import torchfile
from pix2pix_fast.errors import P2PError
from pix2pix_fast.model import Architecture, Model, load, save

LOG = logging.getLogger("pix2pix_fast.train")
Source = str | Path | Trainer | nn.Module | Model
Which = Literal["last", "best"]
CHECK_SIZE = 256  # the engine and PyTorch are compared on a picture of this height and width


class ExportError(P2PError, RuntimeError):
    """The written model does not compute what the trained one does."""


def to_model(source: Source, *, which: Which = "last", card: dict[str, Any] | None = None) -> Model:
    """The generator of a run folder, state file, Trainer or network as a Model with its card.

    A network not of this package is read as `checkpoints.read` would read its state dict.

    which: the state of a run folder. card: entries added to what the run knows about itself.
    Raises ValueError for a generator that is no U-Net or encoder-decoder.
    """
    if isinstance(source, Model):
        return Model(source.architecture, source.tensors, {**source.card, **(card or {})}, "")
    net, about = _generator(source, which)
    if not isinstance(net, UNet) and not about and not isinstance(net, networks.ResNet):
        return _foreign(net, card)
    if not isinstance(net, UNet):
        raise ValueError(
            f"the engine runs U-Nets; this generator is a {type(net).__name__}, which PyTorch and "
            "junyanz's code run (export --format junyanz)"
        )
    tensors = net.to_tensors()
    if net.norm == "instance":  # the norm cancels these biases
        normed = _normed(net)
        tensors = {
            n: v
            for n, v in tensors.items()
            if n.partition(".")[0] not in normed or not n.endswith(".bias")
        }
    architecture = Architecture(
        depth=net.depth,
        ngf=net.ngf,
        in_channels=net.in_channels,
        out_channels=net.out_channels,
        skips=net.skips,
        norm={"batch": "running", "none": "none"}.get(net.norm, "image"),
        affine=net.norm in ("batch", "image", "none"),
        eps=net.eps,
        bottleneck_norm=net.bottleneck_norm,
        dropout=net.dropout,
        tanh=net.tanh,
        trained_norm=_trained_norm(net, about),
    )
    model = Model(architecture, tensors, {**_card(about), **(card or {})}, "")
    model.check()
    return model


def to_file(
    source: Source,
    path: str | Path,
    *,
    dtype: Literal["f32", "f16", "bf16"] = "f32",
    which: Which = "last",
    card: dict[str, Any] | None = None,
) -> Model:
    """Writes our file, compares the engine's picture with PyTorch's, and returns the model as read
    back.

    Raises ExportError when they differ by more than one 8-bit level anywhere or at all in more than
    a thousandth of the values; a file that was there before stays then.
    """
    path = Path(path)
    beside = path.with_name(path.name + ".part")
    try:
        save(to_model(source, which=which, card=card), beside, dtype=dtype)
        model = load(beside)
        compare(model)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return model


def compare(model: Model) -> float:
    """Share of 8-bit values in which engine and PyTorch agree on a picture; ExportError if few."""
    from pix2pix_fast.engine import Engine

    a = model.architecture
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (8, 8, a.in_channels), dtype=np.uint8)
    picture = blocks.repeat(CHECK_SIZE // 8, axis=0).repeat(CHECK_SIZE // 8, axis=1)
    with Engine(model) as engine:
        found = np.asarray(engine.translate(picture)).astype(int).reshape(*picture.shape[:2], -1)
    x = torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1.0)[None]
    with torch.no_grad():
        y = UNet.from_model(model).translate(x)[0]
    expected = ((y.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(int)
    difference = np.abs(found - expected)
    equal = float((difference == 0).mean())
    if difference.max() > 1 or equal < 0.999:
        raise ExportError(
            f"the engine and PyTorch disagree: {equal:.4%} of the values are equal, "
            f"the largest difference is {difference.max()} levels"
        )
    return equal


def to_junyanz(
    source: Source, path: str | Path, *, which: Which = "last", overwrite: bool = True
) -> list[Path]:
    """Writes `source` as junyanz's `latest_net_G.pth`; from a run, D goes beside it as
    `latest_net_D.pth` (`NAME_D.pth` for any other NAME) if it is conditional, since his pix2pix
    knows no other. The paths written.

    Raises ValueError naming what his code cannot hold, and without `overwrite` FileExistsError,
    both before anything is written.
    """
    path = Path(path)
    net = UNet.from_model(source) if isinstance(source, Model) else _generator(source, which)[0]
    written = {path: junyanz.generator_state(net)}
    d = _discriminator(source, which)
    if d is not None and d.in_channels == net.out_channels:
        LOG.warning("D is left out: it sees the output alone, and his pix2pix loads conditional ones")
    elif d is not None:
        other = path.with_name(path.stem.removesuffix("_G") + "_D" + path.suffix)
        written[other] = junyanz.discriminator_state(d)
    for target in written:
        if target.exists() and not overwrite:
            raise FileExistsError(f"{target} exists; --overwrite replaces it")
    for target, weights in written.items():
        state.write_atomically(target, functools.partial(torch.save, weights))
    return list(written)


def _foreign(net: nn.Module, card: dict[str, Any] | None) -> Model:
    """Somebody else's module, junyanz's UnetGenerator: read as its checkpoint would be."""
    from pix2pix_fast import checkpoints

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{type(net).__name__}.pth"
        torch.save(net.state_dict(), path)
        return to_model(checkpoints.read(path), card=card)


def _generator(source: Source, which: Which) -> tuple[nn.Module, dict[str, Any]]:
    """The generator and what is known about its training."""
    if isinstance(source, Trainer):
        return source.g, {"values": source.values, "step": source.step_count}
    if isinstance(source, nn.Module):
        return source, {}
    if isinstance(source, Model):
        return UNet.from_model(source), {}
    saved = _read(Path(source), which)
    with torch.device("meta"):  # without its memory: the values may ask for any width
        shapes = networks.make_generator(saved["values"]).state_dict()
    for name in sorted(shapes.keys() | saved["g"].keys(), key=str):
        tensor, expected = saved["g"].get(name), shapes.get(name)
        fits = isinstance(tensor, torch.Tensor) and expected is not None
        if not fits or tensor.shape != expected.shape or not torchfile.is_whole(tensor):
            raise state.StateError(
                f"{source}: the tensor {name!r} is not that of a generator with the state's values"
            )
    net = networks.make_generator(saved["values"])
    net.load_state_dict(saved["g"])
    return net, saved


def _discriminator(source: Source, which: Which) -> networks.PatchGAN | None:
    if isinstance(source, Trainer):
        return source.d if isinstance(source.d, networks.PatchGAN) else None
    if isinstance(source, nn.Module | Model):
        return None
    saved = _read(Path(source), which)
    if saved["d"] is None:
        return None
    net = networks.make_discriminator(saved["values"])
    net.load_state_dict(saved["d"])
    return net


def _read(path: Path, which: Which) -> dict[str, Any]:
    if path.is_dir() and which == "best" and not (path / "best.pt").exists():
        raise state.StateError(
            f"{path} has no best.pt: it is written when DATA holds val/ or test/ and evaluate_every "
            "is not 0; --which last takes the last state"
        )
    return state.load(path / f"{which}.pt" if path.is_dir() else path)


def _normed(net: UNet) -> set[str]:
    return {name for name in net.names if "norm" in net.get_submodule(name)}


def _trained_norm(net: UNet, about: dict[str, Any]) -> str:
    """Batch statistics of a batch of one are the image's own."""
    if net.norm == "none":
        return "none"
    batch = about.get("values", {}).get("batch", 0)
    return "batch" if net.norm == "batch" and batch != 1 else "image"


def _card(about: dict[str, Any]) -> dict[str, Any]:
    """What a run knows about itself; plain JSON."""
    values = about.get("values")
    if not values:
        return {}
    history = about.get("history", {})
    origin = history.get("origin", {})
    # a command names paths of its machine: the card keeps the words, not the places
    command = [Path(word).name if "/" in word else word for word in origin.get("command", [])]
    return {
        "name": values["recipe"],
        "task": values["task"],
        "direction": values["direction"],
        "size": [values["size"], values["size"]],
        "value_range": [-1, 1],
        "dropout_places": "recorded",
        "training": {
            "values": values,
            "steps": about.get("step", 0),
            "pairs": origin.get("pairs", 0),
            "hours": round(history.get("seconds", 0.0) / 3600, 2),
            "command": " ".join(command),
            "versions": origin.get("versions", {}),
            "device": origin.get("device", ""),
            "threads": origin.get("threads", 0),
            "processes": origin.get("processes", 1),
            "data_digest": origin.get("data_digest", about.get("data_digest", "")),
            **{key: history[key] for key in ("data_changes",) if key in history},
        },
        "metrics": history.get("metrics", {}),
    }


if __name__ == "__main__":
    from pix2pix_fast.train.cli import export

    export()
