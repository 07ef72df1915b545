"""The machine card that stands beside every number, and the peaks that rooflines are drawn from."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from pix2pix_fast import _core

PACKAGES = ("pix2pix_fast", "numpy", "torch", "onnxruntime", "openvino")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def commit() -> str:
    """Of the source folder, with "+" where it differs from the commit; "" outside a repository."""
    root = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return git("rev-parse", "--short", "HEAD") + changed


def card() -> dict[str, Any]:
    """Who measured: CPU, cores, room, memory, load, versions, commit, time."""
    cpu = _core.cpu()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu["name"],
        "cores": cpu["cores"],
        "isa": cpu["isa"],
        "memory_gib": round(memory / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {p: _version(p) for p in PACKAGES if _version(p)},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def floor_seconds(steps: list[dict[str, Any]], peaks: dict[str, float]) -> float:
    """The algorithm's own floor: each step's arithmetic or its weights' reading, the longer."""
    return sum(
        max(2 * s["macs"] / peaks["flops"], s["weight_bytes"] / peaks["bytes_per_second"])
        for s in steps
    )
