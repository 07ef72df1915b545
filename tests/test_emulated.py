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

import pix2pix_fast
from pix2pix_fast import _core

ROOT = Path(__file__).parents[1]
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
PYTEST = str(Path(sys.executable).parent / "pytest")  # `python -m` would find the source folder first
EMULATED = [room for room in ("avx512", "avx512bf16", "amx") if room not in _core.cpu()["runnable"]]
MODULES = 3 if int(os.environ.get("P2P_EXHAUSTIVE", "0")) else 1  # whole networks take minutes more


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One in which `import pix2pix_fast` finds the emulating build."""
    if not EMULATED:
        pytest.skip("this CPU runs every room")
    if "avx2" not in _core.cpu()["runnable"]:
        pytest.skip("the emulation is made of AVX2 instructions, which this CPU lacks")
    missing = [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool, path=PATH) is None]
    if missing:
        pytest.skip(f"building the emulation needs {' and '.join(missing)}")
    import pybind11

    folder = tmp_path_factory.mktemp("emulated")
    package = folder / "path" / "pix2pix_fast"
    shutil.copytree(
        Path(pix2pix_fast.__file__).parent, package, ignore=shutil.ignore_patterns("_core*.so")
    )
    options = {
        "P2P_EMULATE": "ON",
        "P2P_CUDA": "off",
        "P2P_MODULE_DIR": str(package),
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "Python_EXECUTABLE": sys.executable,
        "PYTHON_EXECUTABLE": sys.executable,
        "CMAKE_MAKE_PROGRAM": str(shutil.which("ninja", path=PATH)),
    }
    build = str(folder / "build")
    defined = [f"-D{name}={value}" for name, value in options.items()]
    for command in (
        ["cmake", "-S", str(ROOT), "-B", build, "-G", "Ninja", *defined],
        ["cmake", "--build", build, "--target", "_core"],
    ):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": PATH}
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return {**os.environ, "PYTHONPATH": str(package.parent)}


@pytest.mark.parametrize("module", ["test_kernels.py", "test_layers.py", "test_network.py"][:MODULES])
def test_emulated_rooms(module: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [PYTEST, "-q", "-p", "no:cacheprovider", f"tests/{module}",
         "-k", " or ".join(EMULATED)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout[-4000:])
    assert done.returncode == 0, done.stderr[-2000:]
