"""pytest-benchmark: the same nets, sizes and thread counts at every run, comparable by name.

    pytest bench/suite.py --benchmark-autosave
    pytest bench/suite.py --benchmark-compare        # against the last saved run of this machine

Ratios to rivals are bench/rivals.py's business; here a regression of ours shows. PyTorch eager runs
beside us as the machine's own yardstick.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import nets
import pytest

from pix2pix_fast import BackendUnavailable, Engine, _core

CASES = [(64, 256), (32, 256), (16, 256), (64, 512), (16, 1024)]
THREADS = [n for n in (1, 2, 4, 8) if n <= _core.cpu()["cores"]]


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize(("ngf", "size"), CASES)
def test_core(benchmark: Any, ngf: int, size: int, precision: str, threads: int) -> None:
    """The network alone: float32 picture in and out."""
    try:
        run = nets.Ours(nets.unet(ngf), nets.picture(size), precision, threads)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    benchmark.extra_info["isa"] = _core.cpu()["isa"]
    benchmark.pedantic(run, rounds=30, warmup_rounds=5)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_translate(benchmark: Any, precision: str) -> None:
    """uint8 picture to uint8 picture through the public call."""
    try:
        engine = Engine(nets.unet(64), precision=precision)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    image = ((nets.picture(256) + 1) * 127.5).astype("uint8")
    out = engine.translate(image)
    benchmark.pedantic(engine.translate, (image,), {"out": out}, rounds=30, warmup_rounds=5)


def test_load(benchmark: Any, tmp_path: Any) -> None:
    """From our file to a warm engine."""
    from pix2pix_fast.model import save

    path = tmp_path / "unet.safetensors"
    save(nets.unet(64), path)
    benchmark.pedantic(lambda: Engine(path).close(), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("code", ["import numpy", "import pix2pix_fast"])
def test_start(benchmark: Any, code: str) -> None:
    """A new Python process; the package should cost NumPy and little more."""
    command = [sys.executable, "-c", code]
    benchmark.pedantic(lambda: subprocess.run(command, check=True), rounds=10, warmup_rounds=2)


def test_torch_eager(benchmark: Any) -> None:
    pytest.importorskip("torch")
    run = nets.torch_runner(
        nets.unet(64), nets.picture(256), bf16=False, compiled=False, channels_last=True
    )
    benchmark.pedantic(run, rounds=10, warmup_rounds=2)


def gpu(precision: str) -> Engine:
    """The CUDA engine of the headline net, or the reason why there is none as a skip."""
    try:
        return Engine(nets.unet(64), backend="cuda", precision=precision)
    except BackendUnavailable as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")


@pytest.mark.parametrize("precision", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_cuda_resident(benchmark: Any, batch: int, size: int, precision: str) -> None:
    """Device tensor to device tensor: one launch, one wait. The device's own time is bench/gpu.py's
    business; its shortest stands beside, in microseconds."""
    engine = gpu(precision)
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch finds no CUDA device")
    image = ((nets.picture(size) + 1) * 127.5).astype("uint8").transpose(2, 0, 1)
    x = torch.from_numpy(image.copy()).cuda().repeat(batch, 1, 1, 1)
    out = torch.empty_like(x)

    def run() -> None:
        engine.translate(x, out=out)
        torch.cuda.synchronize()

    benchmark.extra_info["isa"] = engine.info["isa"]
    benchmark.extra_info["device_us"] = min(engine._core.time_graph(batch, size, size, 50))
    benchmark.pedantic(run, rounds=50, warmup_rounds=10)


@pytest.mark.parametrize("precision", ["f16", "bf16", "f32"])
def test_cuda_translate(benchmark: Any, precision: str) -> None:
    """uint8 picture to uint8 picture through the public call: two copies, one launch, one wait."""
    engine = gpu(precision)
    image = ((nets.picture(256) + 1) * 127.5).astype("uint8")
    out = engine.translate(image)
    benchmark.pedantic(engine.translate, (image,), {"out": out}, rounds=50, warmup_rounds=10)
