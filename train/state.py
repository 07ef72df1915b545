"""Files of a run, written whole or not at all.

last.pt holds everything that the next step depends on; best.pt the same from the epoch with the
lowest held-out L1. Both are read by torchfile.py: reading never runs code of theirs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from pix2pix_fast import torchfile
from pix2pix_fast.errors import ModelFormatError
from pix2pix_fast.tensorfile import open_file, show

FORMAT = 1


class StateError(RuntimeError):
    """A state file cannot be written or used; the message says which and why."""


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Calls `write` on a temporary file beside `path`, flushes it to disk, renames it to `path`.

    When the disk is full the old file stays as it was, and the temporary one is removed.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError):  # torch wraps write errors in RuntimeError
            kept = f"; the earlier {path.name} is untouched" if path.exists() else ""
            raise StateError(f"cannot write {path}: {error}{kept}") from error
        raise


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors and plain values only)."""
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The reverse of `save`; StateError when the file is missing, damaged or of a newer format."""
    try:
        with open_file(path) as stream:
            state: Any = torchfile.load(stream, str(path), device)
    except FileNotFoundError:
        raise StateError(f"{path} does not exist: nothing to resume there") from None
    except ModelFormatError as error:
        why = str(error).removeprefix(f"{path}: ")
        raise StateError(f"{path} is damaged or not a training state: {why}") from None
    found = state.get("format") if isinstance(state, dict) else None
    if type(found) is not int or found != FORMAT:
        shown = found if isinstance(found, int) else show(type(found).__name__)
        raise StateError(f"{path} has format {shown}, this version reads {FORMAT}")
    for name in ("values", "g"):
        if not isinstance(state.get(name), dict):
            raise StateError(
                f"{path} is damaged or not a training state: its entry {name!r} must be a dict, "
                f"is {show(type(state.get(name)).__name__)}"
            )
    kept: dict[str, Any] = state
    return kept


def random_state(device: torch.device) -> dict[str, Any]:
    """PyTorch's generators (dropout, penalty); the data's randomness follows from the epoch.

    Of the GPUs only the process's own: the others belong to other processes, and touching them
    takes memory there.
    """
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
