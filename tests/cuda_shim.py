"""The CUDA kernels compiled by the host compiler over cuda_host/: building, whole nets, single layers.

`build()` gives a library, `run_net()` and `run_layer()` call it; both raise RuntimeError with what
the shim saw a kernel do wrong.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pix2pix_fast.model import Model

ROOT = Path(__file__).resolve().parents[1]
CUDA, HOST = ROOT / "csrc/cuda", ROOT / "tests/cuda_host"
DTYPES = {"f32": 0, "f16": 1, "bf16": 2}
KINDS = {"first": 0, "conv": 1, "deconv": 2, "last": 3}
TILES = {"64x64": 0, "64x32": 1, "16x32": 2, "64x16": 3}
H100_SHARED = 232448
COMMON = [
    CUDA / "network.cpp", HOST / "fibers.cpp", HOST / "driver.cpp", HOST / "layer.cpp",
    ROOT / "csrc/model.cpp", ROOT / "csrc/arena.cpp",
]  # fmt: skip
KERNELS = [CUDA / f"layer_{dtype}.cu" for dtype in DTYPES]


def compile_all(
    sources: list[Path], folder: Path, *flags: str, cuda: Path = CUDA
) -> dict[str, Path]:
    """Object files by the source's name, two compilers at a time; `cuda` replaces csrc/cuda."""
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    folder.mkdir(parents=True, exist_ok=True)
    objects = {source.name: folder / f"{source.name}.o" for source in sources}
    waiting, running = list(sources), []
    while waiting or running:
        while waiting and len(running) < 2:
            source = waiting.pop(0)
            running.append(subprocess.Popen(
                ["g++", "-std=c++20", "-fPIC", "-Wno-unknown-pragmas", *flags, "-x", "c++", "-c",
                 f"-I{cuda}", f"-I{HOST}", f"-I{ROOT / 'csrc'}", str(source),
                 "-o", str(objects[source.name])]))  # fmt: skip
        assert running.pop(0).wait() == 0
    return objects


def link(objects: list[Path], library: Path) -> ctypes.CDLL:
    subprocess.run(["g++", "-shared", *map(str, objects), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def edited(folder: Path, edit: Callable[[str], str], file: str = "layer.cuh") -> Path:
    """A copy of csrc/cuda whose `file` went through `edit`."""
    sources = folder / "cuda"
    shutil.copytree(CUDA, sources)
    (sources / file).write_text(edit((CUDA / file).read_text()))
    return sources


def build(folder: Path) -> ctypes.CDLL:
    return link(list(compile_all([*KERNELS, *COMMON], folder, "-O2").values()), folder / "host.so")


def _call(function: Any, *arguments: Any) -> None:
    error = ctypes.create_string_buffer(500)
    if function(*arguments, error, 500):
        raise RuntimeError(error.value.decode())


def run_net(
    host: ctypes.CDLL, model: Model, x: np.ndarray, dtype: str, seed: int = 0, sms: int = 132,
    shared: int = H100_SHARED,
) -> np.ndarray:  # fmt: skip
    """x (n, h, w, c), uint8 or float32 in [-1, 1], to the same kind. shared: bytes that a block may take;
    0: a GPU without clusters."""
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
    _call(
        host.p2p_host_network, len(layers),
        *(ctypes.c_void_p(a.ctypes.data) for a in (table, slopes, eps)),
        (ctypes.c_void_p * len(pointers))(*pointers), DTYPES[dtype], n, h, w, x.itemsize,
        ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data), sms, shared, seed, None,
    )  # fmt: skip
    return out


INTS = [
    "kind", "dtype", "tile", "n", "hi", "wi", "c0", "c1", "co", "splits", "cluster", "stage_slices", "patch",
    "picture_h", "picture_w", "pixel_bytes", "tanh", "norm", "dropout0", "dropout1", "seed",
]  # fmt: skip
POINTERS = [
    "src0", "affine0", "src1", "affine1", "picture", "weights", "bias", "gamma", "beta", "dropout",
    "out", "affine",
]  # fmt: skip


RAN = ["ran_splits", "ran_tile", "ran_cluster", "ran_stage_slices", "ran_patch"]


class Layer(ctypes.Structure):
    """As HostLayer in cuda_host/layer.cpp, where the fields are explained."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in INTS),
        *((name, ctypes.c_float) for name in ("slope", "eps")),
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int32) for name in RAN),
    ]


def run_layer(
    host: ctypes.CDLL, kind: str, dtype: str, tile: str | None, arrays: dict[str, np.ndarray],
    slope: float = 1.0, eps: float = 1e-5, **ints: int,
) -> dict[str, Any]:  # fmt: skip
    """The layer's "out" (n, ho, wo, stored) or "picture", its "affine" (n, 2, stored), and the "splits",
    "tile", "cluster", "stage_slices" and "patch" that ran. `tile` "64x64 patch" is patch.cuh's kernel.
    `arrays` and `ints` by HostLayer's names, maps float32 NHWC."""
    layer = Layer(slope=slope, eps=eps, kind=KINDS[kind], dtype=DTYPES[dtype])
    layer.tile = -1 if tile is None else TILES[tile.removesuffix(" patch")]
    layer.patch = tile is not None and tile.endswith(" patch")
    layer.dropout0 = layer.dropout1 = -1
    for name, value in ints.items():
        setattr(layer, name, value)
    stored = -(-layer.co // 8) * 8
    up = kind in ("deconv", "last")
    ho, wo = (layer.hi * 2, layer.wi * 2) if up else (layer.hi // 2, layer.wi // 2)
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    arrays["out"] = np.zeros((layer.n, ho, wo, stored), np.float32)
    arrays["affine"] = np.zeros((layer.n, 2, stored), np.float32)
    for name, value in arrays.items():
        setattr(layer, name, value.ctypes.data)
    _call(host.p2p_host_layer, ctypes.byref(layer))
    ran = {name[4:]: getattr(layer, name) for name in RAN}
    return {**arrays, **ran, "tile": list(TILES)[layer.ran_tile]}
