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
FLAGS = [
    "-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-DP2P_CUDA",
    "-Wno-unknown-pragmas", f"-I{HOST / 'runtime'}", f"-I{HOST}", f"-I{CSRC / 'cuda'}",
    f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}",
]  # fmt: skip


def build(folder: Path, shim: Path) -> Path:
    """The folder to put on PYTHONPATH: a copy of the installed package whose _core is made of the
    scalar room, csrc/cuda and the two files of the shim. `shim` holds what cuda_shim.build has
    compiled already, the kernels above all."""
    sources = [
        CSRC / "bindings.cpp",  # the slowest first
        *(CSRC / "cuda").glob("*.cu"),
        *(CSRC / "cuda").glob("*.cpp"),
        *(CSRC / "cpu/scalar").glob("*.cpp"),
        *(CSRC / "cpu").glob("*.cpp"),
        *(path for path in CSRC.glob("*.cpp") if path.name != "bindings.cpp"),
        HOST / "fibers.cpp",
        HOST / "cudart.cpp",
    ]
    objects = folder / "objects"
    objects.mkdir()


    def ready(source: Path) -> None:
        made = shim / f"{source.name}.o"
        if made.exists():
            shutil.copy(made, objects / _name(source))
        else:
            _compile(source, objects)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(ready, sources))
    _link(folder, sorted(objects.iterdir()))
    return folder


def with_fault(built: Path, folder: Path, file: str, before: str, after: str) -> Path:
    """The same with `before` replaced by `after` in csrc/cuda/`file`."""
    text = (CSRC / "cuda" / file).read_text()
    assert before in text
    objects = folder / "objects"
    shutil.copytree(built / "objects", objects)
    changed = folder / file
    changed.write_text(text.replace(before, after).replace('"../', f'"{CSRC}/'))
    (objects / _name(CSRC / "cuda" / file)).unlink()
    _compile(changed, objects)
    _link(folder, sorted(objects.iterdir()))
    return folder


def _name(source: Path) -> str:
    return f"{source.parent.name}_{source.name}.o"


def _compile(source: Path, objects: Path) -> None:
    command = ["g++", *FLAGS, "-x", "c++", "-c", str(source), "-o", str(objects / _name(source))]
    subprocess.run(command, check=True)


def _link(folder: Path, objects: list[Path]) -> None:
    package = folder / "pix2pix_fast"
    installed = Path(pix2pix_fast.__file__).parent
    shutil.copytree(installed, package, ignore=shutil.ignore_patterns("_core*.so", "__pycache__"))
    module = package / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["g++", "-shared", *map(str, objects), "-pthread", "-o", str(module)], check=True)


def run(built: Path, code: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python with that package runs `code`."""
    path = os.pathsep.join([str(built), str(Path(__file__).parent)])
    return subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=240,
        check=False, env={**os.environ, "PYTHONPATH": path, **extra}, cwd="/",
    )  # fmt: skip
