"""Model -> ONNX that keeps pix2pix's norm: every picture's own mean and variance, at any size.

Public exports of pix2pix fold the batch norm's running statistics and so compute another picture.
Here each norm is written out as mean, variance and affine, whose meaning no runtime can mistake.
Any height and width: the graph pads by reflection at right and bottom and crops, as Engine does.
Weights may be stored as float16; they are cast to float32, which is what the graph computes in.
Dropout is left out. The model's card and digest travel in the metadata.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .errors import BackendUnavailable
from .tensorfile import atomic_file, from_float32

if TYPE_CHECKING:
    from .model import Model

OPSET = 17  # axes of ReduceMean are an attribute up to here
MAX_BYTES = 2**31 - 2**24  # of weights: protobuf stops at 2 GiB; the graph and the card need room too


def to_onnx(
    model: str | os.PathLike[str] | Model,
    path: str | os.PathLike[str],
    *,
    pixels: Literal["float", "uint8"] = "float",
    weights: Literal["f32", "f16"] = "f32",
    norm: Literal["image", "running"] = "image",
    any_size: bool = True,
    fused_norm: bool = False,
) -> None:
    """Write `model` to `path` as ONNX (opset 17); the file appears whole and checked or not at all.

    pixels: "float": `image` (n, ci, h, w) float32 in [-1, 1] -> `translation` (n, co, h, w);
        "uint8": (n, h, w, ci) 0..255 -> (n, h, w, co), rounded as Engine rounds.
    weights: how convolutions' weights are stored. norm: as Engine's.
    any_size: False leaves padding and cropping out: h and w must be multiples of 2^depth.
    fused_norm: each norm as ONNX's InstanceNormalization, which means the same and which some
        runtimes have a faster kernel for.

    Raises BackendUnavailable without the onnx package, ModelFormatError for an unsound model or
    weights that float16 cannot hold, ValueError for a wrong option or more weights than one ONNX
    file holds (2 GiB), OSError from the disk.
    """
    for name, value, allowed in (
        ("pixels", pixels, ("float", "uint8")),
        ("weights", weights, ("f32", "f16")),
    ):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {allowed}, got {value!r}")
    try:
        import onnx
    except ImportError as error:
        raise BackendUnavailable(
            "writing ONNX needs the onnx package: pip install 'pix2pix_fast[onnx]'"
        ) from error
    from .model import Model

    if not isinstance(model, Model):
        from .checkpoints import read

        model = read(model)
    graph = _Graph(onnx, model, norm, weights, fused_norm)
    proto = graph.network(pixels, any_size)
    onnx.checker.check_model(proto, full_check=True)
    with atomic_file(path) as stream:
        stream.write(proto.SerializeToString())


class _Graph:
    """Nodes and initializers as they come; every method returns the name of its output."""

    def __init__(
        self, onnx: Any, model: Model, norm: str, weights: str, fused_norm: bool
    ) -> None:
        self.onnx, self.model, self.norm_kind = onnx, model, norm
        self.weights, self.fused_norm = weights, fused_norm
        self.tensors = model.core_tensors(norm)
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(self.onnx.helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.constants[name] = np.asarray(value, dtype)
        return name

    def network(self, pixels: str, any_size: bool) -> Any:
        a, helper = self.model.architecture, self.onnx.helper
        types = self.onnx.TensorProto
        x = "image"
        if pixels == "uint8":
            x = self.from_uint8(x)
        shape = ""
        if any_size:
            shape = self.node("Shape", [x], "image.shape")
            for axis, letter in ((2, "h"), (3, "w")):
                x = self.reflect(x, shape, axis, letter, a.multiple)
        x = self.unet(x)
        if any_size:
            start = self.constant("crop.start", [0, 0], np.int64)
            axes = self.constant("crop.axes", [2, 3], np.int64)
            two = self.constant("crop.two", [2], np.int64)
            four = self.constant("crop.four", [4], np.int64)
            end = self.node("Slice", [shape, two, four], "crop.end")
            x = self.node("Slice", [x, start, end, axes], "crop")
        self.to_uint8(x) if pixels == "uint8" else self.node("Identity", [x], "translation")
        size = sum(value.nbytes for value in self.constants.values())
        if size > MAX_BYTES:
            cure = "; weights='f16' halves them" if self.weights == "f32" else ""
            raise ValueError(
                f"model: expected at most {MAX_BYTES / 1e9:.2f} GB of weights, which one ONNX file "
                f"holds, got {size / 1e9:.2f} GB{cure}"
            )

        def value(name: str, channels: int) -> Any:
            if pixels == "uint8":
                return helper.make_tensor_value_info(name, types.UINT8, ["n", "h", "w", channels])
            return helper.make_tensor_value_info(name, types.FLOAT, ["n", channels, "h", "w"])

        graph = helper.make_graph(
            self.nodes,
            "pix2pix",
            [value("image", a.in_channels)],
            [value("translation", a.out_channels)],
            [self.onnx.numpy_helper.from_array(v, n) for n, v in self.constants.items()],
        )
        proto = helper.make_model(
            graph, producer_name="pix2pix_fast", opset_imports=[helper.make_opsetid("", OPSET)]
        )
        proto.ir_version = 8  # the version of opset 17
        helper.set_model_props(
            proto,
            {
                "pix2pix_fast.card": json.dumps(self.model.card),
                "pix2pix_fast.digest": self.model.digest,
                "pix2pix_fast.norm": self.norm_kind,
            },
        )
        return proto

    def from_uint8(self, x: str) -> str:
        x = self.node("Cast", [x], "image.float", to=self.onnx.TensorProto.FLOAT)
        x = self.node("Div", [x, self.constant("half", 127.5)], "image.scaled")
        x = self.node("Sub", [x, self.constant("one", 1.0)], "image.signed")
        return self.node("Transpose", [x], "image.nchw", perm=[0, 3, 1, 2])

    def to_uint8(self, x: str) -> str:
        x = self.node("Add", [x, self.constant("one", 1.0)], "levels.positive")
        x = self.node("Mul", [x, self.constant("half", 127.5)], "levels.scaled")
        x = self.node("Round", [x], "levels.rounded")
        bounds = [self.constant("black", 0.0), self.constant("white", 255.0)]
        x = self.node("Clip", [x, *bounds], "levels")
        x = self.node("Cast", [x], "levels.uint8", to=self.onnx.TensorProto.UINT8)
        return self.node("Transpose", [x], "translation", perm=[0, 2, 3, 1])

    def reflect(self, x: str, shape: str, axis: int, letter: str, multiple: int) -> str:
        """Gather of indices that run 0..n-1 and back again, up to a multiple: Pad's reflection
        stops at n - 1 pixels, a picture of 5 needs more."""
        at = f"pad.{letter}."

        def integer(name: str, value: int) -> str:
            return self.constant(name, value, np.int64)

        zero, one = integer("zero.i", 0), integer("one.i", 1)
        up = integer("multiple", multiple)
        n = self.node("Gather", [shape, integer(f"axis.{letter}", axis)], at + "n", axis=0)
        more = self.node("Add", [n, integer("multiple.less.one", multiple - 1)], at + "more")
        count = self.node("Mul", [self.node("Div", [more, up], at + "tiles"), up], at + "count")
        i = self.node("Range", [zero, count, one], at + "i")
        last = self.node("Sub", [n, one], at + "last")
        period = self.node("Max", [self.node("Add", [last, last], at + "twice"), one], at + "period")
        forth = self.node("Mod", [i, period], at + "forth")
        back = self.node("Sub", [period, forth], at + "back")
        index = self.node("Min", [forth, back], at + "index")
        return self.node("Gather", [x, index], at + "padded", axis=axis)

    def unet(self, x: str) -> str:
        outputs: dict[str, str] = {}
        for layer in self.model.layers(self.norm_kind):
            name = layer["name"]
            if layer["skip"]:
                x = self.node("Concat", [outputs[layer["skip"]], x], f"{name}.concat", axis=1)
            if layer["slope"] == 0.0:
                x = self.node("Relu", [x], f"{name}.relu")
            elif layer["slope"] != 1.0:
                x = self.node("LeakyRelu", [x], f"{name}.leaky_relu", alpha=layer["slope"])
            op = "Conv" if layer["op"] == "conv4x4s2" else "ConvTranspose"
            inputs = [x, self.weight(name)]
            bias = f"{name}.bias"
            if bias in self.tensors and not layer["norm"]:  # a norm takes its own mean away
                inputs.append(self.constant(bias, self.tensors[bias]))
            x = self.node(op, inputs, name, kernel_shape=[4, 4], strides=[2, 2], pads=[1] * 4)
            if layer["norm"]:
                x = self.norm(x, name, layer["co"], layer["eps"])
            if layer["tanh"]:
                x = self.node("Tanh", [x], f"{name}.tanh")
            outputs[name] = x
        return x

    def weight(self, name: str) -> str:
        value = self.tensors[f"{name}.weight"]
        if self.weights == "f32":
            return self.constant(f"{name}.weight", value)
        half = from_float32(value, "F16", f"model: tensor '{name}.weight'")
        stored = self.constant(f"{name}.weight.f16", half, np.float16)
        return self.node("Cast", [stored], f"{name}.weight", to=self.onnx.TensorProto.FLOAT)

    def norm(self, x: str, name: str, channels: int, eps: float) -> str:
        scale = self.tensors.get(f"{name}.norm.weight", np.ones(channels, np.float32))
        shift = self.tensors.get(f"{name}.norm.bias", np.zeros(channels, np.float32))
        if self.fused_norm:
            affine = [
                self.constant(f"{name}.norm.weight", scale),
                self.constant(f"{name}.norm.bias", shift),
            ]
            return self.node("InstanceNormalization", [x, *affine], f"{name}.norm", epsilon=eps)
        axes = {"axes": [2, 3], "keepdims": 1}
        mean = self.node("ReduceMean", [x], f"{name}.mean", **axes)
        centred = self.node("Sub", [x, mean], f"{name}.centred")
        square = self.node("Mul", [centred, centred], f"{name}.square")
        var = self.node("ReduceMean", [square], f"{name}.var", **axes)
        safe = self.node("Add", [var, self.constant(f"{name}.eps", eps)], f"{name}.var_eps")
        deviation = self.node("Sqrt", [safe], f"{name}.deviation")
        x = self.node("Div", [centred, deviation], f"{name}.normed")
        shape = (1, channels, 1, 1)
        x = self.node(
            "Mul", [x, self.constant(f"{name}.norm.weight", scale.reshape(shape))], f"{name}.scaled"
        )
        return self.node(
            "Add", [x, self.constant(f"{name}.norm.bias", shift.reshape(shape))], f"{name}.norm"
        )
