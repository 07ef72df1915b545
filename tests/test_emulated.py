"""The rooms that this CPU lacks instructions for (AVX-512, its bf16, AMX), built out of AVX2's
(tests/cpp/emulated_avx512.h) and put through the tests of kernels and, with P2P_EXHAUSTIVE=1, of
networks: what another CPU would compute is known on this one. Native rooms are tested natively, by the same tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native import ROOT, build

import pix2pix_fast
from pix2pix_fast import _core

PYTEST = str(
    Path(sys.executable).parent / "pytest"
)  # `python -m` would find the source folder first
EMULATED = [room for room in ("avx512", "avx512bf16", "amx") if room not in _core.cpu()["runnable"]]
MODULES = 3 if int(os.environ.get("P2P_EXHAUSTIVE", "0")) else 1  # whole networks take minutes more


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One in which `import pix2pix_fast` finds the emulating build."""
    if not EMULATED:
        pytest.skip("this CPU runs every room")
    if "avx2" not in _core.cpu()["runnable"]:
        pytest.skip("the emulation is made of AVX2 instructions, which this CPU lacks")
    import pybind11

    folder = tmp_path_factory.mktemp("emulated")
    package = folder / "path" / "pix2pix_fast"
    shutil.copytree(
        Path(pix2pix_fast.__file__).parent, package, ignore=shutil.ignore_patterns("_core*.so")
    )
    build(
        folder / "build",
        "_core",
        "-DP2P_EMULATE=ON",
        f"-DP2P_MODULE_DIR={package}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DPYTHON_EXECUTABLE={sys.executable}",
    )
    return {**os.environ, "PYTHONPATH": str(package.parent)}


@pytest.mark.parametrize(
    "module", ["test_kernels.py", "test_layers.py", "test_network.py"][:MODULES]
)
def test_emulated_rooms(module: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [PYTEST, "-q", "-p", "no:cacheprovider", f"tests/{module}",
         "-k", " or ".join(EMULATED)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout[-4000:])
    assert done.returncode == 0, done.stderr[-2000:]
