"""The rooms that this CPU lacks instructions for (AVX-512, its bf16, AMX), built out of AVX2's
(tests/cpp/emulated_avx512.h) and put through the tests of kernels and, with P2P_EXHAUSTIVE=1, of
networks: what another CPU would compute is known on this one. Native rooms are tested natively, by the same tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from native import CAN_EMULATE, EMULATED, ROOT

import pix2pix_fast

PYTEST = str(
    Path(sys.executable).parent / "pytest"
)  # `python -m` would find the source folder first
MODULES = 3 if int(os.environ.get("P2P_EXHAUSTIVE", "0")) else 1  # whole networks take minutes more


@pytest.fixture(scope="module")
def environment(
    tmp_path_factory: pytest.TempPathFactory, emulated: Callable[[str], Path]
) -> dict[str, str]:
    """One in which `import pix2pix_fast` finds the emulating build."""
    if not EMULATED:
        pytest.skip("this CPU runs every room")
    if not CAN_EMULATE:
        pytest.skip("the emulation is made of AVX2 instructions, which this CPU lacks")
    package = tmp_path_factory.mktemp("emulated") / "pix2pix_fast"
    shutil.copytree(
        Path(pix2pix_fast.__file__).parent, package, ignore=shutil.ignore_patterns("_core*.so")
    )
    for module in (emulated("_core") / "module").iterdir():
        shutil.copy(module, package)
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
