"""Builders for the tests of models and checkpoints: random models, files taken apart and put
together again, and the network restated in PyTorch float64 from the core's layer list alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from pix2pix_fast import model as model_file
from pix2pix_fast.architecture import Architecture
from pix2pix_fast.model import Model
from pix2pix_fast.tensorfile import Entry


def random_model(
    architecture: Architecture, seed: int = 0, biases: str = "all", card: Any = None
) -> Model:
    """Weights that keep the pictures varied. biases: "all", or "last" for dN's alone."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in architecture.shapes().items():
        layer, *_, part = name.split(".")
        value = rng.normal(0, 0.1, shape)
        if len(shape) == 4:
            value *= 14 / np.sqrt(shape[0 if layer[0] == "d" else 1] * 4)
        elif name.endswith(".norm.weight"):
            value += 1
        elif part == "var":
            value = np.exp(value * 5)
        elif name == f"{layer}.bias" and biases == "last" and layer != f"d{architecture.depth}":
            continue
        tensors[name] = value.astype(np.float32)
    return Model(architecture, tensors, {"name": "random"} if card is None else card)


# Files of ours in parts ---------------------------------------------------------------------------


def take_apart(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """(header without metadata, the metadata's document, tensor bytes) of one of our files."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    return header, json.loads(metadata["pix2pix_fast"]), data[8 + length :]


def put_together(header: dict[str, Any], document: Any, blob: bytes) -> bytes:
    """The reverse, with a digest that fits: what it breaks is not found by the digest."""
    text = document if isinstance(document, str) else compact(document)
    entries = {
        name: Entry(str(e.get("dtype")), tuple(e.get("shape", ())), 0, 0)
        for name, e in header.items()
        if isinstance(e, dict) and isinstance(e.get("shape"), list)
    }
    metadata = {"pix2pix_fast": text, "digest": model_file.digest(text, entries)}
    return with_header(compact({"__metadata__": metadata, **header}).encode(), blob)


def with_header(header: bytes, blob: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + blob


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# The network, once more ---------------------------------------------------------------------------


def run_layers(layers: list[dict[str, Any]], tensors: Mapping[str, np.ndarray], x: Any) -> Any:
    """One picture (1, ci, h, w) through the layer list in float64; no dropout."""
    import torch
    import torch.nn.functional as F

    def tensor(name: str) -> Any:
        return torch.from_numpy(np.array(tensors[name], np.float64)) if name in tensors else None

    outputs: dict[str, Any] = {}
    x = x.double()
    for layer in layers:
        name = layer["name"]
        if layer["skip"]:
            x = torch.cat([outputs[layer["skip"]], x], 1)
        if layer["slope"] != 1.0:
            x = F.leaky_relu(x, layer["slope"])
        conv = F.conv2d if layer["op"] == "conv4x4s2" else F.conv_transpose2d
        x = conv(x, tensor(f"{name}.weight"), tensor(f"{name}.bias"), 2, 1)
        if layer["norm"]:
            var, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
            x = (x - mean) / torch.sqrt(var + layer["eps"])
            if f"{name}.norm.weight" in tensors:
                x = x * tensor(f"{name}.norm.weight")[:, None, None]
                x = x + tensor(f"{name}.norm.bias")[:, None, None]
        outputs[name] = x
    return torch.tanh(x) if layers[-1]["tanh"] else x


def run_model(model: Model, x: Any, norm: str = "image") -> Any:
    return run_layers(model.layers(norm), model.core_tensors(norm), x)
