"""A TensorRT that computes, in torch: networks are recorded and evaluated for any picture, engines
are built, loaded and run on the memory and streams of fake_driver.py.

Stricter than the real one: it takes only the calls of tensorrt_api.py, broadcasts only equal ranks,
runs a context in one stream and one call at a time, and refuses shapes outside the profile.
"""

from __future__ import annotations

import ctypes
import math
import types
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fake_driver import Cuda
from tensorrt_api import Checked, Names

ENUMS = (
    "ActivationType",
    "BuilderFlag",
    "DataType",
    "ElementWiseOperation",
    "ReduceOperation",
    "UnaryOperation",
)
BITS = {"FLOAT": np.float32, "HALF": np.float16, "BF16": np.uint16, "INT64": np.int64}


# Networks -----------------------------------------------------------------------------------------


class Weights(Checked, api="Weights"):
    """Copied at once: what the real one leaves to its caller is checked by `Network.kept`."""

    def __init__(self, kind: str, address: int, count: int) -> None:
        raw = ctypes.string_at(address, count * np.dtype(BITS[kind]).itemsize)
        array = np.frombuffer(raw, BITS[kind])
        if kind == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        self._values = torch.from_numpy(array.copy())

    def _of(self, real: Any) -> Any:
        return self._values if self._values.dtype == torch.int64 else self._values.to(real)


class ITensor(Checked, api="ITensor"):
    name = ""

    def __init__(self, layer: Any = None) -> None:
        self._layer = layer  # None: the input


class Evaluation:
    """Values of tensors for one picture; `real` is what numbers are computed in."""

    def __init__(self, feed: Any, real: Any) -> None:
        self.feed, self.real = feed, real
        self.values: dict[Any, Any] = {}

    def __call__(self, tensor: ITensor) -> Any:
        layer = tensor._layer
        if layer is None:
            return self.feed if self.feed.dtype == torch.uint8 else self.feed.to(self.real)
        if layer not in self.values:
            inputs = [self(each) for each in layer._inputs]
            self.values[layer] = layer._compute(layer, self.real, *inputs)
        return self.values[layer]


def _layer(api: str, **more: Any) -> Any:
    """A layer class with its attributes' defaults. `compute(layer, real, *values of inputs)`."""

    def start(self: Any, compute: Any, *inputs: ITensor) -> None:
        self._compute, self._inputs = compute, list(inputs)

    def get_output(self: Any, index: int) -> ITensor:
        assert index == 0
        return ITensor(self)

    parts = {"__init__": start, "get_output": get_output, "name": "", **more}
    return type(api, (Checked,), parts, api=api)  # type: ignore[call-overload]


def _set_input(self: Any, index: int, tensor: ITensor) -> None:
    assert index == 1 and len(self._inputs) == 1
    self._inputs.append(tensor)


_NONE = (0, 0)
IActivationLayer = _layer("IActivationLayer", alpha=None)
ICastLayer = _layer("ICastLayer")
IConcatenationLayer = _layer("IConcatenationLayer", axis=None)
IConstantLayer = _layer("IConstantLayer")
IConvolutionLayer = _layer(
    "IConvolutionLayer", stride_nd=(1, 1), padding_nd=_NONE, pre_padding=_NONE, post_padding=_NONE
)
IDeconvolutionLayer = _layer("IDeconvolutionLayer", stride_nd=(1, 1), padding_nd=_NONE)
IElementWiseLayer = _layer("IElementWiseLayer")
IGatherLayer = _layer("IGatherLayer")
INormalizationLayer = _layer("INormalizationLayer", epsilon=None)
IReduceLayer = _layer("IReduceLayer")
IShapeLayer = _layer("IShapeLayer")
IShuffleLayer = _layer(
    "IShuffleLayer", first_transpose=(), second_transpose=(), set_input=_set_input
)
IUnaryLayer = _layer("IUnaryLayer")


def _dims(axes: int) -> list[int]:
    return [axis for axis in range(axes.bit_length()) if axes >> axis & 1]


class INetworkDefinition(Checked, api="INetworkDefinition"):
    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()
        self._kind, self._output = "", None

    def __call__(self, feed: Any, real: Any = torch.float64) -> Any:
        """The output for `feed`: evaluates every layer that it needs."""
        assert len(self._shape) == feed.dim()
        assert all(a in (-1, b) for a, b in zip(self._shape, feed.shape, strict=True))
        assert (self._kind == "UINT8") == (feed.dtype == torch.uint8)
        with torch.no_grad():
            return Evaluation(feed, real)(self._output)  # type: ignore[arg-type]

    def add_input(self, name: str, kind: str, shape: tuple[int, ...]) -> ITensor:
        assert name == "image"
        self._shape, self._kind = shape, kind
        return ITensor()

    def mark_output(self, tensor: ITensor) -> None:
        assert tensor.name == "translation"
        self._output = tensor

    def add_convolution_nd(
        self, x: ITensor, co: int, kernel: Any, weights: Weights, bias: Any = None
    ) -> Any:
        def compute(layer: Any, real: Any, value: Any) -> Any:
            pre, post = layer.pre_padding, layer.post_padding
            if layer.padding_nd != (0, 0):
                pre = post = layer.padding_nd
            padded = F.pad(value, (pre[1], post[1], pre[0], post[0]))
            w = weights._of(real).reshape(co, value.shape[1], *kernel)
            b = None if bias is None else bias._of(real)
            return F.conv2d(padded, w, b, layer.stride_nd)

        return IConvolutionLayer(compute, x)

    def add_deconvolution_nd(
        self, x: ITensor, co: int, kernel: Any, weights: Weights, bias: Any = None
    ) -> Any:
        def compute(layer: Any, real: Any, value: Any) -> Any:
            w = weights._of(real).reshape(value.shape[1], co, *kernel)
            b = None if bias is None else bias._of(real)
            return F.conv_transpose2d(value, w, b, layer.stride_nd, layer.padding_nd)

        return IDeconvolutionLayer(compute, x)

    def add_activation(self, x: ITensor, kind: str) -> Any:
        def compute(layer: Any, _: Any, value: Any) -> Any:
            if kind == "LEAKY_RELU":
                return F.leaky_relu(value, layer.alpha)
            return {"RELU": torch.relu, "TANH": torch.tanh}[kind](value)

        return IActivationLayer(compute, x)

    def add_elementwise(self, a: ITensor, b: ITensor, op: str) -> Any:
        operations = {
            "SUM": torch.add,
            "SUB": torch.sub,
            "PROD": torch.mul,
            "DIV": torch.div,
            "MAX": torch.maximum,
            "MIN": torch.minimum,
        }

        def compute(_: Any, __: Any, left: Any, right: Any) -> Any:
            assert left.dim() == right.dim()  # the library broadcasts, but only equal ranks
            return operations[op](left, right)

        return IElementWiseLayer(compute, a, b)

    def add_unary(self, x: ITensor, op: str) -> Any:
        operation = {"SQRT": torch.sqrt, "ROUND": torch.round}[op]
        return IUnaryLayer(lambda _, __, value: operation(value), x)

    def add_reduce(self, x: ITensor, op: str, axes: int, keep: bool) -> Any:
        assert op == "AVG"
        return IReduceLayer(lambda _, __, value: value.mean(_dims(axes), keepdim=keep), x)

    def add_normalization_v2(self, x: ITensor, scale: ITensor, shift: ITensor, axes: int) -> Any:
        def compute(layer: Any, _: Any, value: Any, gamma: Any, beta: Any) -> Any:
            var, mean = torch.var_mean(value, _dims(axes), correction=0, keepdim=True)
            return (value - mean) / torch.sqrt(var + layer.epsilon) * gamma + beta

        return INormalizationLayer(compute, x, scale, shift)

    def add_cast(self, x: ITensor, kind: str) -> Any:
        def compute(_: Any, real: Any, value: Any) -> Any:
            return value.to(torch.uint8 if kind == "UINT8" else real)

        return ICastLayer(compute, x)

    def add_concatenation(self, parts: list[ITensor]) -> Any:
        return IConcatenationLayer(lambda layer, _, *all: torch.cat(all, layer.axis), *parts)

    def add_shape(self, x: ITensor) -> Any:
        return IShapeLayer(lambda _, __, value: torch.tensor(value.shape), x)

    def add_gather(self, x: ITensor, index: ITensor, axis: int) -> Any:
        return IGatherLayer(lambda _, __, value, at: value.index_select(axis, at), x, index)

    def add_constant(self, shape: tuple[int, ...], weights: Weights) -> Any:
        return IConstantLayer(lambda _, real: weights._of(real).reshape(shape))

    def add_shuffle(self, x: ITensor) -> Any:
        def compute(layer: Any, _: Any, value: Any, *shape: Any) -> Any:
            y = value.permute(layer.first_transpose) if layer.first_transpose else value
            y = y.reshape(shape[0].tolist()) if shape else y
            return y.permute(layer.second_transpose) if layer.second_transpose else y

        return IShuffleLayer(compute, x)


# Building -----------------------------------------------------------------------------------------


class ILogger(Checked, api="ILogger"):
    ERROR, INTERNAL_ERROR = "error", "internal error"

    def __init__(self) -> None:
        self._started = True


class IProgressMonitor(Checked, api="IProgressMonitor"):
    def __init__(self) -> None:
        self._started = True


class IOptimizationProfile(Checked, api="IOptimizationProfile"):
    def set_shape(self, input: str, least: Any, best: Any, most: Any) -> None:
        assert input == "image"
        assert all(a <= b <= c for a, b, c in zip(least, best, most, strict=True))
        self._least, self._most = least, most

    def _holds(self, shape: tuple[int, ...]) -> bool:
        sides = zip(self._least, shape, self._most, strict=True)
        return all(low <= length <= high for low, length, high in sides)


class IBuilderConfig(Checked, api="IBuilderConfig"):
    progress_monitor: Any = None

    def clear_flag(self, flag: str) -> None:
        assert flag == "TF32"

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profile = profile
        return 0


def library(
    cuda: Any = None, name: str = "tensorrt", version: str = "10.16", words: str = ""
) -> Any:
    """The module, whose engines run on the driver `cuda`; `words`: an error that its builder
    logs instead of building. `.plans` are the engines that it has built and will load."""
    trt = types.SimpleNamespace(__name__=name, __version__=version, plans={})

    class Builder(Checked, api="Builder"):
        def __init__(self, logger: ILogger) -> None:
            assert logger._started
            self._logger = logger

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            assert flags == 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
            return INetworkDefinition()

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: INetworkDefinition, config: Any) -> Any:
            monitor = config.progress_monitor
            if monitor is not None:
                monitor.phase_start("Building", None, 2)
                monitor.phase_start("Choosing", "Building", 1)
                monitor.step_complete("Choosing", 0)
                monitor.phase_finish("Choosing")
                if not all(monitor.step_complete("Building", step) for step in range(2)):
                    return None
                monitor.phase_finish("Building")
            if words:
                self._logger.log(ILogger.ERROR, words)
                return None
            plan = f"{name} {version} engine {len(trt.plans) + 1}".encode()
            trt.plans[plan] = (network, config._profile)
            return memoryview(plan)

    class Runtime(Checked, api="Runtime"):
        def __init__(self, logger: ILogger) -> None:
            assert logger._started
            self._logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            assert cuda.current(), "no context in this thread"
            if plan not in trt.plans:
                self._logger.log(ILogger.ERROR, "magic tag does not match")
                return None
            return ICudaEngine(cuda, *trt.plans[plan])

    enums = {api: Names(api) for api in ENUMS}
    flags = types.SimpleNamespace(STRONGLY_TYPED=1)
    for each in (Builder, Runtime, ILogger, IProgressMonitor, INetworkDefinition, Weights):
        setattr(trt, each.api, each)
    vars(trt).update(enums, NetworkDefinitionCreationFlag=flags)
    return trt


# Running ------------------------------------------------------------------------------------------


class ICudaEngine(Checked, api="ICudaEngine"):
    def __init__(self, cuda: Cuda, network: INetworkDefinition, profile: Any) -> None:
        self._cuda, self._network, self._profile = cuda, network, profile

    device_memory_size_v2 = 4096  # of each context

    def create_execution_context(self, strategy: Any = None) -> Any:
        assert self._cuda.current(), "no context in this thread"
        return IExecutionContext(self)


class IExecutionContext(Checked, api="IExecutionContext"):
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine, self._cuda = engine, engine._cuda
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}
        self._stream = 0
        self._cuda.contexts.append(self)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "image" and isinstance(shape, tuple)
        if not self._engine._profile._holds(shape):
            return False
        self._shape = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in ("image", "translation") and isinstance(memory, int)
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self._stream in (0, stream_handle), "a context in two streams"
        self._stream = stream_handle
        if not self._shape or len(self._addresses) < 2:
            return False
        network, shape = self._engine._network, self._shape  # as a captured graph would keep them
        source, target = (self._addresses[name] for name in ("image", "translation"))
        dtype = np.dtype(np.uint8 if network._kind == "UINT8" else np.float32)

        def work() -> None:
            size = math.prod(shape) * dtype.itemsize
            feed = np.frombuffer(self._cuda.read(source, size), dtype).reshape(shape)
            result = network(torch.from_numpy(feed.copy()), torch.float32).contiguous().numpy()
            assert result.dtype == dtype
            self._cuda.write(target, result.tobytes())

        return self._cuda.enqueue(stream_handle, work) == 0
