"""TensorFlow.js layers folders (model.json and weight files, from Keras) -> Model.

Kernels are stored as [h, w, in, out], transposed ones as [h, w, out, in], and mostly concatenated
[decoder, encoder]; ours are PyTorch's order and [encoder, decoder]. The folder carries its graph,
which is followed wire by wire: what is not the U-Net that we compute is refused by name.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .architecture import Architecture
from .errors import ModelFormatError
from .model import Model, StoredTensors, check_values
from .tensorfile import Array, Shape, is_whole, open_file, parse_json, show

MAX_JSON_BYTES = 1 << 19  # a U-Net's graph takes 33 KB
MAX_LAYERS = 512
MAX_FILES = 1024  # of all weight groups; the converter writes one for every 4 MB
MAX_PATH = 255  # characters of a weight file's path
Json = dict[str, Any]


# -- the graph -------------------------------------------------------------------------------------


class Node(NamedTuple):
    name: str
    kind: str  # Keras' class_name
    config: Json
    inputs: list[str]
    training: bool  # called with training=True: a norm then uses the batch's own statistics


class Graph:
    """The Keras layers by name, each used once. `take` checks the kind and marks it as seen."""

    def __init__(self, layers: list[Any], where: str) -> None:
        self.where = where
        self.nodes: dict[str, Node] = {}
        self.seen: set[str] = set()
        for layer in layers:
            node = self._node(layer)
            if node.name in self.nodes:
                raise ModelFormatError(f"{where}: layer {show(node.name)} occurs twice")
            self.nodes[node.name] = node

    def _node(self, layer: Any) -> Node:
        if not isinstance(layer, dict):
            raise ModelFormatError(f"{self.where}: a layer must be an object, got {show(layer)}")
        name, kind = layer.get("name"), layer.get("class_name")
        config, inbound = layer.get("config"), layer.get("inbound_nodes")
        if not isinstance(name, str) or not isinstance(kind, str) or not isinstance(config, dict):
            raise ModelFormatError(
                f"{self.where}: layer {show(name)} must have name, class_name and config"
            )
        if not isinstance(inbound, list) or len(inbound) > 1:
            raise ModelFormatError(
                f"{self.where}: layer {show(name)} must be called once, is {show(inbound)}"
            )
        inputs, training = [], False
        wires = inbound[0] if inbound else []
        if not isinstance(wires, list):
            raise ModelFormatError(
                f"{self.where}: layer {show(name)} must have a list of inputs, got {show(wires)}"
            )
        for wire in wires:
            if (
                not isinstance(wire, list)
                or len(wire) not in (3, 4)
                or not isinstance(wire[0], str)
                or wire[1:3] != [0, 0]
                or not isinstance(wire[3] if len(wire) == 4 else {}, dict)
            ):
                raise ModelFormatError(
                    f"{self.where}: layer {show(name)} has an input not understood: {show(wire)}"
                )
            options = wire[3] if len(wire) == 4 else {}
            if set(options) - {"training"}:
                raise ModelFormatError(
                    f"{self.where}: layer {show(name)} is called with {show(sorted(options))}"
                )
            training = training or bool(options.get("training"))
            inputs.append(wire[0])
        return Node(name, kind, config, inputs, training)

    def get(self, name: str) -> Node:
        if name not in self.nodes:
            raise ModelFormatError(f"{self.where}: layer {show(name)} does not exist")
        return self.nodes[name]

    def before(self, node: Node, count: int = 1) -> list[Node]:
        if len(node.inputs) != count:
            raise ModelFormatError(
                f"{self.where}: layer {show(node.name)} ({show(node.kind)}) has {len(node.inputs)} "
                f"inputs, expected {count}"
            )
        return [self.get(name) for name in node.inputs]

    def take(self, node: Node, kinds: tuple[str, ...]) -> Node:
        """`node` marked as part of the U-Net, once it is found to be one of `kinds`."""
        if node.kind not in kinds:
            self.refuse(node, f"expected {' or '.join(kinds)} here")
        if node.name in self.seen:
            self.refuse(node, "is used twice")
        self.seen.add(node.name)
        return node

    def expect(self, node: Node, values: Json) -> None:
        """Config entries that must have these values where they are present."""
        for key, expected in values.items():
            got = node.config.get(key, expected)
            if got != expected:
                self.refuse(node, f"{key} must be {expected}, got {show(got)}")

    def refuse(self, node: Node, why: str) -> NoReturn:
        raise ModelFormatError(
            f"{self.where}: layer {show(node.name)} ({show(node.kind)}): {why}; "
            "this engine runs the U-Nets of pix2pix"
        )


class KerasLayer(NamedTuple):
    """One of our layers in the graph."""

    conv: Node
    norm: Node | None
    dropout: bool
    out: str  # the node whose output is the layer's
    skip: str = ""  # the node that a decoder layer joins to its input
    decoder_first: bool = False


CONV = {
    "kernel_size": [4, 4],
    "strides": [2, 2],
    "padding": "same",
    "data_format": "channels_last",
    "dilation_rate": [1, 1],
    "groups": 1,
    "output_padding": None,
}


def _follow(graph: Graph, output: Node) -> tuple[list[KerasLayer], list[KerasLayer], bool, Node]:
    """(e1..eN, d1..dN, tanh at the end, input layer), walking from the output to the input."""
    tanh, node = _end(graph, output)
    up: list[KerasLayer] = []  # dN first
    aside: set[str] = set()  # activations between an encoder layer and its skip
    while True:
        layer, before = _layer(graph, node, "Conv2DTranspose", "linear" if up else "any")
        slope, before = _slope(graph, before)
        if slope != 0.0:
            graph.refuse(layer.conv, "needs ReLU in front")
        if before.kind != "Concatenate":
            up.append(layer)
            node = before
            if _root(graph, before).kind == "Conv2DTranspose":
                continue
            break
        graph.take(before, ("Concatenate",))
        if before.config.get("axis", -1) not in (3, -1):
            graph.refuse(before, "must join channels (axis 3)")
        a, b = graph.before(before, 2)
        decoder_first = _root(graph, a).kind == "Conv2DTranspose"
        if decoder_first == (_root(graph, b).kind == "Conv2DTranspose"):
            graph.refuse(before, "must join a decoder layer and an encoder layer")
        node, skip = (a, b) if decoder_first else (b, a)
        if skip.kind in ("LeakyReLU", "ReLU"):  # the ReLU that follows makes both the same
            aside.add(skip.name)
            skip = graph.before(skip)[0]
        up.append(layer._replace(skip=skip.name, decoder_first=decoder_first))
    down: list[KerasLayer] = []  # eN first
    while True:
        layer, before = _layer(graph, node, "Conv2D", "linear")
        down.append(layer)
        if before.kind == "InputLayer":
            break
        slope, node = _slope(graph, before)
        if abs(slope - 0.2) > 1e-6:
            graph.refuse(layer.conv, f"needs LeakyReLU 0.2 in front, has slope {slope:g}")
    start = graph.take(before, ("InputLayer",))
    if len(down) != len(up):
        raise ModelFormatError(
            f"{graph.where}: {len(down)} strided layers down and {len(up)} up, expected as many"
        )
    encoder, decoder = down[::-1], up[::-1]
    for layer, source in zip(decoder[1:], encoder[-2::-1], strict=True):  # d2 reads e(N-1)
        if layer.skip != (source.out if decoder[-1].skip else ""):
            graph.refuse(
                layer.conv,
                f"its skip is {show(layer.skip)}, expected {show(source.out)} or no skips",
            )
    unused = [name for name in graph.nodes if name not in graph.seen | aside]
    if unused:
        graph.refuse(graph.nodes[unused[0]], "has no place in the U-Net")
    return encoder, decoder, tanh, start


def _root(graph: Graph, node: Node) -> Node:
    """The first node before `node` that is no norm, dropout or activation."""
    for _ in range(8):
        if node.kind not in ("BatchNormalization", "Dropout", "LeakyReLU", "ReLU"):
            break
        node = graph.before(node)[0]
    return node


def _layer(graph: Graph, node: Node, kind: str, activation: str) -> tuple[KerasLayer, Node]:
    """Convolution, norm, dropout that end in `node`; and the node in front of them."""
    out, norm, dropout = node.name, None, False
    if node.kind == "Dropout":
        graph.take(node, ("Dropout",))
        graph.expect(node, {"rate": 0.5})
        dropout, node = True, graph.before(node)[0]
        if kind == "Conv2D":
            graph.refuse(node, "dropout stands after decoder layers only")
    if node.kind == "BatchNormalization":
        norm = graph.take(node, ("BatchNormalization",))
        if norm.config.get("axis", -1) not in (3, -1, [3], [-1]):
            graph.refuse(norm, "must work along channels (axis 3)")
        node = graph.before(node)[0]
    conv = graph.take(node, (kind,))
    if "kernel_size" not in conv.config or "strides" not in conv.config:
        graph.refuse(conv, "kernel_size and strides are missing")
    graph.expect(conv, CONV)
    if activation != "any":  # `_end` looked at the last one
        graph.expect(conv, {"activation": activation})
    if not is_whole(conv.config.get("filters"), 1, 4096):
        graph.refuse(
            conv, f"filters must be from 1 to 4096, got {show(conv.config.get('filters'))}"
        )
    return KerasLayer(conv, norm, dropout, out), graph.before(conv)[0]


def _slope(graph: Graph, node: Node) -> tuple[float, Node]:
    """The activation `node` as the slope for negative values, and the node in front of it."""
    graph.take(node, ("LeakyReLU", "ReLU", "Activation"))
    if node.kind == "Activation":
        graph.expect(node, {"activation": "relu"})
        slope: Any = 0.0
    elif node.kind == "ReLU":
        graph.expect(node, {"max_value": None, "threshold": 0.0})
        slope = node.config.get("negative_slope") or 0.0
    else:
        slope = node.config.get("alpha", node.config.get("negative_slope", 0.3))
    if type(slope) not in (int, float):
        graph.refuse(node, f"its slope must be a number, got {show(slope)}")
    return float(slope), graph.before(node)[0]


def _end(graph: Graph, output: Node) -> tuple[bool, Node]:
    """Whether the net ends in tanh, as a layer or in the last convolution; and what is in front."""
    if output.kind == "Activation":
        graph.take(output, ("Activation",))
        node = graph.before(output)[0]
        graph.expect(node, {"activation": "linear"})
    else:
        node = output
    name = output.config.get("activation", "linear")
    if name not in ("tanh", "linear"):
        graph.refuse(output, f"ends in {show(name)}, expected tanh or linear")
    return name == "tanh", node


# -- the files -------------------------------------------------------------------------------------


def read_tfjs(path: Path, where: str) -> Model:
    """A U-Net from `model.json` and the weight files beside it.

    Raises ModelFormatError naming the layer, weight or path and the rule.
    """
    if not path.exists():
        raise ModelFormatError(
            f"{where}: is a folder without model.json (a TensorFlow.js model) or last.pt (a training run)"
        )
    with open_file(path) as stream:
        data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ModelFormatError(f"{where}: model.json is larger than {MAX_JSON_BYTES} bytes")
    document = parse_json(data, f"{where}: model.json", 24)
    graph, output = _graph(document, where)
    encoder, decoder, tanh, start = _follow(graph, output)
    layers = {f"e{k}": layer for k, layer in enumerate(encoder, 1)}
    layers |= {f"d{k}": layer for k, layer in enumerate(decoder, 1)}
    weights = Weights(document, path.parent, where)
    moving = {
        name: (weights.take(f"{n.name}/moving_mean"), weights.take(f"{n.name}/moving_variance"))
        for name, layer in layers.items()
        if (n := layer.norm) is not None
    }
    untouched = all((mean == 0).all() and (var == 1).all() for mean, var in moving.values())
    shape = start.config.get("batch_input_shape", start.config.get("batch_shape"))
    if not isinstance(shape, list) or len(shape) != 4:
        graph.refuse(start, f"batch_input_shape must have 4 entries, got {show(shape)}")
    architecture = _architecture(
        layers, where, shape[3], "none" if not moving else "image" if untouched else "running", tanh
    )
    tensors: dict[str, Array] = {}
    for name, layer in layers.items():
        tensors |= _layer_tensors(name, layer, weights, architecture, where)
        if architecture.norm == "running" and name in moving:
            tensors[f"{name}.norm.mean"], tensors[f"{name}.norm.var"] = moving[name]
    for name, tensor in tensors.items():
        check_values(name, tensor, where)
    if weights.left:
        raise ModelFormatError(
            f"{where}: weight {show(min(weights.left))} belongs to no layer of the graph"
        )
    own = all(layer.norm.training for layer in layers.values() if layer.norm is not None)
    note = (
        "moving statistics untouched"
        if untouched
        else "called with the picture's own statistics"
        if own
        else "meant to be used with norm='running'"
    )
    card: Json = {
        "name": re.sub(r"[^ -~]", "?", path.resolve().parent.name)[:200],
        "source": "TensorFlow.js layers",
        "inferred": summary(architecture, note),
        "dropout_places": "recorded",
        "source_channels": "RGB",
        "value_range": [-1, 1],
    }
    if all(is_whole(n, 1, 65536) for n in shape[1:3]):
        card["size"] = shape[1:3]
    model = Model(architecture, StoredTensors(tensors), card)
    model.check()
    return model


def _graph(document: Any, where: str) -> tuple[Graph, Node]:
    """The functional graph of model.json and its output node."""
    topology = document.get("modelTopology") if isinstance(document, dict) else None
    if isinstance(document, dict) and document.get("format") == "graph-model":
        raise ModelFormatError(f"{where}: is a TensorFlow.js graph model, expected a layers model")
    if not isinstance(topology, dict):
        raise ModelFormatError(f"{where}: model.json has no modelTopology")
    model = topology.get("model_config", topology)
    kind = model.get("class_name") if isinstance(model, dict) else None
    if kind not in ("Model", "Functional"):
        raise ModelFormatError(f"{where}: a Keras model of class {show(kind)}, expected Functional")
    config = model.get("config")
    layers = config.get("layers") if isinstance(config, dict) else None
    if not isinstance(layers, list) or not 1 <= len(layers) <= MAX_LAYERS:
        raise ModelFormatError(f"{where}: model.json must list 1 to {MAX_LAYERS} layers")
    ends = []
    for key in ("input_layers", "output_layers"):
        value = config.get(key)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if not isinstance(value, list) or value[1:] != [0, 0] or not isinstance(value[0], str):
            raise ModelFormatError(f"{where}: {key} must name one layer, got {show(value)}")
        ends.append(value[0])
    graph = Graph(layers, where)
    graph.get(ends[0])
    return graph, graph.get(ends[1])


def _layer_tensors(
    name: str, layer: KerasLayer, weights: Weights, architecture: Architecture, where: str
) -> dict[str, Array]:
    """weight, bias, norm.weight and norm.bias of one layer under our names."""
    conv, norm, expected = layer.conv, layer.norm, architecture.shapes()
    kernel = weights.take(f"{conv.name}/kernel")
    to, back = (3, 2, 0, 1), (2, 3, 1, 0)
    need = tuple(np.array(expected[f"{name}.weight"])[list(back)].tolist())
    if kernel.shape != need:
        raise ModelFormatError(
            f"{where}: weight {show(f'{conv.name}/kernel')} has shape {kernel.shape}, as kernel of "
            f"{name} it must be {need}"
        )
    weight = np.ascontiguousarray(kernel.transpose(to))
    if layer.decoder_first:
        weight = swap_halves(weight)
    tensors = {f"{name}.weight": weight}
    if conv.config.get("use_bias", True):
        tensors[f"{name}.bias"] = weights.take(f"{conv.name}/bias")
    if norm is not None and architecture.affine:
        shape = expected[f"{name}.norm.weight"]
        scale, center = norm.config.get("scale", True), norm.config.get("center", True)
        tensors[f"{name}.norm.weight"] = (
            weights.take(f"{norm.name}/gamma") if scale else np.ones(shape, np.float32)
        )
        tensors[f"{name}.norm.bias"] = (
            weights.take(f"{norm.name}/beta") if center else np.zeros(shape, np.float32)
        )
    return tensors


def swap_halves(weight: Array) -> Array:
    """Transposed kernels (ci, co, 4, 4) for [decoder, skip] as kernels for [skip, decoder]."""
    half = weight.shape[0] // 2
    return np.concatenate([weight[half:], weight[:half]])


def _architecture(
    layers: dict[str, KerasLayer], where: str, in_channels: Any, norm: Any, tanh: bool
) -> Architecture:
    """What the layers are. Raises ModelFormatError naming the layer that fits no U-Net."""
    depth = len(layers) // 2
    normed = {name: layer.norm for name, layer in layers.items() if layer.norm is not None}
    epsilons = [node.config.get("epsilon", 1e-3) for node in normed.values()]
    if any(eps != epsilons[0] for eps in epsilons):
        raise ModelFormatError(f"{where}: the norms have different epsilons: {show(epsilons)}")
    try:
        architecture = Architecture(
            depth=depth,
            ngf=layers["e1"].conv.config["filters"],
            in_channels=in_channels,
            out_channels=layers[f"d{depth}"].conv.config["filters"],
            skips=layers[f"d{depth}"].skip != "",
            norm=norm,
            affine=any(
                node.config.get(flag, True)
                for node in normed.values()
                for flag in ("scale", "center")
            ),
            eps=epsilons[0] if epsilons else 1e-5,
            bottleneck_norm=f"e{depth}" in normed,
            dropout=tuple(name for name, layer in layers.items() if layer.dropout),
            tanh=tanh,
        )
    except ModelFormatError as error:
        raise ModelFormatError(f"{where}: {error}") from None
    if set(architecture.normed()) != set(normed):
        odd = sorted(set(architecture.normed()) ^ set(normed))[0]
        raise ModelFormatError(
            f"{where}: layer {show(layers[odd].conv.name)} ({odd}) "
            f"{'has a' if odd in normed else 'lacks the'} norm, unlike a U-Net's"
        )
    for layer in architecture.layers():
        got = layers[layer["name"]].conv.config["filters"]
        if got != layer["co"]:
            raise ModelFormatError(
                f"{where}: layer {show(layers[layer['name']].conv.name)} has {got} filters, as "
                f"{layer['name']} of a U-Net with ngf {architecture.ngf} it must have {layer['co']}"
            )
    return architecture


def summary(a: Architecture, more: str) -> str:
    norm = {"image": "norm of each picture", "running": "batch norm", "none": "no norm"}[a.norm]
    places = ", ".join(a.dropout) or "nowhere"
    return (
        f"{'U-Net' if a.skips else 'encoder-decoder'} with {a.depth} levels, ngf {a.ngf}, "
        f"{a.in_channels} -> {a.out_channels} channels, {norm}"
        f"{f' ({more})' if more else ''}{f' (also on e{a.depth})' if a.bottleneck_norm else ''}, "
        f"eps {a.eps:g}, dropout after {places}, {'tanh' if a.tanh else 'no tanh'}"
    )


class Weights:
    """The weight files beside model.json. Their sizes are checked before any is read."""

    def __init__(self, document: Json, folder: Path, where: str) -> None:
        groups = document.get("weightsManifest")
        if not isinstance(groups, list):
            raise ModelFormatError(f"{where}: model.json has no weightsManifest")
        self.where = where
        self._shapes: dict[str, Shape] = {}
        self._places: dict[str, tuple[list[tuple[Path, int]], int]] = {}  # files, first byte
        count = 0
        for group in groups:
            if not isinstance(group, dict) or not isinstance(group.get("weights"), list):
                raise ModelFormatError(f"{where}: a weight group must have paths and weights")
            paths = group.get("paths")
            count += len(paths) if isinstance(paths, list) else 1
            if count > MAX_FILES:
                raise ModelFormatError(f"{where}: more than {MAX_FILES} weight files")
            files, position = _files(paths, folder, where), 0
            for weight in group["weights"]:
                name, shape = _weight(weight, where)
                if name in self._shapes:
                    raise ModelFormatError(f"{where}: weight {show(name)} occurs twice")
                self._shapes[name], self._places[name] = shape, (files, position)
                position += 4 * math.prod(shape)
            held = sum(size for _, size in files)
            if held != position:
                raise ModelFormatError(
                    f"{where}: {show([path.name for path, _ in files])} hold {held} bytes, "
                    f"their weights take {position}"
                )
        self.left = set(self._shapes)  # not taken yet

    def take(self, name: str) -> Array:
        """One weight, float32; each may be taken once."""
        if name not in self.left:
            missing = "missing" if name not in self._shapes else "used by two layers"
            raise ModelFormatError(f"{self.where}: weight {show(name)} is {missing}")
        self.left.discard(name)
        files, begin = self._places[name]
        end = begin + 4 * math.prod(self._shapes[name])
        data = bytearray()
        for path, length in files:
            if begin < length and end > 0:
                with open_file(path) as stream:
                    stream.seek(max(begin, 0))
                    data += stream.read(min(end, length) - max(begin, 0))
            begin, end = begin - length, end - length
        shape = self._shapes[name]
        if len(data) != 4 * math.prod(shape):
            raise ModelFormatError(
                f"{self.where}: the file of weight {show(name)} became shorter while it was read"
            )
        return np.frombuffer(data, "<f4").reshape(shape).astype(np.float32, copy=False)


def _files(paths: Any, folder: Path, where: str) -> list[tuple[Path, int]]:
    """The files of a weight group with their sizes; none may lie outside the model's folder."""
    if not isinstance(paths, list) or not paths or not all(isinstance(p, str) for p in paths):
        raise ModelFormatError(f"{where}: paths of a weight group must be texts, got {show(paths)}")
    home = folder.resolve()
    files: list[tuple[Path, int]] = []
    seen: set[tuple[int, int]] = set()  # by device and inode: links make two names of one file
    for text in paths:
        parts = text.split("/")
        bad = not text or "\0" in text or "\\" in text or ":" in text or text.startswith("/")
        if bad or ".." in parts or len(text) > MAX_PATH:
            why = "leaves the folder" if len(text) <= MAX_PATH else f"is longer than {MAX_PATH}"
            raise ModelFormatError(f"{where}: weight path {show(text)} {why}")
        path = folder / text
        try:
            inside, found = path.resolve().is_relative_to(home), path.is_file()
            about = path.stat() if found else None
        except (OSError, ValueError, RuntimeError) as error:  # links in a ring, no name of this system
            raise ModelFormatError(
                f"{where}: weight path {show(text)} cannot be followed: {show(str(error))}"
            ) from None
        if not inside:
            raise ModelFormatError(f"{where}: weight path {show(text)} is a link out of the folder")
        if about is None:
            raise ModelFormatError(f"{where}: weight file {show(text)} is missing")
        if (about.st_dev, about.st_ino) in seen:
            raise ModelFormatError(f"{where}: weight file {show(text)} is named twice")
        seen.add((about.st_dev, about.st_ino))
        files.append((path, about.st_size))
    return files


def _weight(weight: Any, where: str) -> tuple[str, Shape]:
    name = weight.get("name") if isinstance(weight, dict) else None
    if not isinstance(name, str):
        raise ModelFormatError(f"{where}: a weight without a name: {show(weight)}")
    if "quantization" in weight:
        raise ModelFormatError(
            f"{where}: weight {show(name)} is quantized, expected float32; "
            "convert the model again without --quantize_..."
        )
    if weight.get("dtype") != "float32":
        raise ModelFormatError(
            f"{where}: weight {show(name)}: dtype {show(weight.get('dtype'))}, expected float32"
        )
    return name, read_shape(weight.get("shape"), f"{where}: weight {show(name)}")


def read_shape(shape: Any, where: str) -> Shape:
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= 4
        or not all(is_whole(n, 1, 1 << 20) for n in shape)
    ):
        raise ModelFormatError(f"{where}: shape {show(shape)}, expected 1 to 4 sizes")
    return tuple(shape)
