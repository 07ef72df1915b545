"""The nets that are timed, and every runtime that runs them: one function each, same weights.

A contender is a function of no arguments that translates one picture and returns float32 NCHW.
Pictures are float32 in [-1, 1] in each runtime's own layout, so nobody pays for another's border.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pix2pix_fast import _core
from pix2pix_fast.architecture import Architecture
from pix2pix_fast.model import Model

Run = Callable[[], np.ndarray]


def unet(ngf: int = 64, depth: int = 8, seed: int = 0) -> Model:
    """U-Net with the paper's start: weights N(0, 0.02), norm weights N(1, 0.02)."""
    a = Architecture(depth=depth, ngf=ngf, in_channels=3, out_channels=3)
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in a.shapes().items():
        if name.endswith("norm.weight"):
            tensors[name] = rng.normal(1, 0.02, shape).astype(np.float32)
        elif len(shape) == 4:
            tensors[name] = rng.standard_normal(shape, np.float32) * np.float32(0.02)
        elif name.endswith("norm.bias") or name == f"d{depth}.bias":
            tensors[name] = np.zeros(shape, np.float32)
    return Model(a, tensors, {"name": f"unet{2**depth}_ngf{ngf}"})


def picture(size: int, seed: int = 1) -> np.ndarray:
    """(size, size, 3) float32 in [-1, 1], smooth at several scales as pictures are."""
    rng = np.random.default_rng(seed)
    x = np.zeros((size, size, 3), np.float32)
    for cells in (4, 16, 64):
        block = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        x += np.kron(block, np.ones((size // cells, size // cells, 1), np.float32))
    return np.tanh(x).astype(np.float32)


class Ours:
    """Our engine's core; `room` forces a lower one."""

    def __init__(
        self, model: Model, x: np.ndarray, precision: str, threads: int, room: str = ""
    ) -> None:
        h, w = x.shape[:2]
        self.core = _core.Engine(
            model.layers("image"),
            model.core_tensors("image"),
            precision=precision,
            threads=threads,
            isa=room,
            size=(h, w),
        )
        self.x = x[None]
        self.y = np.empty((1, h, w, model.architecture.out_channels), np.float32)
        self.steps = self.core.plan(h, w)

    def __call__(self) -> np.ndarray:
        self.core.run(self.x, self.y, value_range=(-1.0, 1.0))
        return self.y.transpose(0, 3, 1, 2)


def torch_net(model: Model) -> Any:
    """What users of the method's PyTorch code run at test time: batch norm in training mode, whose
    statistics at batch 1 are the picture's own (and whose kernel is PyTorch's fastest here)."""
    import torch
    from pix2pix_fast.train.networks import ImageNorm, UNet

    net = copy.deepcopy(UNet.from_model(model))
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ImageNorm):
                norm = torch.nn.BatchNorm2d(
                    child.weight.numel(), eps=child.eps, track_running_stats=False
                )
                norm.weight, norm.bias = child.weight, child.bias
                parent.add_module(name, norm)
    return net.eval().requires_grad_(False)


def torch_runner(
    model: Model, x: np.ndarray, *, bf16: bool, compiled: bool, channels_last: bool
) -> Run:
    """PyTorch; compiled: inductor with frozen (constant-folded, pre-packed) weights."""
    import torch
    import torch._inductor.config as inductor

    net = torch_net(model)
    dtype = torch.bfloat16 if bf16 else torch.float32
    form = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(dtype).to(memory_format=form)
    tensor = torch.from_numpy(x.transpose(2, 0, 1)[None].copy()).to(dtype)
    tensor = tensor.to(memory_format=form)
    if compiled:
        inductor.freezing = True
        net = torch.compile(net)

    def run() -> np.ndarray:
        with torch.no_grad():
            return net(tensor).float().numpy()

    return run


@contextlib.contextmanager
def onnx_file(model: Model, fused_norm: bool) -> Iterator[Path]:
    from pix2pix_fast.onnx_export import to_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        to_onnx(model, path, any_size=False, fused_norm=fused_norm)
        yield path


def onnxruntime_runner(model: Model, x: np.ndarray, threads: int, fused_norm: bool) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    with onnx_file(model, fused_norm) as path:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    feed = {"image": x.transpose(2, 0, 1)[None].copy()}
    return lambda: session.run(None, feed)[0]


def openvino_runner(model: Model, x: np.ndarray, threads: int, bf16: bool) -> Run:
    import openvino

    core = openvino.Core()
    with onnx_file(model, fused_norm=False) as path:
        network = core.read_model(path)
        network.reshape([1, 3, *x.shape[:2]])
        compiled = core.compile_model(
            network,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            },
        )
    request = compiled.create_infer_request()
    feed = [x.transpose(2, 0, 1)[None].copy()]
    return lambda: request.infer(feed)[compiled.output(0)]


def exact(model: Model, x: np.ndarray) -> np.ndarray:
    """The same net in float64, (1, co, h, w)."""
    import torch
    from pix2pix_fast.train.networks import UNet

    net = UNet.from_model(model).double()
    with torch.no_grad():
        return net(torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float64))).numpy()
