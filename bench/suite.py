"""pytest-benchmark: the same nets, sizes and thread counts at every run, comparable by name.

    pytest bench/suite.py --benchmark-autosave
    pytest bench/suite.py --benchmark-compare        # against the last saved run of this machine

Ratios to rivals are bench/rivals.py's business; here a regression of ours shows. PyTorch eager runs
beside us as the machine's own yardstick.
"""

from __future__ import annotations

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


def test_torch_eager(benchmark: Any) -> None:
    pytest.importorskip("torch")
    run = nets.torch_runner(
        nets.unet(64), nets.picture(256), bf16=False, compiled=False, channels_last=True
    )
    benchmark.pedantic(run, rounds=10, warmup_rounds=2)
