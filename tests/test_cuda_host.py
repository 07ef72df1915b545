"""The CUDA kernels on a machine without a GPU: the same sources compiled by the host compiler over
cuda_host/, whole small nets against float64, and planted faults that must be caught."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pix2pix_fast.train.networks import UNet
from tiny import noise, tiny_model

from pix2pix_fast.model import Model

ROOT = Path(__file__).resolve().parents[1]
CUDA, HOST = ROOT / "csrc/cuda", ROOT / "tests/cuda_host"
DTYPES = {"f32": 0, "f16": 1, "bf16": 2}


def build(folder: Path, edit: Callable[[str], str] = lambda text: text) -> ctypes.CDLL:
    """The driver as a library; `edit` changes layer.cuh first."""
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    sources = folder / "cuda"
    shutil.copytree(CUDA, sources)
    text = (CUDA / "layer.cuh").read_text()
    (sources / "layer.cuh").write_text(edit(text))
    library = folder / "host.so"
    jobs = []
    for source in [*sorted(sources.glob("layer_*.cu")), CUDA / "network.cpp", HOST / "fibers.cpp",
                   HOST / "driver.cpp", ROOT / "csrc/model.cpp", ROOT / "csrc/arena.cpp"]:  # fmt: skip
        target = folder / (source.name + ".o")
        jobs.append((target, subprocess.Popen(
            ["g++", "-std=c++20", "-O2", "-fPIC", "-Wno-unknown-pragmas", "-x", "c++", "-c",
             f"-I{sources}", f"-I{HOST}", f"-I{CUDA}", str(source), "-o", str(target)])))  # fmt: skip
    assert all(job.wait() == 0 for _, job in jobs)
    objects = [str(target) for target, _ in jobs]
    subprocess.run(["g++", "-shared", *objects, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("cuda_host"))


def run(host: ctypes.CDLL, model: Model, x: np.ndarray, dtype: str, seed: int = 0,
        sms: int = 132) -> np.ndarray:  # fmt: skip
    """x (n, h, w, c), uint8 or float32 in [-1, 1], to the same kind. RuntimeError: what the shim saw."""
    layers = model.layers()
    tensors = dict(model.core_tensors())
    index = {layer["name"]: i for i, layer in enumerate(layers)}
    rows, pointers, keep = [], [], []
    for layer in layers:
        rows.append([layer["op"] != "conv4x4s2", layer["ci"], layer["co"], layer["norm"],
                     index.get(layer["skip"], -1), layer["tanh"], 0, 0])  # fmt: skip
        for part in ("weight", "bias", "norm.weight", "norm.bias"):
            value = tensors.get(f"{layer['name']}.{part}")
            keep.append(value)
            pointers.append(None if value is None else value.ctypes.data)
    n, h, w, _ = x.shape
    x = np.ascontiguousarray(x)
    out = np.zeros((n, h, w, layers[-1]["co"]), x.dtype)
    table = np.array(rows, np.int32)
    slopes = np.array([layer["slope"] for layer in layers], np.float32)
    eps = np.array([layer["eps"] for layer in layers], np.float32)
    error = ctypes.create_string_buffer(500)
    status = host.p2p_host_network(
        len(layers), *(ctypes.c_void_p(a.ctypes.data) for a in (table, slopes, eps)),
        (ctypes.c_void_p * len(pointers))(*pointers), DTYPES[dtype], n, h, w, x.itemsize,
        ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data), sms, seed, None, error, 500,
    )  # fmt: skip
    if status:
        raise RuntimeError(error.value.decode())
    return out


def reference(model: Model, x: np.ndarray) -> np.ndarray:
    net = UNet.from_model(model).double()
    values = x / 127.5 - 1 if x.dtype == np.uint8 else x
    with torch.no_grad():
        y = net.translate(torch.from_numpy(values.astype(np.float64)).permute(0, 3, 1, 2))
    return y.permute(0, 2, 3, 1).numpy()


def psnr(got: np.ndarray, wanted: np.ndarray) -> float:
    """dB of pictures in [-1, 1]."""
    got = got / 127.5 - 1 if got.dtype == np.uint8 else got
    return float(10 * np.log10(4 / max(np.mean((got - wanted) ** 2), 1e-30)))


# dB: gpu.md section 7, and for bf16 its 8 bits less 3
FLOORS = {"f32": 90.0, "f16": 45.0, "bf16": 27.0}
NETS = [(3, 3, 3, 8, (1, 16, 24)), (3, 1, 2, 12, (2, 13, 37)), (5, 3, 3, 16, (3, 64, 32))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("depth", "ci", "co", "ngf", "size"), NETS)
def test_a_net_equals_float64(host, dtype, depth, ci, co, ngf, size) -> None:  # type: ignore[no-untyped-def]
    model = tiny_model(depth, ci, co, ngf)
    x = noise((*size, ci), "float32") * 2 - 1
    assert psnr(run(host, model, x, dtype), reference(model, x)) > FLOORS[dtype]
    u8 = noise((*size, ci), "uint8")
    got = run(host, model, u8, dtype)
    assert psnr(got, reference(model, u8)) > min(FLOORS[dtype], 50)


@pytest.mark.parametrize("dtype", DTYPES)
def test_thread_and_block_order_do_not_change_a_bit(host, dtype) -> None:  # type: ignore[no-untyped-def]
    model, x = tiny_model(3, ngf=16), noise((2, 32, 40, 3), "uint8")
    first = run(host, model, x, dtype, seed=1)
    assert np.array_equal(first, run(host, model, x, dtype, seed=2))


FAULTS = {
    "a missing barrier": ("    sync_block();  // slice s is whole", "    // slice s is whole"),
    "a missing wait": ("    copy_wait<shape.stages - 2>();\n", ""),
    "a read outside the map": ("(uint32_t)xx < (uint32_t)a.wi) {\n        const int64_t pixel = (int64_t)(image[i]",
                               "true) {\n        const int64_t pixel = (int64_t)(10000000 + image[i]"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, tmp_path: Path) -> None:
    before, after = FAULTS[fault]

    def edit(text: str) -> str:
        assert before in text
        return text.replace(before, after)

    broken = build(tmp_path, edit)
    model, x = tiny_model(3, ngf=16), noise((1, 32, 32, 3), "float32")
    try:
        wrong = psnr(run(broken, model, x, "f16"), reference(model, x))
    except RuntimeError:
        return
    assert not wrong > 20  # NaN counts as caught


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_nvcc_compiles_without_spills(dtype: str, tmp_path: Path) -> None:
    if not shutil.which("nvcc"):
        pytest.skip("needs nvcc")
    for arch in ("sm_80", "sm_90"):
        done = subprocess.run(
            ["nvcc", "-std=c++20", "-O3", f"-arch={arch}", "-Xptxas", "-v", "--keep", "--keep-dir",
             str(tmp_path), "-c", str(CUDA / f"layer_{dtype}.cu"), "-o", str(tmp_path / "layer.o")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "registers" in done.stderr
        assert done.stderr.count("spill stores") == done.stderr.count(" 0 bytes spill stores")
        ptx = (tmp_path / f"layer_{dtype}.ptx").read_text()
        assert "mma.sync" in ptx and "ldmatrix" in ptx
        assert "cp.async.cg" in ptx


def test_the_whole_unet256_in_f16(host) -> None:  # type: ignore[no-untyped-def]
    model, x = tiny_model(8, ngf=64), noise((1, 256, 256, 3))
    assert psnr(run(host, model, x, "f16"), reference(model, x)) > FLOORS["f16"]
