"""The TensorRT network: evaluated call by call against float64, built by the real library where that is
installed, and the cache of engines. Execution needs a GPU and has not been tested."""
# ruff: noqa: E402  (torch may be missing: the imports come after the skip)

from __future__ import annotations

import ctypes
import importlib
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F
from model_files import random_model
from pix2pix_fast.train.networks import UNet

from pix2pix_fast import BackendUnavailable, Engine, tensorrt
from pix2pix_fast.architecture import Architecture
from pix2pix_fast.tensorrt import Form, Gpu, Network, Profile

try:
    rtx: Any = importlib.import_module("tensorrt_rtx")
except ImportError:
    rtx = None
needs_rtx = pytest.mark.skipif(rtx is None, reason="tensorrt_rtx is not installed")

BASE = Architecture(depth=5, ngf=4, in_channels=3, out_channels=3)
NETS = {
    "depth 5": BASE,
    "depth 8": replace(BASE, depth=8),
    "no skips": replace(BASE, skips=False),
    "no norm": replace(BASE, norm="none", trained_norm=""),
    "instance norm": replace(BASE, affine=False),
    "norm at the bottleneck": replace(BASE, bottleneck_norm=True, eps=1e-3),
    "identity, 1 to 2 channels": replace(BASE, tanh=False, in_channels=1, out_channels=2),
    "stored statistics": replace(BASE, norm="running", trained_norm=""),
}


# A library that computes at once ------------------------------------------------------------------


class Names:
    """An enum that has every name: `ActivationType.RELU` is "RELU"."""

    def __getattr__(self, name: str) -> str:
        return name


class Tensor:
    def __init__(self, value: Any) -> None:
        self.value, self.name = value, ""


class Layer:
    """Attributes are set after the call, so the value is computed when the output is asked for."""

    def __init__(self, compute: Any, **defaults: Any) -> None:
        self.compute, self.name, self.inputs = compute, "", {}
        self.__dict__.update(defaults)

    def set_input(self, index: int, tensor: Tensor) -> None:
        self.inputs[index] = tensor

    def get_output(self, index: int) -> Tensor:
        assert index == 0
        return Tensor(self.compute(self))


class Weights:
    def __init__(self, kind: str, address: int, count: int) -> None:
        dtype = {"FLOAT": np.float32, "HALF": np.float16, "BF16": np.uint16, "INT64": np.int64}[kind]
        size = count * np.dtype(dtype).itemsize
        array = np.frombuffer(ctypes.string_at(address, size), dtype)
        if kind == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        value = torch.from_numpy(array.copy())
        self.value = value if kind == "INT64" else value.double()


class Recorder:
    """The calls of INetworkDefinition that we use, in float64; pictures come through `feed`."""

    def __init__(self, feed: Any) -> None:
        self.feed, self.output, self.shape = feed, None, ()

    def add_input(self, name: str, kind: str, shape: tuple[int, ...]) -> Tensor:
        self.shape = shape
        assert name == "image" and len(shape) == self.feed.dim()
        assert all(a in (-1, b) for a, b in zip(shape, self.feed.shape, strict=True))
        return Tensor(self.feed)

    def mark_output(self, tensor: Tensor) -> None:
        assert tensor.name == "translation"
        self.output = tensor.value

    def add_convolution_nd(
        self, x: Tensor, co: int, kernel: Any, weights: Weights, bias: Any = None
    ) -> Layer:
        def compute(layer: Layer) -> Any:
            pre, post = layer.pre_padding, layer.post_padding
            if layer.padding_nd != (0, 0):
                pre = post = layer.padding_nd
            padded = F.pad(x.value, (pre[1], post[1], pre[0], post[0]))
            w = weights.value.reshape(co, x.value.shape[1], *kernel)
            return F.conv2d(padded, w, None if bias is None else bias.value, layer.stride_nd)

        zero = (0, 0)
        return Layer(compute, stride_nd=(1, 1), padding_nd=zero, pre_padding=zero, post_padding=zero)

    def add_deconvolution_nd(
        self, x: Tensor, co: int, kernel: Any, weights: Weights, bias: Any = None
    ) -> Layer:
        def compute(layer: Layer) -> Any:
            w = weights.value.reshape(x.value.shape[1], co, *kernel)
            b = None if bias is None else bias.value
            return F.conv_transpose2d(x.value, w, b, layer.stride_nd, layer.padding_nd)

        return Layer(compute, stride_nd=(1, 1), padding_nd=(0, 0))

    def add_activation(self, x: Tensor, kind: str) -> Layer:
        def compute(layer: Layer) -> Any:
            if kind == "LEAKY_RELU":
                return F.leaky_relu(x.value, layer.alpha)
            return {"RELU": torch.relu, "TANH": torch.tanh}[kind](x.value)

        return Layer(compute, alpha=None)

    def add_elementwise(self, a: Tensor, b: Tensor, op: str) -> Layer:
        operations = {
            "SUM": torch.add,
            "SUB": torch.sub,
            "PROD": torch.mul,
            "DIV": torch.div,
            "MAX": torch.maximum,
            "MIN": torch.minimum,
        }
        assert a.value.dim() == b.value.dim()  # the library broadcasts, but only equal ranks
        return Layer(lambda _: operations[op](a.value, b.value))

    def add_unary(self, x: Tensor, op: str) -> Layer:
        return Layer(lambda _: {"SQRT": torch.sqrt, "ROUND": torch.round}[op](x.value))

    def add_reduce(self, x: Tensor, op: str, axes: int, keep: bool) -> Layer:
        assert op == "AVG"
        dims = [axis for axis in range(x.value.dim()) if axes >> axis & 1]
        return Layer(lambda _: x.value.mean(dims, keepdim=keep))

    def add_normalization_v2(self, x: Tensor, scale: Tensor, shift: Tensor, axes: int) -> Layer:
        dims = [axis for axis in range(x.value.dim()) if axes >> axis & 1]

        def compute(layer: Layer) -> Any:
            var, mean = torch.var_mean(x.value, dims, correction=0, keepdim=True)
            return (x.value - mean) / torch.sqrt(var + layer.epsilon) * scale.value + shift.value

        return Layer(compute, epsilon=None)

    def add_cast(self, x: Tensor, kind: str) -> Layer:
        return Layer(lambda _: x.value.to(torch.uint8) if kind == "UINT8" else x.value.double())

    def add_concatenation(self, parts: list[Tensor]) -> Layer:
        return Layer(lambda layer: torch.cat([p.value for p in parts], layer.axis), axis=None)

    def add_shape(self, x: Tensor) -> Layer:
        return Layer(lambda _: torch.tensor(x.value.shape))

    def add_gather(self, x: Tensor, index: Tensor, axis: int) -> Layer:
        return Layer(lambda _: x.value.index_select(axis, index.value))

    def add_constant(self, shape: tuple[int, ...], weights: Weights) -> Layer:
        return Layer(lambda _: weights.value.reshape(shape))

    def add_shuffle(self, x: Tensor) -> Layer:
        def compute(layer: Layer) -> Any:
            y = x.value.permute(layer.first_transpose) if layer.first_transpose else x.value
            if 1 in layer.inputs:
                y = y.reshape(layer.inputs[1].value.tolist())
            return y.permute(layer.second_transpose) if layer.second_transpose else y

        return Layer(compute, first_transpose=(), second_transpose=())


def library() -> Any:
    enums = ("DataType", "ActivationType", "ElementWiseOperation", "UnaryOperation")
    names = {name: Names() for name in (*enums, "ReduceOperation")}
    return types.SimpleNamespace(Weights=Weights, __name__="recorder", __version__="0", **names)


def evaluated(model: Any, form: Form, feed: Any) -> Any:
    recorder = Recorder(feed)
    Network(library(), recorder, model, form.checked(), release=False).write()
    return recorder.output


def pictures(model: Any, seed: int = 0) -> Any:
    a = model.architecture
    generator = torch.Generator().manual_seed(seed)
    shape = (2, a.in_channels, a.multiple * 2 if a.depth < 8 else a.multiple, a.multiple)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("deconv", ["native", "phases"])
@pytest.mark.parametrize("name", NETS)
def test_the_network_computes_what_pytorch_does(name: str, deconv: str) -> None:
    model = random_model(NETS[name], seed=3)
    x = pictures(model)
    norms = ("image", "running") if NETS[name].norm == "running" else ("image",)
    for norm in norms:
        with torch.no_grad():
            want = UNet.from_model(model, norm).double()(x)
        for norm_layer in (False, True):
            got = evaluated(model, Form("f32", deconv, norm, norm_layer), x)
            assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("deconv", ["native", "phases"])
def test_pixels_are_converted_as_the_engine_does(deconv: str) -> None:
    model = random_model(BASE, seed=4)
    x = np.random.default_rng(0).integers(0, 256, (2, 64, 32, 3), np.uint8)
    got = evaluated(model, Form("f32", deconv, pixels="uint8"), torch.from_numpy(x))
    assert got.dtype == torch.uint8
    with Engine(model) as engine:
        want = engine.translate(x).astype(int)
    difference = abs(got.numpy().astype(int) - want)
    assert difference.max() <= 1 and np.mean(difference == 0) >= 0.999


def test_low_precisions_round_the_weights_alone() -> None:
    model = random_model(BASE, seed=5)
    x = pictures(model)
    with torch.no_grad():
        want = UNet.from_model(model).double()(x)
    for precision, bound in (("f16", 2e-2), ("bf16", 0.2)):
        error = (evaluated(model, Form(precision), x) - want).norm() / want.norm()
        assert 1e-6 < error < bound


def test_a_swapped_skip_would_be_seen() -> None:
    """The comparison can fail: the same net with its concatenations the other way round."""
    model = random_model(BASE, seed=6)
    x = pictures(model)
    with torch.no_grad():
        want = UNet.from_model(model).double()(x)

    class Swapped(Recorder):
        def add_concatenation(self, parts: list[Tensor]) -> Layer:
            return super().add_concatenation(parts[::-1] if len(parts) == 2 else parts)

    recorder = Swapped(x)
    Network(library(), recorder, model, Form().checked(), release=False).write()
    assert (recorder.output - want).norm() / want.norm() > 0.05


# The real library ---------------------------------------------------------------------------------


@needs_rtx
@pytest.mark.parametrize("pixels", ["float", "uint8"])
@pytest.mark.parametrize("precision", ["f32", "f16", "bf16"])
def test_engines_build_without_a_gpu(precision: str, pixels: str) -> None:
    model = random_model(BASE)
    form = Form(precision, pixels=pixels)
    plan = tensorrt.build(rtx, model, form, Profile((64, 64), (128, 128), 2), capability="8.9")
    assert len(plan) > 100_000


@needs_rtx
@pytest.mark.parametrize("name", NETS)
def test_every_net_builds_by_both_deconvolutions(name: str) -> None:
    model = random_model(NETS[name])
    side = NETS[name].multiple
    for deconv in ("native", "phases"):
        for norm_layer in (False, True):
            form = Form("f16", deconv, norm_layer=norm_layer)
            profile = Profile((side, side), (2 * side, 2 * side))
            assert tensorrt.build(rtx, model, form, profile, capability="8.9")


@needs_rtx
def test_what_the_library_refuses() -> None:
    model = random_model(BASE)
    profile = Profile((64, 64), (64, 64))
    with pytest.raises(BackendUnavailable, match="does not build this network"):
        tensorrt.build(rtx, model, Form("bf16", "native"), profile, capability="8.9")
    with pytest.raises(BackendUnavailable, match="compute capability 1.0 ahead of time; it knows"):
        tensorrt.build(rtx, model, Form(), profile, capability="1.0")


@needs_rtx
def test_the_real_bindings_have_every_name() -> None:
    definition = rtx.INetworkDefinition
    for name in vars(Recorder):
        if name.startswith("add_") or name == "mark_output":
            assert hasattr(definition, name), name
    for enum, names in (
        ("DataType", "FLOAT HALF BF16 UINT8 INT64"),
        ("ActivationType", "RELU LEAKY_RELU TANH"),
        ("ElementWiseOperation", "SUM SUB PROD DIV MAX MIN"),
        ("UnaryOperation", "SQRT ROUND"),
        ("ReduceOperation", "AVG"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("BuilderFlag", "TF32"),
    ):
        for name in names.split():
            assert hasattr(getattr(rtx, enum), name), f"{enum}.{name}"


# What is here, and the cache ----------------------------------------------------------------------


def test_without_a_driver_it_says_so() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has an NVIDIA driver")
    with pytest.raises(BackendUnavailable, match=r"libcuda\.so\.1 is not there; install"):
        Engine(random_model(BASE), backend="tensorrt")


def test_wrong_forms_are_named() -> None:
    for form, words in (
        (Form("f8"), "precision: expected one of"),
        (Form(deconv="magic"), "deconv: expected one of"),
        (Form(pixels="rgb"), "pixels: expected one of"),
    ):
        with pytest.raises(ValueError, match=words):
            form.checked()


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Form]:
    """Calls of `build`, whose engine is a counter; the cache is empty."""
    monkeypatch.setenv("P2P_TRT_CACHE", str(tmp_path))
    made: list[Form] = []

    def build(trt: Any, model: Any, form: Form, profile: Profile, **_: Any) -> bytes:
        made.append(form)
        return f"engine {len(made)}".encode()

    monkeypatch.setattr(tensorrt, "build", build)
    return made


def test_engines_are_kept_and_never_loaded_across_keys(builds: list[Form]) -> None:
    model, other = random_model(BASE, seed=1), random_model(BASE, seed=2)
    gpu, size = Gpu("Card", "8.9", "13.0"), Profile((64, 64), (64, 64))
    library_1 = types.SimpleNamespace(__name__="tensorrt", __version__="10.16")
    library_2 = types.SimpleNamespace(__name__="tensorrt", __version__="11.0")

    def get(
        trt: Any = library_1, on: Any = gpu, net: Any = model, precision: str = "f32", p: Any = size
    ) -> bytes:
        return tensorrt.cached(trt, on, net, Form(precision), p)[0]

    assert get() == get() == b"engine 1"
    assert get(trt=library_2) == b"engine 2"
    assert get(on=gpu._replace(name="Other")) == b"engine 3"
    assert get(on=gpu._replace(capability="9.0")) == b"engine 4"
    assert get(net=other) == b"engine 5"
    assert get(precision="f16") == b"engine 6"
    assert get(p=Profile((64, 64), (128, 64))) == b"engine 7"
    assert get() == b"engine 1" and len(builds) == 7


@pytest.mark.parametrize("damage", ["empty", "cut", "bit", "text", "key"])
def test_a_damaged_engine_is_built_again(builds: list[Form], damage: str) -> None:
    model, gpu = random_model(BASE), Gpu("Card", "8.9", "13.0")
    trt = types.SimpleNamespace(__name__="tensorrt", __version__="10.16")
    profile = Profile((64, 64), (64, 64))
    _, path = tensorrt.cached(trt, gpu, model, Form(), profile)
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut": data[:-1],
            "bit": data[:-1] + bytes([data[-1] ^ 1]),
            "text": b"not an engine",
            "key": data.replace(b'"Card"', b'"Cord"'),
        }[damage]
    )
    assert tensorrt.cached(trt, gpu, model, Form(), profile)[0] == b"engine 2"
    assert tensorrt.cached(trt, gpu, model, Form(), profile)[0] == b"engine 2"


def test_dropout_is_refused() -> None:
    from pix2pix_fast.backends import Options
    from pix2pix_fast.tensorrt_run import Executable

    options = Options(dropout=3)
    with pytest.raises(BackendUnavailable, match="no seeded dropout"):
        Executable(library(), types.SimpleNamespace(), random_model(BASE), options)
