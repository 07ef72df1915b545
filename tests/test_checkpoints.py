"""Other people's files: every variant built here, compared with its own network; hostile ones refused."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import random_model, run_model

from pix2pix_fast import checkpoints
from pix2pix_fast.architecture import Architecture
from pix2pix_fast.errors import BackendUnavailable, ModelFormatError
from pix2pix_fast.model import Model, load, save

SOURCES = Path(__file__).parents[1] / "pix2pix_fast"
ROUNDING = 1e-5  # float32 weights against the same in float64; the nets' gain stays near 1


def state_of(**kinds: Any) -> tuple[Any, dict[str, Any]]:
    """A varied junyanz U-Net and its state dict."""
    junyanz = pytest.importorskip("junyanz_unet")
    net = junyanz.varied(junyanz.UnetGenerator(**{"ngf": 2, "num_downs": 5, **kinds}))
    return net, dict(net.state_dict())


def write(state: Any, path: Path, **options: Any) -> Path:
    import torch

    torch.save(state, path, **options)
    return path


# junyanz's networks, end to end -------------------------------------------------------------------

NETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "unet_256": ({"num_downs": 8, "ngf": 1}, {"depth": 8, "dropout": ("d2", "d3", "d4")}),
    "unet_128": ({"num_downs": 7, "ngf": 1}, {"depth": 7, "dropout": ("d2", "d3")}),
    "5 levels": ({}, {"depth": 5, "dropout": ()}),
    "9 levels": ({"num_downs": 9, "ngf": 1}, {"depth": 9, "ngf": 1}),
    "ngf 5": ({"ngf": 5}, {"ngf": 5}),
    "gray to 2": ({"input_nc": 1, "output_nc": 2}, {"in_channels": 1, "out_channels": 2}),
    "instance": ({"norm": "instance"}, {"norm": "image", "affine": False}),
    "affine instance": ({"norm": "affine"}, {"norm": "image", "affine": True}),
    "no norm": ({"norm": "none"}, {"norm": "none"}),
    "no skips": ({"skips": False}, {"skips": False}),
    "bottleneck": ({"bottleneck_norm": True}, {"bottleneck_norm": True}),
}


@pytest.mark.parametrize("name", NETS)
def test_junyanz_networks_compute_the_same(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """norm="image" is his test program (training mode, one picture), "running" his --eval."""
    torch = pytest.importorskip("torch")
    kinds, expected = NETS[name]
    net, state = state_of(**kinds)
    path = write(state, tmp_path / "latest_net_G.pth")
    with caplog.at_level(logging.INFO, "pix2pix_fast"):
        model = checkpoints.read(path)
    a = model.architecture
    assert {key: getattr(a, key) for key in expected} == expected
    assert model.card["dropout_places"] == "assumed"
    assert model.card["inferred"] in caplog.text and "assumed: dropout after" in caplog.text
    assert f"{a.depth} levels, ngf {a.ngf}, {a.in_channels} -> {a.out_channels}" in caplog.text
    assert ("norm (assumed, as" in caplog.text) == (kinds.get("norm") in ("instance", "none"))

    net = net.double().train()
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    # 2x2 at the bottleneck: PyTorch's norms refuse one value per channel
    x = torch.randn(1, a.in_channels, *[2 * a.multiple] * 2, dtype=torch.float64).clamp(-2, 2)
    saved = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        image = net(x.clone())
        net.load_state_dict(saved)  # training mode moved the running statistics
        running = net.eval()(x.clone())
    assert float(image.std()) > 0.01
    assert torch.allclose(run_model(model, x), image, rtol=0, atol=ROUNDING)
    if a.norm == "running":
        assert torch.allclose(run_model(model, x, "running"), running, rtol=0, atol=ROUNDING)
        assert not torch.allclose(running, image, rtol=0, atol=0.01)
    else:
        with pytest.raises(ValueError, match="needs stored statistics"):
            model.core_tensors("running")


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def without(state: dict[str, Any], part: str) -> dict[str, Any]:
    return {name: value for name, value in state.items() if part not in name}


def with_old_statistics(state: dict[str, Any]) -> dict[str, Any]:
    """Instance norm as saved before PyTorch 0.4."""
    import torch

    result = dict(state)
    for name in state:
        block, _, rest = name.rpartition("model.")
        index, _, part = rest.partition(".")
        inner = f"{block}model.3.model.1.weight" not in state
        normed = {"1": "2", "5": "6"} if not inner else {"3": "4"}
        if part == "weight" and block.count("model.") >= 2 and index in normed:
            width = state[name].shape[0 if index == "1" else 1]
            where = f"{block}model.{normed[index]}."
            result[where + "running_mean"] = torch.full((width,), 7.0)
            result[where + "running_var"] = torch.full((width,), 7.0)
            result[where + "num_batches_tracked"] = torch.tensor(3)
    return result


def half(state: dict[str, Any], kind: str) -> dict[str, Any]:
    import torch

    dtype = getattr(torch, kind)
    return {n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}


def inside_itself(state: dict[str, Any]) -> dict[str, Any]:
    value: dict[str, Any] = {"netG": state}
    value["again"] = value
    return value


def with_metadata(state: dict[str, Any]) -> Any:
    from collections import OrderedDict

    result = OrderedDict(state)
    result._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return result


Change = Callable[[dict[str, Any]], Any]
VARIANTS: dict[str, tuple[Change, str]] = {
    "DataParallel": (lambda s: prefixed(s, "module."), "batch"),
    "compiled": (lambda s: prefixed(s, "_orig_mod."), "batch"),
    "both": (lambda s: prefixed(s, "_orig_mod.module."), "batch"),
    "both, other order": (lambda s: prefixed(s, "module._orig_mod."), "batch"),
    "netG.": (lambda s: prefixed(s, "netG."), "batch"),
    "generator.": (lambda s: prefixed(s, "generator."), "batch"),
    "both nets flat": (
        lambda s: {**prefixed(s, "netG.module."), "netD.model.0.weight": s["model.model.0.weight"]},
        "batch",
    ),
    "state_dict": (lambda s: {"epoch": 3, "state_dict": s}, "batch"),
    "netG and netD": (lambda s: {"netD": {"x": s["model.model.0.weight"]}, "netG": s}, "batch"),
    "with optimiser": (
        lambda s: {"optimizer": {"state": {}, "param_groups": [{"lr": 2e-4}]}, "generator": s},
        "batch",
    ),
    "any one name": (lambda s: {"weights": {"ema": s}, "step": 1}, "batch"),
    "Lightning": (
        lambda s: {
            "state_dict": {
                **prefixed(s, "model.generator."),
                "model.discriminator.0.weight": s["model.model.0.weight"],
                "vgg_loss.slice1.0.weight": s["model.model.0.weight"],
            },
            "hyper_parameters": {"betas": (0.5, 0.999)},
        },
        "batch",
    ),
    "any prefix": (lambda s: prefixed(s, "unet.module."), "batch"),
    "averaged": (lambda s: {"n_averaged": _one(), **prefixed(s, "module.")}, "batch"),
    "averaged beside": (
        lambda s: {**prefixed(s, "netG."), **prefixed(zeros(s), "netG_ema.")}, "batch"),
    "a U-Net as discriminator": (
        lambda s: {**prefixed(zeros(s), "netD."), **prefixed(s, "net.")}, "batch"),
    "dicts of any name": (
        lambda s: {"gen_state_dict": s, "disc_state_dict": {"0.weight": _one()}, "step": _one()},
        "batch",
    ),
    "a dict in itself": (inside_itself, "batch"),
    "params and params_ema": (lambda s: {"params_ema": zeros(s), "params": s}, "batch"),
    "shorter root": (lambda s: {n.removeprefix("model."): v for n, v in s.items()}, "batch"),
    "longer root": (lambda s: prefixed(s, "model."), "batch"),
    "no num_batches_tracked": (lambda s: without(s, "num_batches_tracked"), "batch"),
    "_metadata": (with_metadata, "batch"),
    "old instance statistics": (with_old_statistics, "instance"),
    "float16": (lambda s: half(s, "float16"), "batch"),
    "bfloat16": (lambda s: half(s, "bfloat16"), "batch"),
    "float64": (lambda s: half(s, "float64"), "batch"),
    "requires grad": (
        lambda s: {n: v.requires_grad_() if v.ndim == 4 else v for n, v in s.items()},
        "batch",
    ),
    "channels last": (
        lambda s: {n: v.contiguous(memory_format=_last(v)) for n, v in s.items()},
        "batch",
    ),
    "shuffled": (lambda s: dict(sorted(s.items(), key=lambda item: hash(item[0]))), "batch"),
}


def zeros(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value * 0 for name, value in state.items()}


def _one() -> Any:
    import torch

    return torch.tensor([1.0])


def _last(value: Any) -> Any:
    import torch

    return torch.channels_last if value.ndim == 4 else torch.contiguous_format


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_state_dicts_load_alike(name: str, legacy: bool, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    change, norm = VARIANTS[name]
    _, state = state_of(norm=norm)
    expected = checkpoints.read(write(state, tmp_path / "plain.pth"))
    changed = change(dict(state))
    path = write(changed, tmp_path / "v.pth", _use_new_zipfile_serialization=not legacy)
    found = checkpoints.read(path)
    assert found.architecture == expected.architecture
    assert list(found.tensors) == list(expected.tensors)
    tolerance = {"float16": 2**-11, "bfloat16": 2**-8}.get(name, 0.0)
    for tensor, value in expected.tensors.items():
        assert np.allclose(found.tensors[tensor], value, rtol=tolerance, atol=tolerance * 1e-2)
    if norm == "instance":
        assert not any("mean" in tensor for tensor in found.tensors)


def test_junyanz_names_in_foreign_safetensors(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    _, state = state_of()
    expected = checkpoints.read(write(state, tmp_path / "a.pth"))
    changes = (
        ("plain", dict),
        ("double", lambda s: half(s, "float64")),
        ("bf16", lambda s: half(s, "bfloat16")),
    )
    for name, change in changes:
        save_file(prefixed(change(state), "module."), tmp_path / f"{name}.safetensors")
        found = checkpoints.read(tmp_path / f"{name}.safetensors")
        assert found.architecture == expected.architecture
        for tensor, value in expected.tensors.items():
            assert np.allclose(found.tensors[tensor], value, atol=0.01 if name == "bf16" else 0)


@pytest.mark.filterwarnings("error")
def test_doubles_beyond_float32_are_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    state = half(state_of()[1], "float64")
    state["model.model.0.weight"] *= 1e300
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ModelFormatError, match="model.model.0.weight.* has NaN or infinite values"):
        checkpoints.read(tmp_path / "a.safetensors")


def test_deep_nests_of_names_cost_nothing() -> None:
    """A name of 60 KB took a gigabyte of prefixes of itself."""
    deep = "model.1.model." + "3.model." * 8000 + "0.weight"
    shapes = {"model.1.model.1.weight": (8, 3, 4, 4), deep: (8, 8, 4, 4)}
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError, match="a name longer than 512"):
            checkpoints.infer(shapes, "x")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


# What is no U-Net, said by name -------------------------------------------------------------------


def resnet_state(blocks: int) -> dict[str, Any]:
    import torch

    state = {"model.1.weight": torch.zeros(8, 3, 7, 7), "model.4.weight": torch.zeros(16, 8, 3, 3)}
    for k in range(blocks):
        for part in (1, 5):
            state[f"model.{10 + k}.conv_block.{part}.weight"] = torch.zeros(16, 16, 3, 3)
    return state


def patch_state() -> dict[str, Any]:
    import torch

    widths = [6, 8, 16, 32, 64, 1]
    return {
        f"model.{index}.weight": torch.zeros(co, ci, 4, 4)
        for index, ci, co in zip((0, 2, 5, 8, 11), widths, widths[1:], strict=False)
    }


def pixel_state() -> dict[str, Any]:
    import torch

    return {f"net.{k}.weight": torch.zeros(4, 4, 1, 1) for k in (0, 2, 5)}


def broken(change: Callable[[dict[str, Any]], Any], **kinds: Any) -> Callable[[], Any]:
    def build() -> Any:
        _, state = state_of(**kinds)
        change(state)
        return state

    return build


B1 = "model.model.1.model."
INNER = "model.model.1.model.3.model.3.model.3.model."


def set_nan(state: dict[str, Any]) -> None:
    state[B1 + "1.weight"][0, 0, 0, 0] = float("nan")


def _expanded() -> Any:
    import torch

    return torch.zeros(1).expand(4, 2, 4, 4)


def _whole_numbers() -> Any:
    import torch

    return torch.zeros(4, 2, 4, 4, dtype=torch.int8)


def _sparse() -> Any:
    import torch

    return torch.zeros(4, 2, 4, 4).to_sparse()


def _kernels() -> Any:
    import torch

    return torch.zeros(1, 1, 4, 4)


def _nested() -> Any:
    import torch

    with warnings.catch_warnings():  # "in prototype stage"
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)])


def _in_parts(way: str) -> Any:
    """A U-Net's state dict whose weights a function of torch.nn.utils has replaced by parts."""
    import torch
    from torch.nn.utils import parametrizations, prune

    split = {
        "prune": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
        "spectral": torch.nn.utils.spectral_norm,
        "weight": torch.nn.utils.weight_norm,
        "parametrized": parametrizations.spectral_norm,
    }[way]
    net = state_of()[0]
    for layer in list(net.modules()):
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            with warnings.catch_warnings():  # of an old way that files are still saved in
                warnings.simplefilter("ignore")
                split(layer)
    return net.state_dict()


def _give(value: Any, name: str, what: Any) -> Any:
    setattr(value, name, what)
    return value


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "ResNet-9": (lambda: resnet_state(9), "is a ResNet generator with 9 blocks; this engine runs"),
    "ResNet-6": (lambda: prefixed(resnet_state(6), "module."), "ResNet generator with 6 blocks"),
    "PatchGAN": (patch_state, "is a PatchGAN discriminator with 3 strided layers"),
    "pixel": (pixel_state, "is a pixel discriminator"),
    "D under a name": (lambda: prefixed(patch_state(), "module.netD."), "PatchGAN discriminator with 3"),
    "two directions": (
        lambda: {**prefixed(state_of()[1], "netG_A."), **prefixed(state_of()[1], "netG_B.")},
        r"holds 2 U-Nets, under 'netG_A.model.model.', 'netG_B.model.model.'; save the state dict of one",
    ),
    "two dicts": (
        lambda: {"g": {"net": state_of()[1]}, "g_ema": state_of()[1]},
        "holds 2 U-Nets, as 'g_ema', 'g.net'; save the state dict of one alone",
    ),
    "a second stage": (
        lambda: {**prefixed(state_of()[1], "unet."), "refine.0.weight": _kernels()},
        "'refine.0.weight' does not belong to a U-Net generator; if the generator works without it",
    ),
    "a second stage inside": (
        lambda: {**prefixed(state_of()[1], "netG.unet."), "netG.refine.0.weight": _kernels()},
        "'netG.refine.0.weight' does not belong to a U-Net",
    ),
    "pruned": (lambda: _in_parts("prune"), "in parts, as .*'model.model.0.weight_mask'.*utils.prune.remove on"),
    "spectral norm": (lambda: _in_parts("spectral"), "'model.model.0.weight_orig'.*utils.remove_spectral_norm"),
    "weight norm": (lambda: _in_parts("weight"), "'model.model.0.weight_g'.*utils.remove_weight_norm"),
    "spectral norm, new": (lambda: _in_parts("parametrized"), "utils.parametrize.remove_parametrizations on"),
    "other": (lambda: {"fc.weight": _expanded()}, "of no network that is known, .* 'fc.weight'"),
    "empty": (dict, "holds no generator's tensors"),
    "number": (lambda: 3, "holds 'int', expected a state dict"),
    "list": (lambda: [_expanded()], r"holds 'list', expected a state dict; .*net.state_dict\(\)"),
    "two nets": (lambda: {"a": {"x": 1}, "b": {"y": 1}}, "only the entries 'a', 'b'; save the"),
    "missing conv": (
        broken(lambda s: s.pop(B1 + "5.weight")),
        "'model.model.1.model.5.weight' is missing: it is our d4.weight",
    ),
    "missing norm": (
        broken(lambda s: s.pop(B1 + "2.weight")),
        "'model.model.1.model.2.weight' is missing: it is our e2.norm.weight",
    ),
    "missing variance": (
        broken(lambda s: s.pop(B1 + "6.running_var")),
        "6.running_var' is missing: it is our d4.norm.var",
    ),
    "no norm in one place": (
        broken(lambda s: [s.pop(n) for n in list(s) if n.startswith(B1 + "2.")]),
        "norms differ in kind: e2",
    ),
    "extra": (
        broken(lambda s: s.update({B1 + "7.gamma": s[B1 + "2.weight"]})),
        "7.gamma' does not belong to a U-Net",
    ),
    "kernel 3x3": (
        broken(
            lambda s: s.update(
                {"model.model.0.weight": s["model.model.0.weight"][..., :3, :3].clone()}
            )
        ),
        "'model.model.0.weight' has shape .*, expected 4x4",
    ),
    "odd width": (
        broken(lambda s: s.update({INNER + "1.weight": s[INNER + "1.weight"][:15].clone()})),
        r"3.model.1.weight' has shape \(15, 16, 4, 4\), but as e5.weight of a U-Net with ngf 2",
    ),
    "too wide": (
        broken(lambda s: s.update({"model.model.0.weight": s["model.model.0.weight"].repeat(2049, 1, 1, 1)})),
        "ngf must be a whole number from 1 to 4096, got 4098",
    ),
    "some biases": (
        broken(lambda s: s.update({B1 + "1.bias": s["model.model.3.bias"]}), norm="none"),
        "it cannot be told",
    ),
    "NaN": (broken(set_nan), "model.1.weight.*has NaN"),
    "negative variance": (
        broken(lambda s: s[B1 + "2.running_var"].fill_(-1)),
        "variance with negative",
    ),
    "stride 0": (
        broken(lambda s: s.update({B1 + "1.weight": _expanded()})),
        "is larger than its data",
    ),
    "int8": (broken(lambda s: s.update({B1 + "1.weight": _whole_numbers()})), "dtype torch.int8"),
    "sparse": (
        broken(lambda s: s.update({B1 + "1.weight": _sparse()})),
        "asks for 'torch._utils._rebuild_sparse_tensor', which no state dict needs",
    ),
    "infinite in float32": (
        broken(lambda s: s.update({B1 + "1.weight": s[B1 + "1.weight"].double() * 1e300})),
        "has NaN or infinite",
    ),
    "many digits": (lambda: {f"model.{'1' * 450}.weight": _kernels()}, "of no network that is known"),
    "5000 digits": (lambda: {f"model.{'1' * 5000}.weight": _kernels()}, "a name longer than 512"),
    "many prefixes": (lambda: {"G." * 20_000: _kernels()}, "a name longer than 512"),
    "nested": (
        broken(lambda s: s.update({B1 + "1.weight": _nested()})),
        "asks for 'torch._utils._rebuild_nested_tensor'",
    ),
    "attributes": (broken(lambda s: _give(s[B1 + "1.weight"], "detach", 5)), "asks for 'torch"),
    "ten levels": (broken(lambda s: None, num_downs=10, ngf=1), "more than 9 levels of U-Net blocks"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_state_dicts_that_are_no_unet_are_refused_by_name(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    build, message = REFUSED[name]
    path = write(build(), tmp_path / "net.pth")
    with pytest.raises(ModelFormatError, match=message) as caught:
        checkpoints.read(path)
    assert str(caught.value).startswith(str(path))


def test_a_dict_with_items_of_its_own_is_a_dict(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    value = with_metadata({"a": {"w": 1}, "b": {"w": 1}})
    value.extra = 5
    path = write(value, tmp_path / "net.pth")
    path.write_bytes(path.read_bytes().replace(b"extra", b"items"))
    with pytest.raises(ModelFormatError, match="only the entries 'a', 'b'"):
        checkpoints.read(path)


def test_tensors_that_cannot_be_asked_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    path = write(state_of()[1], tmp_path / "net.pth")

    def fail(*_: Any) -> None:
        raise RuntimeError("Internal error: no shape\n(advice)")

    monkeypatch.setattr(checkpoints, "_check_tensor", fail)
    with pytest.raises(ModelFormatError, match="cannot be read: RuntimeError: .*no shape'$"):
        checkpoints.read(path)


def test_a_missing_or_old_torch_costs_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    _, state = state_of()
    path = write(state, tmp_path / "net.pth")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(
        BackendUnavailable, match="2.10 or newer .* found 2.9.1.*pip install"
    ) as old:
        checkpoints.read(path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendUnavailable, match="needs torch 2.10 or newer: pip install") as none:
        checkpoints.read(path)
    assert "\n" not in str(old.value) + str(none.value)


# TensorFlow.js ------------------------------------------------------------------------------------

FACES = ["weights/face2labels_unet256_ngf16", "weights/labels2face_unet256_ngf16"]


def keras_run(folder: Path, x: np.ndarray) -> Any:
    """The folder's graph node by node in float64, straight from the file: (h, w, c) to (h, w, c)."""
    import torch
    import torch.nn.functional as F

    document = json.loads((folder / "model.json").read_text())
    weights: dict[str, Any] = {}
    for group in document["weightsManifest"]:
        data = b"".join((folder / path).read_bytes() for path in group["paths"])
        for weight in group["weights"]:
            count = int(np.prod(weight["shape"]))
            value = np.frombuffer(data[: 4 * count], "<f4").reshape(weight["shape"])
            weights[weight["name"]], data = (
                torch.from_numpy(value.astype(np.float64)),
                data[4 * count :],
            )
    values: dict[str, Any] = {}
    config = document["modelTopology"]["model_config"]["config"]
    for layer in config["layers"]:
        name, kind, c = layer["name"], layer["class_name"], layer["config"]
        if kind == "InputLayer":
            values[name] = torch.from_numpy(x.astype(np.float64)).permute(2, 0, 1)[None]
            continue
        wires = layer["inbound_nodes"][0]
        inputs = [values[wire[0]] for wire in wires]
        y = inputs[0]
        if kind == "Conv2D":
            y = F.conv2d(
                F.pad(y, (1, 1, 1, 1)), weights[f"{name}/kernel"].permute(3, 2, 0, 1), stride=2
            )
            y = y + weights[f"{name}/bias"][:, None, None]
        elif kind == "Conv2DTranspose":
            kernel = weights[f"{name}/kernel"].permute(3, 2, 0, 1)
            y = F.conv_transpose2d(y, kernel, stride=2)[:, :, 1:-1, 1:-1]
            y = y + weights[f"{name}/bias"][:, None, None]
        elif kind == "BatchNormalization":
            mean, var = weights[f"{name}/moving_mean"], weights[f"{name}/moving_variance"]
            if wires[0][3].get("training"):
                mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
            y = (y - mean[:, None, None]) / torch.sqrt(var + c["epsilon"])[:, None, None]
            if c["scale"]:
                y = y * weights[f"{name}/gamma"][:, None, None]
            if c["center"]:
                y = y + weights[f"{name}/beta"][:, None, None]
        elif kind == "Concatenate":
            y = torch.cat(inputs, 1)
        elif kind == "LeakyReLU":
            y = F.leaky_relu(y, round(c["alpha"], 7))  # saved as the float32 nearest to 0.2
        elif kind == "ReLU":
            y = torch.relu(y)
        elif kind == "Activation":
            y = {"relu": torch.relu, "tanh": torch.tanh}[c["activation"]](y)
        else:
            assert kind == "Dropout"
        values[name] = y
    return values[config["output_layers"][0][0]][0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", FACES)
@pytest.mark.parametrize("file", ["", "model.json"])
def test_tensorflowjs_folders_compute_the_same(
    name: str, file: str, shared_data: Callable[[str], Path], rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    folder = shared_data(name)
    model = checkpoints.read(folder / file)
    a = model.architecture
    assert (a.depth, a.ngf, a.in_channels, a.out_channels) == (8, 16, 3, 3)
    assert a.norm == "image" and a.eps == 1e-3 and a.bottleneck_norm and a.skips and a.tanh
    assert a.dropout == ("d1", "d2", "d3") and model.card["dropout_places"] == "recorded"
    assert model.card["size"] == [256, 256]
    count = sum(value.size for value in model.tensors.values())
    # the published count holds the moving statistics too: two for each normed channel
    normed = sum(model.tensors[f"{layer}.bias"].size for layer in a.normed())
    assert count + 2 * normed in (3_408_803, 3_408_803 + 2 * normed)
    x = np.kron(rng.uniform(-1, 1, (16, 16, 3)), np.ones((16, 16, 1)))
    expected = keras_run(folder, x)
    found = run_model(model, torch.from_numpy(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert expected.std() > 0.05
    assert np.abs(found - expected).max() < 1e-9  # the same float32 weights, both in float64


@pytest.fixture(scope="module")
def small_tfjs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layers folder of three levels, written here in Keras' way."""
    return write_tfjs(tmp_path_factory.mktemp("tfjs"))


def write_tfjs(
    folder: Path,
    *,
    moving: bool = False,
    training: bool = True,
    encoder_first: bool = False,
    skips: bool = True,
    activated: bool = False,
    affine: bool = True,
) -> Path:
    """ngf 2, widths 2, 4, 8; norms after all but the first and last; two files per group.

    activated: the skips come from behind the LeakyReLU, which the ReLU of the decoder makes the same.
    """
    rng = np.random.default_rng(0)
    layers: list[dict[str, Any]] = []
    weights: list[tuple[str, np.ndarray]] = []

    def add(kind: str, name: str, inputs: list[str], options: Any = None, **config: Any) -> str:
        wires = [[[n, 0, 0, options or {}] for n in inputs]] if inputs else []
        config["name"] = name
        layers.append({"class_name": kind, "name": name, "config": config, "inbound_nodes": wires})
        return name

    def conv(kind: str, name: str, source: str, ci: int, co: int, norm: bool) -> str:
        shape = (4, 4, ci, co) if kind == "Conv2D" else (4, 4, co, ci)
        weights.append((f"{name}/kernel", rng.normal(0, 0.2, shape)))
        weights.append((f"{name}/bias", rng.normal(0, 0.2, co)))
        y = add(
            kind,
            name,
            [source],
            filters=co,
            kernel_size=[4, 4],
            strides=[2, 2],
            padding="same",
            data_format="channels_last",
            dilation_rate=[1, 1],
            activation="linear",
            use_bias=True,
        )
        if not norm:
            return y
        number = f"batch_normalization_{sum(layer['class_name'][:5] == 'Batch' for layer in layers) + 1}"
        for part, value in (
            ("gamma", rng.normal(1, 0.1, co)),
            ("beta", rng.normal(0, 0.1, co)),
            ("moving_mean", rng.normal(0, 0.1, co) if moving else np.zeros(co)),
            ("moving_variance", rng.uniform(0.5, 2, co) if moving else np.ones(co)),
        ):
            if affine or part.startswith("moving"):
                weights.append((f"{number}/{part}", value))
        options = {"training": 1} if training else {}
        return add(
            "BatchNormalization",
            number,
            [y],
            options,
            axis=3,
            epsilon=1e-3,
            center=affine,
            scale=affine,
        )

    x = add("InputLayer", "input_1", [], batch_input_shape=[None, 8, 8, 3], dtype="float32")
    e1 = conv("Conv2D", "down_a", x, 3, 2, False)
    e2 = conv("Conv2D", "down_b", add("LeakyReLU", "l1", [e1], alpha=0.2), 2, 4, True)
    e3 = conv("Conv2D", "down_c", add("LeakyReLU", "l2", [e2], alpha=0.20000000298), 4, 8, True)
    y = conv(
        "Conv2DTranspose", "up_c", add("Activation", "r1", [e3], activation="relu"), 8, 4, True
    )
    y = add("Dropout", "drop", [y], rate=0.5)
    e1, e2 = ("l1", "l2") if activated else (e1, e2)
    for name, skip, ci, co in (("up_b", e2, 4, 2), ("up_a", e1, 2, 3)):
        if skips:
            inputs = [skip, y] if encoder_first else [y, skip]
            y = add("Concatenate", f"concat_{name}", inputs, axis=3)
        y = add("ReLU", f"relu_{name}", [y], max_value=None, negative_slope=0.0, threshold=0.0)
        y = conv("Conv2DTranspose", name, y, ci * (2 if skips else 1), co, name == "up_b")
    y = add("Activation", "end", [y], activation="tanh")
    data = b"".join(np.asarray(v, "<f4").tobytes() for _, v in weights)
    (folder / "sub").mkdir(parents=True)
    (folder / "shard1").write_bytes(data[:1000])
    (folder / "sub" / "shard2").write_bytes(data[1000:])
    manifest = [{"name": n, "shape": list(v.shape), "dtype": "float32"} for n, v in weights]
    config = {
        "name": "m",
        "layers": layers,
        "input_layers": [["input_1", 0, 0]],
        "output_layers": [[y, 0, 0]],
    }
    document = {
        "modelTopology": {
            "keras_version": "2.1.6",
            "model_config": {"class_name": "Model", "config": config},
        },
        "weightsManifest": [{"paths": ["shard1", "sub/shard2"], "weights": manifest}],
    }
    (folder / "model.json").write_text(json.dumps(document))
    return folder


TFJS_KINDS = [
    {},
    {"moving": True},
    {"moving": True, "training": False},
    {"encoder_first": True},
    {"skips": False},
    {"activated": True},
    {"affine": False},
]


@pytest.mark.parametrize("kinds", TFJS_KINDS, ids=str)
def test_tensorflowjs_graphs_written_here(
    kinds: dict[str, Any], tmp_path: Path, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    folder = write_tfjs(tmp_path / "m", **kinds)
    model = checkpoints.read(folder)
    a = model.architecture
    assert a.norm == ("running" if kinds.get("moving") else "image")
    assert a.dropout == ("d1",) and a.skips == kinds.get("skips", True)
    assert a.affine == kinds.get("affine", True)
    assert checkpoints.read(folder / "model.json").architecture == a
    x = rng.uniform(-1, 1, (16, 16, 3))
    norm = "image" if kinds.get("training", True) else "running"
    found = run_model(model, torch.from_numpy(x).permute(2, 0, 1)[None], norm)[0].permute(1, 2, 0)
    bound = 1e-9 if norm == "image" else ROUNDING  # the fold rounds weights to float32
    assert np.abs(found.numpy() - keras_run(folder, x)).max() < bound
    if kinds.get("moving"):
        note = "own statistics" if kinds.get("training", True) else "norm='running'"
        assert note in model.card["inferred"]


def layer_of(document: Any, name: str) -> Any:
    layers = document["modelTopology"]["model_config"]["config"]["layers"]
    return next(layer for layer in layers if layer["name"] == name)


def config_case(name: str, key: str, value: Any) -> Callable[[Any, Path], Any]:
    return lambda d, f: layer_of(d, name)["config"].__setitem__(key, value)


def wire_case(name: str, inputs: list[str]) -> Callable[[Any, Path], Any]:
    return lambda d, f: layer_of(d, name).__setitem__(
        "inbound_nodes", [[[n, 0, 0, {}] for n in inputs]]
    )


def paths_case(*paths: Any) -> Callable[[Any, Path], Any]:
    return lambda d, f: d["weightsManifest"][0].__setitem__("paths", list(paths))


def weight_case(key: str, value: Any) -> Callable[[Any, Path], Any]:
    return lambda d, f: d["weightsManifest"][0]["weights"][0].__setitem__(key, value)


def add_layer(d: Any, f: Path) -> None:
    layer = {"class_name": "Dropout", "name": "alone", "config": {"rate": 0.5}, "inbound_nodes": []}
    d["modelTopology"]["model_config"]["config"]["layers"].append(layer)


def drop_e2(d: Any, f: Path) -> None:
    add_layer(d, f)
    wire_case("alone", ["batch_normalization_1"])(d, f)
    wire_case("l2", ["alone"])(d, f)


def link_out(d: Any, f: Path) -> None:
    outside = f.parent / "outside"
    (f / "shard1").rename(outside)
    (f / "shard1").symlink_to(outside)


def link_round(document: Any, folder: Path) -> None:
    (folder / "round").symlink_to("round")
    paths_case("round")(document, folder)


TFJS_BAD: dict[str, tuple[Callable[[Any, Path], Any], str]] = {
    "kernel 3": (config_case("down_b", "kernel_size", [3, 3]), r"'down_b' .*kernel_size must be \[4, 4\]"),
    "stride 1": (config_case("up_b", "strides", [1, 1]), r"'up_b' .*strides must be \[2, 2\]"),
    "valid": (config_case("down_b", "padding", "valid"), "'down_b' .*padding must be same"),
    "dilated": (config_case("down_b", "dilation_rate", [2, 2]), "dilation_rate must be"),
    "channels first": (config_case("down_b", "data_format", "channels_first"), "data_format must be"),
    "fused activation": (config_case("down_b", "activation", "relu"), "activation must be linear, got 'relu'"),
    "no kernel size": (lambda d, f: layer_of(d, "down_b")["config"].pop("kernel_size"),
        "kernel_size and strides are missing"),
    "filters": (config_case("down_b", "filters", 5), "'down_b' has 5 filters, as e2 .* must have 4"),
    "filters text": (config_case("down_b", "filters", "4"), "filters must be from 1 to 4096"),
    "slope": (config_case("l1", "alpha", 0.3), "'down_b' .*needs LeakyReLU 0.2"),
    "slope text": (config_case("l1", "alpha", "0.2"), "slope must be a number"),
    "relu 6": (config_case("relu_up_b", "max_value", 6.0), "max_value must be None"),
    "leaky decoder": (config_case("relu_up_b", "negative_slope", 0.2), "'up_b' .*needs ReLU"),
    "sigmoid": (config_case("end", "activation", "sigmoid"), "'end' .*ends in 'sigmoid'"),
    "elu": (config_case("r1", "activation", "elu"), "'r1' .*activation must be relu"),
    "norm axis": (config_case("batch_normalization_1", "axis", 1), "must work along channels"),
    "norm eps": (config_case("batch_normalization_1", "epsilon", 0.1), "different epsilons"),
    "eps list": (config_case("batch_normalization_1", "epsilon", []), "different epsilons"),
    "dropout rate": (config_case("drop", "rate", 0.3), "rate must be 0.5, got 0.3"),
    "concat axis": (config_case("concat_up_b", "axis", 1), "must join channels"),
    "wrong skip": (wire_case("concat_up_b", ["drop", "down_a"]), "its skip is 'down_a', expected 'batch_norm"),
    "skip before norm": (wire_case("concat_up_b", ["drop", "down_b"]), "its skip is 'down_b', expected"),
    "two decoders": (wire_case("concat_up_b", ["drop", "drop"]), "must join a decoder layer and an encoder"),
    "three inputs": (wire_case("concat_up_b", ["drop", "down_b", "l1"]), "has 3 inputs, expected 2"),
    "norm left out": (wire_case("l2", ["down_b"]), "its skip is|has no place in the U-Net"),
    "norm on e1": (wire_case("l1", ["batch_normalization_1"]), "is used twice|expected"),
    "a loop": (wire_case("up_c", ["relu_up_a"]), "is used twice"),
    "a loop of norms": (wire_case("batch_normalization_3", ["drop"]), "must join a decoder layer and an encoder"),
    "unknown input": (wire_case("l1", ["nowhere"]), "'nowhere' does not exist"),
    "unused layer": (add_layer, "'alone' .*has no place in the U-Net"),
    "unknown kind": (lambda d, f: layer_of(d, "l1").update(class_name="Lambda"), "'l1' .'Lambda'.: expected LeakyReLU"),
    "called twice": (lambda d, f: layer_of(d, "l1")["inbound_nodes"].append([]), "must be called once"),
    "second output": (lambda d, f: layer_of(d, "l1")["inbound_nodes"][0][0].__setitem__(2, 1),
        "an input not understood"),
    "strange option": (lambda d, f: layer_of(d, "l1")["inbound_nodes"][0][0][3].update(mask=1),
        "is called with .'mask'"),
    "dropout in the encoder": (drop_e2, "dropout stands after decoder layers only"),
    "never called": (lambda d, f: layer_of(d, "l1").update(inbound_nodes=None), "must be called once, is None"),
    "no layers": (lambda d, f: d["modelTopology"]["model_config"]["config"].update(layers=[]),
        "must list 1 to 512 layers"),
    "many layers": (lambda d, f: [add_layer(d, f) for _ in range(512)], "must list 1 to 512 layers"),
    "model is a list": (lambda d, f: d["modelTopology"].update(model_config=[]), "class None, expected Functional"),
    "layer twice": (lambda d, f: layer_of(d, "l1").update(name="l2"), "'l2' occurs twice"),
    "layer is text": (lambda d, f: d["modelTopology"]["model_config"]["config"]["layers"].append("x"),
        "a layer must be an object"),
    "no config": (lambda d, f: layer_of(d, "l1").pop("config"), "must have name, class_name and config"),
    "two outputs": (lambda d, f: d["modelTopology"]["model_config"]["config"]["output_layers"].append(["l1", 0, 0]),
        "output_layers must name one layer"),
    "sequential": (lambda d, f: d["modelTopology"]["model_config"].update(class_name="Sequential"),
        "class 'Sequential', expected Functional"),
    "graph model": (lambda d, f: d.update(format="graph-model"), "is a TensorFlow.js graph model"),
    "no topology": (lambda d, f: d.pop("modelTopology"), "no modelTopology"),
    "no manifest": (lambda d, f: d.pop("weightsManifest"), "no weightsManifest"),
    "input shape": (config_case("input_1", "batch_input_shape", [None, 8]), "batch_input_shape must have 4"),
    "input channels": (config_case("input_1", "batch_input_shape", [None, 8, 8, None]), "in_channels must be"),
    "absolute path": (paths_case("/etc/passwd"), "'/etc/passwd' leaves the folder"),
    "parent": (paths_case("../outside"), "'../outside' leaves the folder"),
    "parent inside": (paths_case("sub/../../x"), "leaves the folder"),
    "backslash": (paths_case("..\\x"), "leaves the folder"),
    "URL": (paths_case("https://host/shard1"), "leaves the folder"),
    "NUL": (paths_case("a\0b"), "leaves the folder"),
    "path number": (paths_case(3), "paths of a weight group must be texts"),
    "no such file": (paths_case("shard3"), "'shard3' is missing"),
    "file twice": (paths_case("shard1", "./shard1"), "'./shard1' is named twice"),
    "a folder": (paths_case("sub"), "'sub' is missing"),
    "link out": (link_out, "is a link out of the folder"),
    "no inputs": (lambda d, f: layer_of(d, "down_b").update(inbound_nodes=[None]), "must have a list of inputs"),
    "half a character": (paths_case("\ud800"), "cannot be followed"),
    "link to itself": (link_round, "'round' cannot be followed|'round' is missing"),
    "long name": (paths_case("a" * 300), "is longer than 255"),
    "long name of two bytes each": (paths_case("\u00e4" * 200), "cannot be followed"),
    "many files": (paths_case(*["shard1"] * 2000), "more than 1024 weight files"),
    "too few bytes": (paths_case("shard1"), "hold 1000 bytes, their weights take"),
    "quantized": (weight_case("quantization", {"dtype": "uint8"}), "'down_a/kernel' is quantized.* without --quantize"),
    "float16": (weight_case("dtype", "float16"), "'down_a/kernel': dtype 'float16', expected float32"),
    "huge shape": (weight_case("shape", [1 << 20] * 4), "hold .* bytes, their weights take"),
    "negative shape": (weight_case("shape", [4, 4, -3, 2]), "'down_a/kernel': shape"),
    "other shape": (weight_case("shape", [4, 4, 2, 3]), r"'down_a/kernel' has shape \(4, 4, 2, 3\)"),
    "weight twice": (weight_case("name", "down_a/bias"), "'down_a/bias' occurs twice"),
    "weight missing": (weight_case("name", "other"), "'down_a/kernel' is missing"),
    "weight left": (lambda d, f: layer_of(d, "down_b")["config"].update(use_bias=False),
        "'down_b/bias' belongs to no layer"),
}


@pytest.mark.parametrize("name", TFJS_BAD)
def test_tensorflowjs_folders_that_do_not_fit(name: str, small_tfjs: Path, tmp_path: Path) -> None:
    change, message = TFJS_BAD[name]
    folder = tmp_path / "m"
    shutil.copytree(small_tfjs, folder)
    document = json.loads((folder / "model.json").read_text())
    change(document, folder)
    (folder / "model.json").write_text(json.dumps(document))
    with pytest.raises(ModelFormatError, match=message) as caught:
        checkpoints.read(folder)
    assert str(caught.value).startswith(str(folder)) and len(str(caught.value)) < 1000


def test_other_folders_and_odd_json(small_tfjs: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="a folder without model.json"):
        checkpoints.read(tmp_path)
    for text, message in (
        ("", "not JSON"),
        ("[]", "no modelTopology"),
        ("{" * 5000, "nested more than"),
        ('{"a":1,"a":2}', "'a' occurs twice"),
        (" " * (1 << 19) + "{}", "larger than"),
    ):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(ModelFormatError, match=message):
            checkpoints.read(tmp_path)


# .pict --------------------------------------------------------------------------------------------


def pict_bytes(depth: int = 3, ngf: int = 2, seed: int = 0) -> tuple[bytes, dict[str, np.ndarray]]:
    """(file, decoded tensors by their names) as the exporter of pix2pix-tensorflow writes it."""
    rng = np.random.default_rng(seed)
    book = np.sort(rng.normal(0, 0.3, 256)).astype("<f4")
    width = [3] + [ngf * min(2**k, 8) for k in range(depth)]
    shapes: dict[str, tuple[int, ...]] = {}
    for k in range(1, depth + 1):
        shapes[f"generator/encoder_{k}/conv2d/kernel"] = (4, 4, width[k - 1], width[k])
        shapes[f"generator/encoder_{k}/conv2d/bias"] = (width[k],)
        ci = width[k] * (1 if k == depth else 2)
        shapes[f"generator/decoder_{k}/conv2d_transpose/kernel"] = (4, 4, width[k - 1], ci)
        shapes[f"generator/decoder_{k}/conv2d_transpose/bias"] = (width[k - 1],)
        for kind, co in (("encoder", width[k]), ("decoder", width[k - 1])):
            if k > 1:
                for part in ("gamma", "beta"):
                    shapes[f"generator/{kind}_{k}/batch_normalization/{part}"] = (co,)
    names = sorted(shapes)
    codes = {name: rng.integers(0, 256, shapes[name], np.uint8) for name in names}
    listing = json.dumps([{"name": n, "shape": shapes[n]} for n in names]).encode()
    payload = b"".join(codes[n].tobytes() for n in names)
    data = b"".join(
        struct.pack(">I", len(part)) + part for part in (listing, book.tobytes(), payload)
    )
    return data, {name: book[codes[name]] for name in names}


def test_pict_files_compute_the_same(tmp_path: Path) -> None:
    """Against pix2pix-tensorflow's graph restated: SAME padding, [decoder, skip], training-mode norm."""
    torch = pytest.importorskip("torch")
    import torch.nn.functional as F

    data, weights = pict_bytes()
    (tmp_path / "edges.pict").write_bytes(data)
    model = checkpoints.read(tmp_path / "edges.pict")
    a = model.architecture
    assert (a.depth, a.ngf, a.bottleneck_norm, a.dropout) == (3, 2, True, ("d1", "d2"))
    w = {name: torch.from_numpy(value.astype(np.float64)) for name, value in weights.items()}

    def layer(x: Any, scope: str, up: bool) -> Any:
        kind = "conv2d_transpose" if up else "conv2d"
        kernel = w[f"generator/{scope}/{kind}/kernel"].permute(3, 2, 0, 1)
        bias = w[f"generator/{scope}/{kind}/bias"]
        conv = F.conv_transpose2d if up else F.conv2d
        x = conv(x, kernel, bias, 2, 1)
        if scope.endswith("_1"):
            return x
        gamma, beta = (w[f"generator/{scope}/batch_normalization/{p}"] for p in ("gamma", "beta"))
        return F.batch_norm(x, None, None, gamma, beta, True, 0.0, 1e-5)

    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    stack = [layer(x, "encoder_1", False)]
    for k in (2, 3):
        stack.append(layer(F.leaky_relu(stack[-1], 0.2), f"encoder_{k}", False))
    y = layer(torch.relu(stack[2]), "decoder_3", True)
    y = layer(torch.relu(torch.cat([y, stack[1]], 1)), "decoder_2", True)
    y = torch.tanh(layer(torch.relu(torch.cat([y, stack[0]], 1)), "decoder_1", True))
    assert torch.allclose(run_model(model, x), y, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d + b"\0", "codes declared, .* bytes left"),
        (lambda d: d[:-1], "codes declared, .* bytes left"),
        (lambda d: b"\x7f" + d[1:], "names of .* bytes"),
        (lambda d: d[:200], "names of .* bytes, 196 are left"),
        (lambda d: _with_names(d, b"[ 3]"), "a tensor without a name of its own: 3"),
        (
            lambda d: _with_names(d, b"[ " + b",".join([b'{"name":"a","shape":[1]}'] * 2) + b"]"),
            "a tensor without a name of its own: .*'a'",
        ),
        (lambda d: b"\0\0" + d[2:6] + b"\xff" + d[7:], "not UTF-8|names of"),
        (
            lambda d: d.replace(b"encoder_1", b"encoder_9"),
            "encoder_1 or decoder_1 are missing|belongs to no",
        ),
        (lambda d: d.replace(b"/bias", b"/b\\u0"), "not JSON"),
        (lambda d: d.replace(b"decoder_2/conv2d_t", b"decoder_2/convXX_t"), "belongs to no U-Net"),
        (lambda d: d.replace(b"[4, 4, 3, 2]", b"[4, 4, 2, 3]"), "codes declared|must be"),
        (lambda d: d.replace(b"[4, 4, 3, 2]", b"[4, 4,-3, 2]"), "expected 1 to 4 sizes"),
        (lambda d: d.replace(struct.pack(">I", 1024), struct.pack(">I", 1023), 1), "codebook"),
        (lambda d: _nan_codebook(d), "256 finite numbers"),
    ],
)
def test_pict_files_that_do_not_fit(
    change: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.pict"
    path.write_bytes(change(pict_bytes()[0]))
    with pytest.raises(ModelFormatError, match=message):
        checkpoints.read(path)


def test_a_tensor_missing_in_a_pict_file_is_named_with_the_file(tmp_path: Path) -> None:
    data = pict_bytes()[0]
    end = 4 + int.from_bytes(data[:4], "big")
    names, book, codes = json.loads(data[4:end]), data[end : end + 4 + 1024], data[end + 1032 :]
    lost = names.pop()  # its codes are the last ones
    codes = codes[: len(codes) - int(np.prod(lost["shape"]))]
    text = json.dumps(names).encode()
    path = tmp_path / "bad.pict"
    parts = (struct.pack(">I", len(text)), text, book, struct.pack(">I", len(codes)), codes)
    path.write_bytes(b"".join(parts))
    with pytest.raises(ModelFormatError, match="bad.pict: tensor '.*' is missing"):
        checkpoints.read(path)


def _with_names(data: bytes, names: bytes) -> bytes:
    return struct.pack(">I", len(names)) + names + data[4 + int.from_bytes(data[:4], "big") :]


def _nan_codebook(data: bytes) -> bytes:
    place = 4 + int.from_bytes(data[:4], "big") + 4
    return data[:place] + np.float32(np.nan).tobytes() + data[place + 4 :]


# Ours, conversion, unknown files ------------------------------------------------------------------


def test_our_own_files_pass_through(tmp_path: Path) -> None:
    a = Architecture(depth=3, ngf=2, in_channels=3, out_channels=3, dropout=("d1",))
    digest = save(random_model(a), tmp_path / "m.bin")  # the suffix does not matter
    assert checkpoints.read(tmp_path / "m.bin").digest == digest
    again = checkpoints.convert(tmp_path / "m.bin", tmp_path / "n.safetensors")
    assert again.digest == digest and again.architecture == a


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_convert_writes_what_read_found(dtype: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    _, state = state_of()
    path = write(state, tmp_path / "latest_net_G.pth")
    found = checkpoints.read(path)
    converted = checkpoints.convert(path, tmp_path / "m.safetensors", dtype=dtype)
    stored = load(tmp_path / "m.safetensors")
    assert converted.digest == stored.digest != ""
    assert converted.architecture == stored.architecture == found.architecture
    assert stored.card == found.card and stored.card["name"] == "latest_net_G"
    for name, value in found.tensors.items():
        tolerance = 2**-8 if dtype == "bf16" and value.ndim == 4 else 0
        assert np.allclose(stored.tensors[name], value, rtol=tolerance, atol=0)


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(ModelFormatError):
        checkpoints.convert(tmp_path / "bad.pth", tmp_path / "m.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


def tar_bytes() -> bytes:
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    return buffer.getvalue()


UNKNOWN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "one byte": (lambda: b"\x80", "is of no known kind"),
    "text": (lambda: b"hello, this is text", "is of no known kind. Known are: our safetensors"),
    "zeros": (lambda: bytes(4096), "begins with zeros"),
    "tar": (tar_bytes, "is a tar archive"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(100), "is a gzip archive"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
    "PNG": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), "is a PNG picture"),
    "ONNX of 2017": (lambda: b"\x08\x03\x12\x07pytorch" + bytes(100), "is an ONNX file"),
    "ONNX of 2026": (lambda: b"\x08\x0a\x12\x07pytorch" + bytes(100), "is an ONNX file; convert"),
    "ONNX of nobody": (lambda: b"\x08\x09\x3a\x90\x01" + bytes(100), "is an ONNX file"),
    "JPEG": (lambda: b"\xff\xd8\xff\xe0" + bytes(100), "is a JPEG picture"),
    "old pickle": (lambda: b"cos\nsystem\n(S'true'\ntR.", "is of no known kind"),
    "foreign safetensors": (
        lambda: (len(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}')).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + bytes(4),
        "of no network that is known",
    ),
    "no tensors": (lambda: (2).to_bytes(8, "little") + b"{}", "holds no tensors"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_files_are_refused_by_kind(name: str, tmp_path: Path) -> None:
    build, message = UNKNOWN[name]
    (tmp_path / "model.pth").write_bytes(build())
    with pytest.raises(ModelFormatError, match=message):
        checkpoints.read(tmp_path / "model.pth")


# Hostile archives and pickles ---------------------------------------------------------------------


def zip_bytes(entries: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def patched(data: bytes, place: int, value: bytes) -> bytes:
    return data[: len(data) + place] + value + data[len(data) + place + len(value) :]


def lying_sizes(data: bytes) -> bytes:
    """The directory claims 3 GiB for a stored entry."""
    place = data.index(b"PK\x01\x02")
    return data[: place + 20] + struct.pack("<II", 3 << 30, 3 << 30) + data[place + 28 :]


def overlapping() -> bytes:
    """200 directory entries for the same megabyte."""
    data = zip_bytes({"a/data.pkl": b"x", "a/data/0": bytes(1 << 20)})
    place = data.index(b"PK\x01\x02", 1 << 20)
    end = data.index(b"PK\x05\x06", place)
    directory = data[place:end]
    second = directory[directory.index(b"PK\x01\x02", 1) :]
    many = directory + b"".join(second.replace(b"a/data/0", b"a/d%05d" % k) for k in range(200))
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 202, 202, len(many), place, 0)
    return data[:place] + many + tail


def two_directories() -> bytes:
    """The end record names a directory of deflated entries; just before it stands a harmless one."""
    bomb = zip_bytes({"a/data.pkl": b".", "a/data/0": BIG}, zipfile.ZIP_DEFLATED)
    tame = zip_bytes({"a/data.pkl": b".", "a/data/0": b"."})
    (place, end), (first, last) = (
        (data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")) for data in (bomb, tame)
    )
    directory = tame[first:last]
    return bomb[:end] + directory + bomb[end : end + 12] + struct.pack("<IIH", len(directory), place, 0)


BIG = bytes(64 << 20)
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "deflate": (lambda: zip_bytes({"a/data.pkl": b".", "a/data/0": BIG}, zipfile.ZIP_DEFLATED), "is compressed"),
    "bzip2": (lambda: zip_bytes({"a/data.pkl": b".", "a/data/0": BIG[: 8 << 20]}, zipfile.ZIP_BZIP2), "is compressed"),
    "lzma": (lambda: zip_bytes({"a/data.pkl": b".", "a/data/0": BIG[: 8 << 20]}, zipfile.ZIP_LZMA), "is compressed"),
    "deflated pickle": (lambda: zip_bytes({"a/data.pkl": BIG}, zipfile.ZIP_DEFLATED), "is compressed"),
    "npz": (lambda: zip_bytes({"w.npy": BIG}, zipfile.ZIP_DEFLATED), "is compressed"),
    "stored npz": (lambda: zip_bytes({"w.npy": b"x"}), r"a zip without \*/data.pkl"),
    "huge pickle": (lambda: zip_bytes({"a/data.pkl": bytes(2 << 20)}), "at most 1048576 are accepted"),
    "3 GiB claimed": (lambda: lying_sizes(zip_bytes({"a/data/0": b"."})), "entries overlap|broken zip"),
    "overlap": (overlapping, "entries overlap|broken zip"),
    "many entries": (lambda: zip_bytes({f"a/{k}": b"" for k in range(9000)}), "at most 8192"),
    "entry twice": (
        lambda: zip_bytes({"a/data.pkl": b".", "a/data.pkX": b"."}).replace(b"pkX", b"pkl"), "occurs twice"),
    "comment hides the end": (lambda: zip_bytes({"a/data.pkl": b"."}) + bytes(500), "end record"),
    "two directories": (two_directories, "does not end at its end record"),
    "two 64-bit ends": (
        lambda: zip64_end(zip_bytes({"a/data.pkl": b"."}), 1, 100, at=4), "64-bit end record is not where"),
    "case": (lambda: zip_bytes({"a/data.pkl": b".", "a/DATA.pkl": b"."}), "occurs twice"),
    "huge pickle in capitals": (lambda: zip_bytes({"a/DATA.PKL": bytes(2 << 20)}), "at most 1048576"),
    "two folders": (lambda: zip_bytes({"a/data.pkl": b".", "b/data.pkl": b"."}), "in several folders"),
    "cut": (lambda: zip_bytes({"a/data.pkl": b"." * 99})[:-30], "end record"),
    "encrypted": (lambda: _flag(zip_bytes({"a/data.pkl": b"."}), 1), "is encrypted"),
    "program": (lambda: zip_bytes({"a/data.pkl": b".", "a/code/x.py": b"pass"}), "a TorchScript program"),
    "program as torch.jit writes it": (
        lambda: zip_bytes({"a/data.pkl": b".", "a/code/x.py": b"pass " * 99}, zipfile.ZIP_DEFLATED),
        "a TorchScript program",
    ),
    "older program": (
        lambda: zip_bytes({"a/data.pkl": b".", "a/constants.pkl": b"."}), "a TorchScript program"),
    "64-bit entries": (lambda: zip64_end(zip_bytes({"a/data.pkl": b"."}), 10**6, 100), "1000000 entries"),
    "64-bit directory": (lambda: zip64_end(zip_bytes({"a/data.pkl": b"."}), 1, 2**40), "directory of 1099511627776"),
}


def _flag(data: bytes, bit: int) -> bytes:
    place = data.index(b"PK\x01\x02")
    return data[: place + 8] + struct.pack("<H", bit) + data[place + 10 :]


def zip64_end(data: bytes, entries: int, size: int, at: int = -1) -> bytes:
    wide = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, size, 0)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(data) - 22 if at < 0 else at, 1)
    return data[:-22] + wide + locator + data[-22:]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_archive_bombs_are_refused_before_inflating(tmp_path: Path) -> None:
    for name, (build, _) in BOMBS.items():
        (tmp_path / f"{name}.pth").write_bytes(build())
    script = (
        "import json, os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from pix2pix_fast import checkpoints, errors\n"
        "found = {}\n"
        "for name in os.listdir(sys.argv[1]):\n"
        "    try: checkpoints.read(os.path.join(sys.argv[1], name)); found[name] = 'accepted'\n"
        "    except errors.ModelFormatError as error: found[name] = str(error)\n"
        "text = open('/proc/self/status').read()\n"
        "found['peak'] = int(text[text.index('VmHWM'):].split()[1])\n"
        "found['torch'] = 'torch' in sys.modules\n"
        "print(json.dumps(found))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(SOURCES.parent)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["peak"] < 64 * 1024 and not found["torch"]
    for name, (_, message) in BOMBS.items():
        text = found[f"{name}.pth"]
        assert re.search(message, text), f"{name}: {text}"


def call(module: str, name: str, *args: str) -> bytes:
    """A protocol 2 pickle that calls module.name(*args)."""
    texts = b"".join(b"X" + struct.pack("<I", len(a)) + a.encode() for a in args)
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + texts + b"tR."


def in_state(inner: bytes) -> bytes:
    """The same, as the value of an entry of a state dict."""
    return b"\x80\x02}X\x01\x00\x00\x00w" + inner[2:-1] + b"s."


def hostile(canary: str) -> dict[str, bytes]:
    touch, write_it = f"touch {canary}", f"open({canary!r}, 'w')"
    calls = [
        ("os", "system", touch),
        ("posix", "system", touch),
        ("nt", "system", touch),
        ("os", "popen", touch),
        ("subprocess", "check_output", touch),
        ("subprocess", "Popen", touch),
        ("subprocess", "call", touch),
        ("builtins", "eval", write_it),
        ("builtins", "exec", write_it),
        ("__builtin__", "eval", write_it),
        ("builtins", "open", canary, "w"),
        ("io", "open", canary, "w"),
        ("_io", "open", canary, "w"),
        ("builtins", "__import__", "antigravity"),
        ("builtins", "compile", write_it, "x", "exec"),
        ("importlib", "import_module", "antigravity"),
        ("runpy", "run_path", canary),
        ("webbrowser", "open", "file:///"),
        ("shutil", "rmtree", canary),
        ("shutil", "copy", "/etc/passwd", canary),
        ("torch", "load", canary),
        ("torch.hub", "load", "x", "y"),
        ("torch.serialization", "load", canary),
        ("torch._utils", "_import_dotted_name", "os.system"),
        ("numpy", "load", canary),
        ("pickle", "loads", "x"),
        ("pty", "spawn", "true"),
        ("ctypes", "CDLL", "libc.so.6"),
        ("socket", "create_connection", "127.0.0.1"),
        ("code", "interact", "x"),
        ("operator", "attrgetter", "system"),
        ("timeit", "timeit", write_it),
    ]
    files = {f"{module}.{name}": call(module, name, *args) for module, name, *args in calls}
    files |= {f"state {name}": in_state(data) for name, data in list(files.items())[:6]}
    getattr_system = b"\x80\x02cbuiltins\ngetattr\n(cos\nsystem\nX\x04\x00\x00\x00nametR."
    nested = b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R."  # STACK_GLOBAL
    obj = b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00trueo."
    inst = b"\x80\x02(X\x04\x00\x00\x00trueios\nsystem\n."
    newobj = b"\x80\x02csubprocess\nPopen\nX\x04\x00\x00\x00true\x85\x81."
    build = b"\x80\x02ccollections\nOrderedDict\n)R}X\x0a\x00\x00\x00__reduce__cos\nsystem\nsb."
    return {**files, "getattr": getattr_system, "stack global": nested, "obj": obj, "inst": inst,
            "newobj": newobj, "build": build}


def test_hostile_pickles_do_nothing(tmp_path: Path) -> None:
    """At least 30 pickles, as zip and as legacy file: refused, no call made, pickle's own C code unused."""
    pytest.importorskip("torch")
    canary = tmp_path / "canary"
    folder = tmp_path / "files"
    folder.mkdir()
    good = tmp_path / "good"
    good.mkdir()
    _, state = state_of(ngf=1)
    for legacy in (False, True):
        write(state, good / f"good{legacy}.pth", _use_new_zipfile_serialization=not legacy)
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
    files = hostile(str(canary))
    assert len(files) >= 30
    for index, data in enumerate(files.values()):
        entries = {"a/data.pkl": data, "a/version": b"3\n", "a/byteorder": b"little"}
        (folder / f"{index:02}.zip.pth").write_bytes(zip_bytes(entries))
        (folder / f"{index:02}.legacy.pth").write_bytes(magic + data)
        (folder / f"{index:02}.bare.pth").write_bytes(data)
    script = """
import os, sys
sys.path.insert(0, sys.argv[2])
from pix2pix_fast import checkpoints, errors
import torch, tarfile, tempfile, zipfile
folder, seen, watching = sys.argv[1], [], False
BAD = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.", "socket.", "webbrowser.",
       "shutil.", "pickle.find_class", "ctypes.", "os.remove", "os.rename", "exec", "compile", "pty.")
def hook(event, args):
    if not watching: return
    if event.startswith(BAD): seen.append((event, str(args)[:80]))
    if event == "open" and isinstance(args[1], str) and args[1].strip("rb"): seen.append((event, str(args)))
sys.addaudithook(hook)
names = sorted(os.listdir(folder))
for name in sorted(os.listdir(sys.argv[3])) + names[:3]:   # torch's own lazy imports happen here
    try: checkpoints.read(os.path.join(sys.argv[3] if name[0] == "g" else folder, name))
    except errors.ModelFormatError: pass
watching = True
for name in names:
    try: checkpoints.read(os.path.join(folder, name))
    except errors.ModelFormatError as error:
        text = str(error)
        if "\\n" in text or "weights_only=False" in text: seen.append((name, text))
    else: seen.append((name, "accepted"))
watching = False
print(len(names), seen)
"""
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        script,
        str(folder),
        str(SOURCES.parent),
        str(good),
    ]
    environment = {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}  # must not help either
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"{3 * len(files)} []"
    assert not canary.exists()


def test_no_source_of_ours_names_pickle() -> None:
    for path in SOURCES.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for word in ("import pickle", "from pickle", "weights_only=False", "allow_pickle=True"):
            assert word not in text, f"{path.name} has {word!r}"


def test_mutated_checkpoints_are_refused_or_read(tmp_path: Path) -> None:
    """Damage in a checkpoint without digest may go unseen, but only ModelFormatError comes out."""
    pytest.importorskip("torch")
    _, state = state_of(ngf=1)
    rng = np.random.default_rng(0)
    for legacy in (False, True):
        path = write(state, tmp_path / "m.pth", _use_new_zipfile_serialization=not legacy)
        data = path.read_bytes()
        for _ in range(150):
            mutant = bytearray(data)
            for _ in range(int(rng.integers(1, 6))):
                mutant[int(rng.integers(min(len(mutant), 20_000)))] = int(rng.integers(256))
            path.write_bytes(bytes(mutant))
            with contextlib.suppress(ModelFormatError):
                assert isinstance(checkpoints.read(path), Model)


# Pickles that torch.load itself would suffer from ---------------------------------------------------

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."


def nested_tuples(count: int) -> bytes:
    """(1, 1), the pair of it, the pair of that: hashed 2^count times."""
    return b"K\x01" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(count))


COSTLY: dict[str, tuple[bytes, str]] = {
    "bytearray of 2 GiB": (b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "asks for 'builtins.bytearray'"),
    "tensor of 4 GiB": (b"\x80\x02ctorch\nTensor\nJ\x00\x00\x02\x00J\x00\x20\x00\x00\x86R.", "asks for 'torch.Tensor'"),
    "tuples as a key": (b"\x80\x02}" + nested_tuples(60) + b"K\x01s.", "puts one tuple into others"),
    "tuples as a function": (b"\x80\x02" + nested_tuples(60) + b")R.", "puts one tuple into others"),
    "a tuple as a key": (b"\x80\x02}K\x01K\x02\x86K\x01s.", "dict keys that are neither"),
    "lists in lists": (b"\x80\x02" + b"]" * 1_000_000 + b".", "is nested or long"),
    "marks": (b"\x80\x02" + b"(" * 1_000_000 + b".", "is nested or long"),
    "many opcodes": (b"\x80\x02]" + b"Na" * 400_000 + b".", "has more than 131072 opcodes"),
    "a global of 40 KB": (b"\x80\x02c" + b"a." * 20_000 + b"\nx\n.", "a global that cannot be read"),
    "a long text": (b"\x80\x02X" + struct.pack("<I", 900_000) + b"a" * 900_000 + b".", "a text of 900000 bytes"),
    "idna": (b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x04\0\0\0idna\x86R.", "asks for '_codecs.encode'"),
    "a long number": (b"\x80\x02\x8a\x09" + bytes(9) + b".", "a number of more than 8 bytes"),
    "a list given to many": (b"\x80\x02(]q\x00" + b"ccollections\nOrderedDict\nh\x00\x85R" * 9 + b"t.", "passes"),
    "a dict built into many": (
        b"\x80\x02(}q\x00" + b"ccollections\nOrderedDict\n)Rh\x00b" * 9 + b"t.", "gives one state"),
    "a storage walked through": (b"\x80\x02ctorch\nSize\nNQ\x85R.", "what no state dict passes"),
    "arguments that are no tuple": (b"\x80\x02ctorch._utils\n_rebuild_parameter\nNQR.", "what no state dict passes"),
    "protocol 4": (b"\x80\x04}.", "not of protocol 2, .* without pickle_protocol"),
    "cut": (b"\x80\x02}X\x10\0\0\0a", "cut short"),
    "a call of what is no function": (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls 'torch.FloatStorage'"),
    "a call of a text": (b"\x80\x02X\x01\0\0\0a)R.", "calls what is no function"),
    "a stack under the mark": (b"\x80\x02}(a.", "takes values that are not there"),
}


@pytest.mark.parametrize("name", COSTLY)
def test_costly_pickles_are_refused_unread(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    data, message = COSTLY[name]
    zipped = zip_bytes({"a/data.pkl": data, "a/version": b"3\n", "a/byteorder": b"little"})
    for file in (zipped, LEGACY + data):
        (tmp_path / "a.pth").write_bytes(file)
        with pytest.raises(ModelFormatError, match=message):
            checkpoints.read(tmp_path / "a.pth")


def test_a_pickle_of_any_size_costs_little(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "a.pth").write_bytes(LEGACY + b"\x80\x02" + b"]" * 8_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError, match="is nested or long"):
            checkpoints.read(tmp_path / "a.pth")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_dicts_as_python_2_saved_them(tmp_path: Path) -> None:
    """OrderedDict([[name, tensor], ...]), and short texts of bytes."""
    torch = pytest.importorskip("torch")
    pairs = b"(](U\x01aK\x05e]q\x09(U\x01bK\x06ee\x85"
    data = b"\x80\x02ccollections\nOrderedDict\n" + pairs.replace(b"(]", b"](]", 1) + b"R."
    (tmp_path / "a.pth").write_bytes(LEGACY + data + b"\x80\x02]q\x01.")
    from pix2pix_fast import torchfile

    with (tmp_path / "a.pth").open("rb") as stream:
        assert torchfile.load(stream, "a") == {"a": 5, "b": 6}
    assert torch


# Run folders ----------------------------------------------------------------------------------------

RUNS: dict[str, tuple[Callable[[], Any], str]] = {
    "no entries": (lambda: {"format": 1}, "'values' must be a dict, is 'NoneType'"),
    "values of a number": (lambda: {"format": 1, "values": 5, "g": {}}, "'values' must be a dict, is 'int'"),
    "no values": (lambda: {"format": 1, "values": {}, "g": {}}, "no state of our training: KeyError"),
    "format of a tensor": (lambda: {"format": _expanded()}, "has format 'Tensor', this version reads 1"),
    "a list": (lambda: [1], "has format 'NoneType'"),
    "a stride of 0": (
        lambda: {"format": 1, "values": WIDE, "g": {"d1.bias": _expanded()}},
        "is not that of a generator",
    ),
    "wide without tensors": (
        lambda: {"format": 1, "values": {**WIDE, "ngf": 4096}, "g": {}},
        "is not that of a generator",
    ),
    "deep without end": (
        lambda: {"format": 1, "values": {**WIDE, "depth": 10**6}, "g": {}}, "depth",
    ),
}
WIDE = {"generator": "unet", "norm": "batch", "eps": 1e-5, "in_channels": 3, "out_channels": 3,
        "ngf": 8, "depth": 8, "bottleneck_norm": False, "dropout": "none"}


@pytest.mark.parametrize("name", RUNS)
def test_run_folders_are_refused_by_name(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    build, message = RUNS[name]
    write(build(), tmp_path / "last.pt")
    with pytest.raises(ModelFormatError, match=message):
        checkpoints.read(tmp_path)


@pytest.mark.parametrize("name", ["deflate", "two directories", "huge pickle", "bytearray of 2 GiB"])
def test_run_folders_have_the_same_guards(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    data, message = (BOMBS[name][0](), BOMBS[name][1]) if name in BOMBS else COSTLY[name]
    message = "a bare pickle" if data[:2] != b"PK" else message
    (tmp_path / "last.pt").write_bytes(data)
    with pytest.raises(ModelFormatError, match=message) as caught:
        checkpoints.read(tmp_path)
    assert "weights_only to" not in str(caught.value) and "\n" not in str(caught.value)
