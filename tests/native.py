"""Builds of csrc/ that tests make for themselves, by the project's own CMakeLists.txt."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pix2pix_fast import _core

ROOT = Path(__file__).parents[1]
# cmake and ninja may be those of this environment, which need not be active
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
# Rooms that this CPU lacks instructions for, which a build can emulate out of AVX2's.
RUNNABLE = _core.cpu()["runnable"]
EMULATED = [room for room in ("avx512", "avx512bf16", "amx") if room not in RUNNABLE]
CAN_EMULATE = bool(EMULATED) and "avx2" in RUNNABLE


def need_tools() -> None:
    """Skips the test where a tool is missing."""
    missing = [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool, path=PATH) is None]
    if missing:
        pytest.skip(f"building csrc/ needs {' and '.join(missing)}")


def build(folder: Path, target: str, *options: str) -> None:
    """`target` in `folder`, without CUDA: that takes a minute, for what a CPU does not run. The test
    fails with what the compiler says."""
    need_tools()
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DP2P_CUDA=off", *options],
        ["cmake", "--build", str(folder), "--target", target],
    ):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": PATH}
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def build_emulated(folder: Path, target: str) -> None:
    """`target`: _core, the Python module, in folder/module, or p2p_driver in `folder`, of the same objects,
    with the rooms of AVX-512 and AMX out of AVX2 instructions."""
    pybind11 = pytest.importorskip("pybind11")
    build(
        folder,
        target,
        "-DP2P_DRIVER=ON",
        "-DP2P_EMULATE=ON",
        f"-DP2P_MODULE_DIR={folder / 'module'}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DPYTHON_EXECUTABLE={sys.executable}",
    )
