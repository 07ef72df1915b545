"""The core without Python: no heap allocation in a warm call, and clean under the sanitizers, which must
catch a fault that is planted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pix2pix_fast import _core

# cmake and ninja may be those of this environment, which need not be active
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
ROOT = Path(__file__).resolve().parents[1]
Driver = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = [
    pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="no sources beside the tests"),
    pytest.mark.skipif(
        not all(shutil.which(tool, path=PATH) for tool in ("cmake", "ninja", "c++")),
        reason="building the driver needs cmake, ninja and a C++ compiler",
    ),
]


def built(folder: Path, sanitize: str) -> Driver:
    """Builds the driver with a sanitizer ("" for none) and returns the function that runs it."""
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
    configure += ["-DP2P_PYTHON=OFF", "-DP2P_DRIVER=ON", f"-DP2P_SANITIZE={sanitize}"]
    if "undefined" in sanitize:
        configure += ["-DCMAKE_CXX_FLAGS=-fno-sanitize-recover=all"]  # the first finding ends the run
    for command in (configure, ["cmake", "--build", str(folder), "--target", "p2p_driver"]):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": PATH}
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [folder / "p2p_driver", *options],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={k: v for k, v in os.environ.items() if not k.startswith("P2P_")},
        )

    return run


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return built(tmp_path_factory.mktemp("plain"), "")


PRECISIONS = ["f32"] + ["bf16"] * ("avx512bf16" in _core.cpu()["runnable"])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_warm_call_allocates_nothing(plain: Driver, precision: str, threads: int) -> None:
    done = plain(
        f"precision={precision}", f"threads={threads}", "depth=6", "ngf=16", "dropout=1", "calls=5"
    )
    assert done.returncode == 0, done.stderr
    if "counts=0" in done.stdout:
        pytest.skip("allocations can be counted with glibc only")
    counts = re.findall(r"size=(\S+) allocations=(\d+)", done.stdout)
    assert len(counts) == 4 and all(count == "0" for _, count in counts), done.stdout


def test_every_room_gives_its_bits_to_every_caller(plain: Driver) -> None:
    for room in _core.cpu()["runnable"]:
        done = plain(f"isa={room}", "callers=4", "calls=20")
        assert done.returncode == 0 and f"room={room}" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("sanitize", "plant", "caught"),
    [
        ("address,undefined", "overflow", "heap-buffer-overflow"),
        ("thread", "race", "data race"),
    ],
)
def test_sanitizers_are_silent_and_would_not_be(
    sanitize: str, plant: str, caught: str, tmp_path: Path
) -> None:
    try:
        run = built(tmp_path, sanitize)
    except AssertionError as error:
        if "cannot find" in str(error) and "san" in str(error):
            pytest.skip(f"no runtime library for -fsanitize={sanitize}")
        raise
    planted = run(f"plant={plant}", "sizes=32x32")
    assert planted.returncode != 0 and caught in planted.stderr, planted.stderr[-2000:]
    for precision in PRECISIONS:
        clean = run(f"precision={precision}", "depth=4", "calls=2", "dropout=1")
        assert clean.returncode == 0 and not clean.stderr, clean.stderr[-3000:]
    if "undefined" in sanitize:
        planted = run("plant=undefined", "sizes=32x32")
        assert planted.returncode != 0 and "signed integer overflow" in planted.stderr
