"""The package with a CUDA back-end that runs on this machine: the same host files of csrc/cuda over
the runtime of cuda_host/cudart.cpp, the same kernels as fibers (cuda_host/fibers.cpp)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

import pix2pix_fast

ROOT = Path(__file__).resolve().parents[1]
HOST, CSRC = ROOT / "tests/cuda_host", ROOT / "csrc"


def build(folder: Path) -> Path:
    """The folder to put on PYTHONPATH: a copy of the installed package whose _core is made of the
    scalar room, csrc/cuda and the two files of the shim. About a minute on two cores."""
    package = folder / "pix2pix_fast"
    installed = Path(pix2pix_fast.__file__).parent
    shutil.copytree(installed, package, ignore=shutil.ignore_patterns("_core*.so", "__pycache__"))
    sources = [
        *sorted((CSRC / "cuda").glob("*.cu"), key=lambda path: "f32" in path.name),  # slowest first
        CSRC / "bindings.cpp",
        *(CSRC / "cuda").glob("*.cpp"),
        *(CSRC / "cpu/scalar").glob("*.cpp"),
        *(CSRC / "cpu").glob("*.cpp"),
        *(path for path in CSRC.glob("*.cpp") if path.name != "bindings.cpp"),
        HOST / "fibers.cpp",
        HOST / "cudart.cpp",
    ]
    flags = [
        "-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-DP2P_CUDA",
        "-Wno-unknown-pragmas", f"-I{HOST / 'runtime'}", f"-I{HOST}", f"-I{CSRC / 'cuda'}",
        f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}",
    ]  # fmt: skip

    def compiled(number: int) -> Path:
        target = folder / f"{number}.o"
        subprocess.run(
            ["g++", *flags, "-x", "c++", "-c", str(sources[number]), "-o", str(target)], check=True
        )
        return target

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compiled, range(len(sources))))
    module = package / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["g++", "-shared", *map(str, objects), "-pthread", "-o", str(module)], check=True)
    return folder


def run(folder: Path, code: str, timeout: float = 240, **extra: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python with that package runs `code`."""
    path = os.pathsep.join([str(folder), str(Path(__file__).parent)])
    return subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=timeout,
        check=False, env={**os.environ, "PYTHONPATH": path, **extra}, cwd="/",
    )  # fmt: skip
