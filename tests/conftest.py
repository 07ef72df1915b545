"""Seeds, and the real data that lives beside the repository (tests that need it skip without)."""

from __future__ import annotations

import ctypes
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import cuda_shim
import native
import numpy as np
import pytest

SEED = int(os.environ.get("P2P_TEST_SEED", "0"))
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

# A shell starts what runs in its background with Ctrl-C ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"P2P_TEST_SEED={SEED}, shared data {'found' if SHARED.is_dir() else 'missing'}"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(SEED)
    np.random.seed(SEED)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Of PyTorch: networks as small as the tests' only lose time to a second one."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("photos")` is that folder or file of ../shared/data, or the test skips."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"../shared/data/{name} is not on this machine")
        return path

    return find


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`emulated(target)` is the one folder of native.build_emulated, with that target built."""
    folder = tmp_path_factory.mktemp("emulated_build")

    def build(target: str) -> Path:
        native.build_emulated(folder, target)
        return folder

    return build


@pytest.fixture(scope="session")
def cuda_host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA kernels over the shim of cuda_host/ (see cuda_shim.py)."""
    return cuda_shim.build(tmp_path_factory.mktemp("cuda_host"))
