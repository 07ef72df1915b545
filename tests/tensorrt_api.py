"""What of TensorRT's Python API we use, one line each, and how a library documents it.

The fakes of fake_tensorrt.py derive from `Checked`: they take no other name, no other count and no
other keyword of arguments than a line says. test_tensorrt_api.py reads the same lines from the
docstrings of the real bindings (tensorrt 10.15, 10.16, 11, tensorrt_rtx), so a call that a fake
takes is one that every library has. `name=` has a default; several lines of one name are overloads.

As a program: `python tensorrt_api.py MODULE` prints which lines that module lacks.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from typing import Any

_LINES = """
ActivationType.LEAKY_RELU
ActivationType.RELU
ActivationType.TANH
Builder.__init__(logger)
Builder.build_serialized_network(network, config)
Builder.create_builder_config()
Builder.create_network(flags=)
Builder.create_optimization_profile()
BuilderFlag.TF32
DataType.BF16
DataType.FLOAT
DataType.HALF
DataType.INT64
DataType.UINT8
ElementWiseOperation.DIV
ElementWiseOperation.MAX
ElementWiseOperation.MIN
ElementWiseOperation.PROD
ElementWiseOperation.SUB
ElementWiseOperation.SUM
IActivationLayer.alpha
IActivationLayer.get_output(index)
IActivationLayer.name
IBuilderConfig.add_optimization_profile(profile)
IBuilderConfig.clear_flag(flag)
IBuilderConfig.progress_monitor
ICastLayer.get_output(index)
ICastLayer.name
IConcatenationLayer.axis
IConcatenationLayer.get_output(index)
IConcatenationLayer.name
IConstantLayer.get_output(index)
IConstantLayer.name
IConvolutionLayer.get_output(index)
IConvolutionLayer.name
IConvolutionLayer.padding_nd
IConvolutionLayer.post_padding
IConvolutionLayer.pre_padding
IConvolutionLayer.stride_nd
ICudaEngine.create_execution_context(strategy=)
ICudaEngine.device_memory_size_v2
IDeconvolutionLayer.get_output(index)
IDeconvolutionLayer.name
IDeconvolutionLayer.padding_nd
IDeconvolutionLayer.stride_nd
IElementWiseLayer.get_output(index)
IElementWiseLayer.name
IExecutionContext.execute_async_v3(stream_handle)
IExecutionContext.set_input_shape(name, shape)
IExecutionContext.set_tensor_address(name, memory)
IGatherLayer.get_output(index)
IGatherLayer.name
ILogger.ERROR
ILogger.INTERNAL_ERROR
ILogger.__init__()
ILogger.log(severity, msg)
INetworkDefinition.add_activation(input, type)
INetworkDefinition.add_cast(input, to_type)
INetworkDefinition.add_concatenation(inputs)
INetworkDefinition.add_constant(shape, weights)
INetworkDefinition.add_convolution_nd(input, num_output_maps, kernel_shape, kernel, bias=)
INetworkDefinition.add_deconvolution_nd(input, num_output_maps, kernel_shape, kernel, bias=)
INetworkDefinition.add_elementwise(input1, input2, op)
INetworkDefinition.add_gather(input, indices, axis)
INetworkDefinition.add_input(name, dtype, shape)
INetworkDefinition.add_normalization_v2(input, scale, bias, axesMask)
INetworkDefinition.add_reduce(input, op, axes, keep_dims)
INetworkDefinition.add_shape(input)
INetworkDefinition.add_shuffle(input)
INetworkDefinition.add_unary(input, op)
INetworkDefinition.mark_output(tensor)
INormalizationLayer.epsilon
INormalizationLayer.get_output(index)
INormalizationLayer.name
IOptimizationProfile.set_shape(input, min, opt, max)
IProgressMonitor.__init__()
IProgressMonitor.phase_finish(phase_name)
IProgressMonitor.phase_start(phase_name, parent_phase, num_steps)
IProgressMonitor.step_complete(phase_name, step)
IReduceLayer.get_output(index)
IReduceLayer.name
IShapeLayer.get_output(index)
IShapeLayer.name
IShuffleLayer.first_transpose
IShuffleLayer.get_output(index)
IShuffleLayer.name
IShuffleLayer.second_transpose
IShuffleLayer.set_input(index, tensor)
ITensor.name
IUnaryLayer.get_output(index)
IUnaryLayer.name
NetworkDefinitionCreationFlag.STRONGLY_TYPED
ReduceOperation.AVG
Runtime.__init__(logger)
Runtime.deserialize_cuda_engine(serialized_engine)
UnaryOperation.ROUND
UnaryOperation.SQRT
Weights.__init__(type, ptr, count)
"""
# Only where a GPU that is not there is built for, which tensorrt_rtx alone can:
_RTX_LINES = """
IBuilderConfig.num_compute_capabilities
IBuilderConfig.set_compute_capability(compute_capability, index)
ComputeCapability.SM89
"""
LINES, RTX_LINES = _LINES.strip().split("\n"), _RTX_LINES.strip().split("\n")
KNOWN = {re.split(r"\(", line)[0] for line in LINES}
used: set[str] = set()  # names that the fakes met in this process


def signature(line: str) -> inspect.Signature:
    inside = line[line.index("(") + 1 : -1]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature(
        [
            inspect.Parameter(
                p.rstrip("="), kind, default=None if p.endswith("=") else inspect.Parameter.empty
            )
            for p in filter(None, inside.split(", "))
        ]
    )


def _checked(name: str, method: Any) -> Any:
    allowed = [signature(line) for line in LINES if line.startswith(f"{name}(")]
    assert allowed, f"{name} is no call of LINES"

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        used.add(name)
        for one in allowed[:-1]:
            try:
                one.bind(*args, **kwargs)
                break
            except TypeError:
                continue
        else:
            allowed[-1].bind(*args, **kwargs)
        return method(self, *args, **kwargs)

    return call


class Checked:
    """A fake of the class `api` of the library: public names only as LINES has them."""

    api = ""

    def __init_subclass__(cls, api: str = "") -> None:
        if not api:
            return  # a variation of a fake
        cls.api = api
        cls.__name__ = api
        for name, value in list(vars(cls).items()):
            public = not name.startswith("_") or f"{api}.{name}" in KNOWN
            if callable(value) and public:
                setattr(cls, name, _checked(f"{api}.{name}", value))

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            assert f"{self.api}.{name}" in KNOWN, f"{self.api}.{name} is not in LINES"
            used.add(f"{self.api}.{name}")
        object.__setattr__(self, name, value)


class Names:
    """A fake of the enum `api`: `ActivationType.RELU` is "RELU"."""

    def __init__(self, api: str) -> None:
        self._api = api

    def __getattr__(self, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        assert f"{self._api}.{name}" in KNOWN, f"{self._api}.{name} is not in LINES"
        used.add(f"{self._api}.{name}")
        return name


# The real libraries -------------------------------------------------------------------------------


def lacks(trt: Any, lines: list[str] = LINES) -> list[str]:
    """Lines that `trt` does not have, or documents otherwise."""
    return [line for line in lines if line not in _lines(trt, line.split("(")[0])]


def _lines(trt: Any, name: str) -> list[str]:
    owner, attribute = name.split(".")
    value = getattr(getattr(trt, owner, None), attribute, None)
    if value is None:
        return []
    if not callable(value):
        return [name]
    found = re.findall(rf"^(?:\d+\. )?{attribute}\((.*)\) -> ", value.__doc__ or "", re.MULTILINE)
    return [f"{name}({', '.join(_parameters(text))})" for text in found]


def _parameters(text: str) -> list[str]:
    """["input", "bias="] from "self: T, input: ITensor, bias: Weights = None"."""
    depth, parts, quiet = 0, [""], re.sub(r"<[^<>]*>", "x", text)  # <ExecutionContext...: 0>
    for character in quiet:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    names = [(part.split(":")[0].strip(), " = " in part) for part in parts]
    return [name + ("=" if default else "") for name, default in names if name != "self"]


if __name__ == "__main__":
    module = importlib.import_module(sys.argv[1])
    print(module.__version__, *lacks(module), sep="\n")
