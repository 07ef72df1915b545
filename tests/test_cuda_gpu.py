"""The CUDA engine on a GPU against the CPU engine on the same pictures. Skipped, saying why, where there
is none; bench/gpu_check.sh runs it where there is one. Only what needs real hardware: the same
sources are proved without it by test_cuda_kernels.py, test_cuda_host.py and test_cuda_backend.py.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tiny import child, environment, noise, tiny_model

from pix2pix_fast import Engine, _core, backends

MISSING = backends.available()["cuda"]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs an NVIDIA GPU: {MISSING}")

# dB between pictures in [0, 1]; bf16 has three bits less than f16, 6 dB each
FLOORS = {"f32": 50.0, "f16": 45.0, "bf16": 27.0}
# depth, ci, co, ngf, (n, h, w): odd sizes, channels that are no multiple of 8, batches, deep maps of 1x1
NETS = [
    (3, 3, 3, 8, (1, 16, 24)), (3, 1, 2, 12, (2, 13, 37)), (5, 3, 3, 16, (3, 64, 32)),
    (6, 3, 3, 8, (1, 64, 64)), (4, 4, 1, 20, (4, 33, 50)), (7, 3, 3, 8, (1, 128, 100)),
]  # fmt: skip


def has_bf16() -> bool:
    return bool(MISSING) or float(_core.cuda()["devices"][0]["capability"]) >= 8


def db(got: np.ndarray, wanted: np.ndarray) -> float:
    """Of uint8 or of floats in [0, 1]."""
    width = 255 if got.dtype == np.uint8 else 1
    error = np.mean((got.astype(np.float64) - wanted) ** 2) / width**2
    return float(-10 * np.log10(max(error, 1e-15)))


def precisions() -> list[Any]:
    return [
        pytest.param(p, marks=[pytest.mark.skipif(not has_bf16(), reason="bf16 needs sm_80")] if p == "bf16" else [])
        for p in FLOORS
    ]  # fmt: skip


@pytest.mark.parametrize("precision", precisions())
@pytest.mark.parametrize(("depth", "ci", "co", "ngf", "size"), NETS)
def test_a_net_equals_the_cpu(
    precision: str, depth: int, ci: int, co: int, ngf: int, size: tuple[int, int, int]
) -> None:
    model = tiny_model(depth, ci, co, ngf)
    with (
        Engine(model, backend="cpu", precision="f32") as cpu,
        Engine(model, backend="cuda", precision=precision) as gpu,
    ):
        for x in (noise((*size, ci)), noise((*size, ci), "float32")):
            got, wanted = gpu.translate(x), cpu.translate(x)
            assert got.shape == wanted.shape and got.dtype == wanted.dtype
            for image in range(len(got)):  # statistics are each picture's own
                assert db(got[image], wanted[image]) >= FLOORS[precision]


@pytest.mark.parametrize("precision", precisions())
def test_every_run_gives_the_same_bits(precision: str) -> None:
    """Thirty runs, two engines, and threads that run at the same time."""
    model, x = tiny_model(6, ngf=16), noise((2, 64, 96, 3))
    with Engine(model, backend="cuda", precision=precision) as gpu:
        first = gpu.translate(x)
        for _ in range(30):
            assert np.array_equal(gpu.translate(x), first)
        with ThreadPoolExecutor(4) as pool:
            assert all(np.array_equal(y, first) for y in pool.map(gpu.translate, [x] * 12))
    with Engine(model, backend="cuda", precision=precision) as again:
        assert np.array_equal(again.translate(x), first)


def test_sizes_come_and_go() -> None:
    """More sizes than an engine keeps graphs for; each time the same picture."""
    model = tiny_model(3)
    with Engine(model, backend="cuda") as gpu:
        pictures = [noise((8 * h, 40, 3), seed=h) for h in range(1, 8)]
        first = [gpu.translate(p) for p in pictures]
        for p, wanted in zip(pictures[::-1], first[::-1], strict=True):
            assert np.array_equal(gpu.translate(p), wanted)


def test_dropout_is_the_cpus() -> None:
    model, x = tiny_model(5, dropout=("d1", "d2", "d3")), noise((3, 32, 64, 3))
    with (
        Engine(model, backend="cpu", precision="f32", dropout=7) as cpu,
        Engine(model, backend="cuda", precision="f32", dropout=7) as gpu,
        Engine(model, backend="cuda", precision="f32", dropout=8) as other,
    ):
        wanted = cpu.translate(x)
        assert db(gpu.translate(x), wanted) >= FLOORS["f32"]
        assert db(other.translate(x), wanted) < 30
        frames = [x[0], x[0], x[1]]
        for ours, theirs in zip(gpu.stream(frames), cpu.stream(frames), strict=True):
            assert db(ours, theirs) >= FLOORS["f32"]


PDL = """
import hashlib
from tiny import noise, tiny_model
from pix2pix_fast import Engine
with Engine(tiny_model(6, ngf=16), backend="cuda") as gpu:
    x = noise((2, 64, 64, 3))
    print({hashlib.sha256(gpu.translate(x).tobytes()).hexdigest() for _ in range(50)})
"""


def test_programmatic_launch_gives_the_same_bits() -> None:
    """Kernels that begin before the one in front has ended (sm_90 and newer; elsewhere the same path)."""
    assert child(PDL) == child(PDL, P2P_CUDA_PDL="1")


PLAIN = """
import numpy as np
from tiny import noise, tiny_model
from pix2pix_fast import Engine
model, x = tiny_model(6, ngf=16), noise((2, 64, 96, 3))
wanted = Engine(model, backend="cpu", precision="f32").translate(x).astype(float)
with Engine(model, backend="cuda") as gpu:
    kernels = [step["kernel"] for step in gpu._core.plan(64, 96)]
    errors = ((gpu.translate(x) - wanted) ** 2).mean((1, 2, 3))
    print(sum("_stream_" in kernel for kernel in kernels), *(-10 * np.log10(errors / 255**2)))
"""


def test_deep_layers_are_right_with_clusters_and_without() -> None:
    capability = float(_core.cuda()["devices"][0]["capability"])
    for setting in ("1", "0"):
        streamed, *decibels = child(PLAIN, P2P_CUDA_CLUSTER=setting).split()
        assert (int(streamed) > 0) == (capability >= 9 and setting == "1")
        assert min(map(float, decibels)) >= FLOORS["f16"]


def test_the_trace_names_every_kernel() -> None:
    code = (
        "from tiny import *; from pix2pix_fast import Engine\n"
        "Engine(tiny_model(3), backend='cuda').translate(noise((16, 16, 3)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=60,
        env=environment(P2P_TRACE="1"), cwd="/",
    )  # fmt: skip
    for layer in ("e1", "e2", "e3", "d1", "d2", "d3"):
        assert layer in done.stderr


def torch_cuda() -> Any:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch here finds no CUDA device")
    return torch


def test_device_tensors_in_and_out() -> None:
    """torch tensors on the GPU, in the layouts and strides that callers have, on the current stream."""
    torch = torch_cuda()
    model = tiny_model(5, ngf=16)
    host = noise((2, 32, 64, 3), "float32")
    with Engine(model, backend="cuda", precision="f32") as gpu:
        wanted = gpu.translate(host)
        tensor = torch.from_numpy(host).cuda()
        nchw = tensor.permute(0, 3, 1, 2)
        for x in (nchw, nchw.contiguous(), nchw.flip(3).flip(3)):
            got = gpu.translate(x)
            assert got.device == x.device and got.shape == x.shape
            assert np.abs(got.permute(0, 2, 3, 1).cpu().numpy() - wanted).max() < 1e-5
        got = gpu.translate(tensor, layout="HWC")
        assert np.abs(got.cpu().numpy() - wanted).max() < 1e-5
        u8 = torch.from_numpy(noise((2, 32, 64, 3))).cuda().permute(0, 3, 1, 2)
        out = torch.empty_like(u8)
        assert gpu.translate(u8, out=out) is out
        theirs = gpu.translate(u8.permute(0, 2, 3, 1).cpu().numpy())
        assert np.array_equal(out.permute(0, 2, 3, 1).cpu().numpy(), theirs)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):  # what is queued before is seen, without a wait of ours
            late = torch.zeros_like(nchw)
            torch.cuda._sleep(20_000_000)
            late.copy_(nchw)
            got = gpu.translate(late)
        stream.synchronize()
        assert np.abs(got.permute(0, 2, 3, 1).cpu().numpy() - wanted).max() < 1e-5


def test_unet256_on_the_device() -> None:
    """The whole net: the floors again, and at most twice PyTorch's own error in f16 on this GPU."""
    torch = torch_cuda()
    import nets
    from pix2pix_fast.train.networks import UNet

    model = nets.unet()
    picture = nets.picture(256)
    x = torch.from_numpy(picture.transpose(2, 0, 1)[None].copy()).cuda()
    with torch.no_grad():
        exact = UNet.from_model(model).double().cuda()(x.double())
        theirs = UNet.from_model(model).half().cuda()(x.half()).double()
    error = float(torch.sqrt(torch.mean((theirs - exact) ** 2)))
    for precision in ("f16", "f32"):
        with Engine(model, backend="cuda", precision=precision) as gpu:
            got = gpu.translate(x, value_range=(-1, 1)).double()
        rms = float(torch.sqrt(torch.mean((got - exact) ** 2)))
        print(f"{precision}: rms {rms:.2e}, PyTorch f16 {error:.2e}")
        assert 20 * np.log10(2 / rms) >= FLOORS[precision]
        if precision == "f16":
            assert rms <= 2 * error
