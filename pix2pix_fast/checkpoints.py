"""Other people's files -> Model: the place that knows foreign names, layouts and habits.

`read` looks at what a file holds, not at its suffix, infers the architecture from the tensors,
says aloud (logger "pix2pix_fast", INFO) and in the card what it inferred, and refuses by name what
is not a U-Net of the method. Reading never runs code from a file: torch pickles go through
torchfile.py and nothing else. TensorFlow's formats are in tfjs.py and pict.py.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from . import pict, tfjs, torchfile
from .architecture import Architecture
from .errors import BackendUnavailable, ModelFormatError
from .model import Model, StoredTensors, check_values, is_ours, load, packaged, save
from .tensorfile import Array, Header, Shape, open_file, read_header, read_raw, show, to_float32

log = logging.getLogger("pix2pix_fast")

MAX_NAME = 512  # characters of a tensor's name; a U-Net's has 90
MOST_BLOCKS = 8  # inside each other, of a U-Net of 9 levels

KNOWN = (
    "our safetensors; junyanz's U-Nets as .pth or safetensors; TensorFlow.js layers folders; "
    ".pict and .bin of pix2pix-tensorflow"
)
# What a file begins with, for those that are recognised only to be refused.
FOREIGN_MAGIC = {
    b"\x89HDF": "an HDF5 file (Keras .h5); export it to TensorFlow.js layers",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x04\x00\x00\x00\x01\x00\x00\x00\x03\x00\x00\x00V 1": "a Torch7 .t7 file of the Lua code",
}


RUN_STATE = "last.pt"  # what a folder of train/ always holds


def read(path: str | os.PathLike[str]) -> Model:
    """Read a generator from one of our files, a foreign one, a TensorFlow.js folder, a folder of
    our own training, or the name of a model in this package.

    Raises ModelFormatError for anything malformed or unsupported; BackendUnavailable when a .pth
    needs torch and there is none; OSError for a file that cannot be read.

    >>> model = read("latest_net_G.pth")
    """
    where = os.fsdecode(path)
    path = packaged(path)
    if (Path(path) / RUN_STATE).is_file():
        return _read_run(Path(path))
    if Path(path).is_dir():
        return _told(tfjs.read_tfjs(Path(path) / "model.json", where), where)
    with open_file(path) as stream:
        start = stream.read(512)
        length = int.from_bytes(start[:8], "little")
        if len(start) >= 9 and start[8:9] == b"{" and length < 1 << 40:
            header = read_header(stream, where)
            if not is_ours(header):
                return _told(_read_safetensors(stream, header, where), where)
        elif start.startswith(b"PK\x03\x04") or (
            len(start) > 9 and start[0] == 0x80 and 2 <= start[1] <= 5
        ):
            return _told(_read_torch(stream, where), where)
        elif start.lstrip()[:1] == b"{" and Path(path).suffix == ".json":
            return _told(tfjs.read_tfjs(Path(path), where), where)
        elif start[4:6] in (b"[{", b"[ ", b"[\n"):
            return _told(pict.read_pict(stream, where), where)
        else:
            raise ModelFormatError(f"{where}: {_what(start)}. Known are: {KNOWN}")
    return load(path)


def _read_run(folder: Path) -> Model:
    """The generator of a training run as it stands (the last saved epoch)."""
    try:
        export = importlib.import_module("pix2pix_fast.train.export")
        state = importlib.import_module("pix2pix_fast.train.state")
    except ImportError as error:
        raise BackendUnavailable(
            f"{folder} is a training run; reading it needs torch: pip install 'pix2pix_fast[train]'"
        ) from error
    try:
        model: Model = export.to_model(folder)
        return model
    except (OSError, MemoryError, BackendUnavailable):
        raise
    except (state.StateError, ValueError) as error:
        raise ModelFormatError(f"{folder}: {error}") from error
    except Exception as error:  # its values are a stranger's, and torch has many words for that
        why = show(str(error).partition("\n")[0])
        raise ModelFormatError(
            f"{folder}: {RUN_STATE} is no state of our training: {type(error).__name__}: {why}"
        ) from error


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: Literal["f32", "f16", "bf16"] = "f32",
) -> Model:
    """Read `source`, write it as one of our files, return what the new file holds.

    The file takes its name only after it was read back. Raises as `read` and `model.save` do.
    """
    save(read(source), target, dtype=dtype)
    return load(target)


def _told(model: Model, where: str) -> Model:
    log.info("%s: %s", where, model.card["inferred"])
    return model


def _what(start: bytes) -> str:
    for magic, name in FOREIGN_MAGIC.items():
        if start.startswith(magic):
            return f"is {name}"
    if re.match(rb"\x08[\x03-\x1f][\x12\x3a]", start):  # its version, then its maker or its graph
        return "is an ONNX file; convert the checkpoint that it was made from"
    if start[257:262] == b"ustar":
        return "is a tar archive (torch before 0.1.10, or a packed folder), which is not read"
    if not start.strip(b"\0"):
        return "is empty" if not start else "begins with zeros"
    return "is of no known kind"


# -- junyanz's generators --------------------------------------------------------------------------
#
# His U-Net is a recursion: the block B(k) = root + "1." + "model." + (k-1) times "3.model." holds
# our e(k+1) and d(N-k). People save it under names of their own (DataParallel, torch.compile,
# Lightning, an averaged copy), so the root is found from inside: e2's name ends as no other
# tensor's does. Inference needs the shapes only, so that a file can be refused unread.

E2 = "1.model.1.weight"
GENERATORS = {"netG", "net_G", "generator", "gen", "G"}
DISCRIMINATORS = {"netD", "net_D", "discriminator", "disc", "D", "netD_A", "netD_B"}
WRAPPERS = GENERATORS | {"state_dict", "model_state_dict", "model", "params"}
WRAPPED = rf"^(?:(?:module|_orig_mod|{'|'.join(sorted(GENERATORS | DISCRIMINATORS))})\.)+"
# what torch.nn.utils makes of a layer's weight -> what makes it a weight again
PARTED = {
    ".weight_mask": "prune.remove",
    ".weight_orig": "remove_spectral_norm",
    ".weight_g": "remove_weight_norm",
    ".parametrizations.weight.": "parametrize.remove_parametrizations",
}
MOST_WRAPPERS = 4  # dicts inside each other
STATISTICS = ("running_mean", "running_var")


class Found(NamedTuple):
    architecture: Architecture
    names: dict[str, str]  # ours -> the file's
    text: str


def infer(shapes: Mapping[str, Shape], where: str) -> Found:
    """The U-Net that a state dict with these names and shapes is.

    Raises ModelFormatError naming what it is instead, or the tensor that does not fit.
    """
    for name in shapes:  # what is done with names takes the square of their length
        if len(name) > MAX_NAME:
            raise ModelFormatError(
                f"{where}: tensor {show(name)} has a name longer than {MAX_NAME} characters"
            )
    root = _root(shapes, where)
    convs, norms = _places(root, shapes, where)
    depth = len(convs) // 2

    def shape_of(layer: str) -> Shape:
        name = convs[layer] + ".weight"
        if name not in shapes:
            raise ModelFormatError(
                f"{where}: tensor {show(name)} is missing: it is our {layer}.weight"
            )
        shape = shapes[name]
        if len(shape) != 4 or shape[2:] != (4, 4):
            raise ModelFormatError(
                f"{where}: tensor {show(name)} has shape {shape}, expected 4x4 kernels"
            )
        return shape

    first, last = shape_of("e1"), shape_of(f"d{depth}")
    kind, affine, text, dropped = _norm_kind(convs, norms, shapes, where)
    places = tuple(f"d{k}" for k in range(2, depth - 3))
    try:
        architecture = Architecture(
            depth=depth,
            ngf=first[0],
            in_channels=first[1],
            out_channels=last[1],
            skips=last[0] == 2 * first[0],
            norm=kind,
            affine=affine,
            bottleneck_norm=kind != "none" and f"e{depth}" in norms,
            dropout=places,
        )
    except ModelFormatError as error:
        raise ModelFormatError(f"{where}: {error}") from None
    names: dict[str, str] = {}
    parts = {"mean": "running_mean", "var": "running_var", "weight": "weight", "bias": "bias"}
    for ours, expected in architecture.shapes().items():
        layer, *middle, part = ours.split(".")
        theirs = f"{norms[layer] if middle else convs[layer]}.{parts[part]}"
        if theirs not in shapes:
            if part == "bias" and not middle:
                continue
            raise ModelFormatError(f"{where}: tensor {show(theirs)} is missing: it is our {ours}")
        if tuple(shapes[theirs]) != expected:
            raise ModelFormatError(
                f"{where}: tensor {show(theirs)} has shape {tuple(shapes[theirs])}, "
                f"but as {ours} of a U-Net with ngf {architecture.ngf} it must be {expected}"
            )
        names[ours] = theirs
    used = set(names.values())
    for name in shapes:
        if name in used or name.endswith(".num_batches_tracked") or _is_beside(name, root):
            continue
        if name.rpartition(".")[0] in norms.values() and name.rpartition(".")[2] in dropped:
            continue
        raise ModelFormatError(
            f"{where}: tensor {show(name)} does not belong to a U-Net generator; "
            "if the generator works without it, save its state dict alone"
        )
    return Found(architecture, names, _summary(architecture, text))


def _root(shapes: Mapping[str, Shape], where: str) -> str:
    """What the names of the U-Net's tensors begin with; ModelFormatError unless there is one U-Net."""
    roots = {name.removesuffix(E2) for name in shapes if name == E2 or name.endswith(f".{E2}")}
    if not roots:
        raise ModelFormatError(f"{where}: {_other_network(shapes)}")
    named = {root for root in roots if not GENERATORS.isdisjoint(root.split("."))}
    others = {root for root in roots if not DISCRIMINATORS.isdisjoint(root.split("."))}
    roots = named or roots - others or roots  # a discriminator may be a U-Net too
    if len(roots) > 1:
        few = ", ".join(show(root) for root in sorted(roots)[:8])
        raise ModelFormatError(
            f"{where}: holds {len(roots)} U-Nets, under {few}; save the state dict of one alone"
        )
    return roots.pop()


def _is_beside(name: str, root: str) -> bool:
    """Whether a tensor is known to be no part of the generator whose U-Net stands under `root`.

    Others might: a second stage, whose U-Net alone would give pictures, and wrong ones.
    """
    *parts, last = name.split(".")
    if last == "n_averaged" or not DISCRIMINATORS.isdisjoint(parts):  # torch's AveragedModel
        return not name.startswith(root)
    home = root.split(".")
    at = next((k for k, part in enumerate(home, 1) if part in GENERATORS), None)
    return at is not None and parts[:at] != home[:at]


def _places(
    root: str, shapes: Mapping[str, Shape], where: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Where each layer's convolution and norm stand, by our names; the norms may be absent."""
    blocks = [root + "1.model."]
    while any(name.startswith(blocks[-1] + "3.model.") for name in shapes):
        if len(blocks) == MOST_BLOCKS:  # a name of a megabyte may nest a hundred thousand deep
            raise ModelFormatError(
                f"{where}: more than {MOST_BLOCKS + 1} levels of U-Net blocks inside each other; "
                f"this engine runs at most {MOST_BLOCKS + 1}"
            )
        blocks.append(blocks[-1] + "3.model.")
    n, innermost = len(blocks) + 1, blocks[-1]
    convs = {"e1": root + "0", f"d{n}": root + "3"}
    norms: dict[str, str] = {}
    for k, block in enumerate(blocks[:-1], start=1):
        convs |= {f"e{k + 1}": block + "1", f"d{n - k}": block + "5"}
        norms |= {f"e{k + 1}": block + "2", f"d{n - k}": block + "6"}
    # a norm at the bottleneck (TensorFlow's habit, and forks') moves what follows by one
    deep = len(shapes.get(innermost + "4.weight", ())) == 4
    convs |= {f"e{n}": innermost + "1", "d1": innermost + ("4" if deep else "3")}
    norms |= {"d1": innermost + ("5" if deep else "4")}
    if deep:
        norms[f"e{n}"] = innermost + "2"
    return convs, norms


def _norm_kind(
    convs: Mapping[str, str], norms: Mapping[str, str], names: Collection[str], where: str
) -> tuple[Literal["image", "running", "none"], bool, str, tuple[str, ...]]:
    """(norm, affine, words for it, statistics to drop) by the table of norm keys and biases."""

    def has(place: str, parts: tuple[str, ...]) -> bool:
        return any(f"{place}.{part}" in names for part in parts)

    kinds = {
        layer: (has(place, ("weight", "bias")), has(place, STATISTICS))
        for layer, place in norms.items()
    }
    if len(set(kinds.values())) > 1:
        few = sorted(kinds, key=lambda layer: list(kinds.values()).count(kinds[layer]))[0]
        raise ModelFormatError(
            f"{where}: the norms differ in kind: {few} ({show(norms[few])}) has not the tensors "
            "that the others have"
        )
    affine, running = next(iter(kinds.values()))
    biased = {layer for layer, place in convs.items() if f"{place}.bias" in names}
    everywhere, at_last = biased == set(convs), biased <= {f"d{len(convs) // 2}"}
    if affine and running:
        return "running", True, "batch norm", ()
    if affine:
        return "image", True, "instance norm with weight and bias", ()
    if running and everywhere:
        return "image", False, "instance norm, its old running statistics dropped", STATISTICS
    if running:
        return "running", False, "batch norm without weight and bias", ()
    if everywhere:
        # without tensors of its own a norm shows in junyanz's biases alone
        return "image", False, "instance norm (assumed, as every convolution has a bias)", ()
    if at_last:
        return "none", False, "no norm (assumed, as the convolutions have no biases)", ()
    odd = sorted(set(convs) - biased)[0]
    raise ModelFormatError(
        f"{where}: there are no norms, and of the convolutions some have a bias and others, like "
        f"{show(convs[odd])}, have none: it cannot be told whether instance norm is meant"
    )


def _other_network(shapes: Mapping[str, Shape]) -> str:
    """What a state dict that is no U-Net is; a sentence."""
    blocks = {name.split(".conv_block.")[0] for name in shapes if ".conv_block." in name}
    only = "this engine runs U-Net generators"
    if blocks:
        return f"is a ResNet generator with {len(blocks)} blocks; {only}"
    for part, cure in PARTED.items():
        if name := next((name for name in shapes if part in name), ""):
            return (
                f"has weights in parts, as {show(name)}; before it is saved, torch.nn.utils.{cure} "
                "on each such layer makes them one"
            )
    plain = {re.sub(WRAPPED, "", name): name for name in shapes}
    if "net.0.weight" in plain and "net.2.weight" in plain:
        return f"is a pixel discriminator (1x1 convolutions); {only}"
    convs = [
        short
        for short, name in plain.items()
        if re.fullmatch(r"model\.\d{1,4}\.weight", short) and len(shapes[name]) == 4
    ]
    if convs and shapes[plain[max(convs, key=lambda short: int(short.split(".")[1]))]][0] == 1:
        strided = len(convs) - 2
        return f"is a PatchGAN discriminator with {strided} strided layers; {only}"
    if "model.1.weight" in plain or any(".block." in name for name in shapes):
        return f"looks like a ResNet generator; {only}"
    first = next(iter(shapes), None)
    if first is None:
        return "holds no tensors"
    return f"has the tensors of no network that is known, the first is {show(first)}; {only}"


def _summary(a: Architecture, norm: str) -> str:
    text = (
        f"{'U-Net' if a.skips else 'encoder-decoder'} with {a.depth} levels, ngf {a.ngf}, "
        f"{a.in_channels} -> {a.out_channels} channels, {norm}"
    )
    if a.bottleneck_norm:
        text += f" (also on e{a.depth})"
    places = ", ".join(a.dropout) or "nowhere"
    return f"{text}; assumed: dropout after {places} as in junyanz's code, eps {a.eps:g}, tanh"


def _model(found: Found, get: Callable[[str], Array], source: str, where: str) -> Model:
    raw: dict[str, Array] = {}
    for ours, theirs in found.names.items():
        raw[ours] = np.ascontiguousarray(get(theirs), dtype=np.float32)
        check_values(ours, raw[ours], f"{where}: {show(theirs)}")
    card = {
        "name": re.sub(r"[^ -~]", "?", Path(where).stem)[:200],
        "source": source,
        "inferred": found.text,
        "dropout_places": "assumed",
        "source_channels": "RGB",
        "value_range": [-1, 1],
    }
    return Model(found.architecture, StoredTensors(raw), card)


def _read_safetensors(stream: BinaryIO, header: Header, where: str) -> Model:
    entries = header.tensors
    found = infer({name: entry.shape for name, entry in entries.items()}, where)
    for name in found.names.values():
        if entries[name].dtype == "I64":
            raise ModelFormatError(f"{where}: tensor {show(name)}: dtype I64, expected weights")

    def get(name: str) -> Array:
        return to_float32(read_raw(stream, entries[name], where))

    return _model(found, get, "safetensors with junyanz's names", where)


# -- torch -----------------------------------------------------------------------------------------


def _read_torch(stream: BinaryIO, where: str) -> Model:
    value, torch = torchfile.load(stream, where), torchfile.torch_of(where)

    def get(name: str) -> Array:
        array: Array = state[name].detach().to(torch.float32).contiguous().numpy()
        return array

    try:
        state = _unwrap(value, torch, where)
        found = infer({name: tuple(tensor.shape) for name, tensor in state.items()}, where)
        for name in found.names.values():
            _check_tensor(state[name], torch, f"{where}: tensor {show(name)}")
        return _model(found, get, "junyanz's state dict (.pth)", where)
    except (ModelFormatError, MemoryError):
        raise
    except Exception as error:  # there are tensors that cannot even say their shape
        why = show(str(error).partition("\n")[0])
        raise ModelFormatError(
            f"{where}: its tensors cannot be read: {type(error).__name__}: {why}"
        ) from error


def _unwrap(value: Any, torch: Any, where: str) -> dict[str, Any]:
    """The generator's state dict, out of the dicts that people save around it."""
    found: list[tuple[tuple[str, ...], dict[str, Any]]] = []  # the keys to it, its tensors
    todo: list[tuple[tuple[str, ...], Any]] = [((), value)] if isinstance(value, dict) else []
    seen: set[int] = set()  # a dict may be in many places
    for way, here in todo:
        if id(here) in seen or len(way) > MOST_WRAPPERS:
            continue
        seen.add(id(here))
        # an OrderedDict may bring its own `items`
        items = {name: item for name, item in dict.items(here) if isinstance(name, str)}
        tensors = {name: item for name, item in items.items() if isinstance(item, torch.Tensor)}
        found += [(way, tensors)] if tensors else []
        todo += [((*way, name), item) for name, item in items.items() if isinstance(item, dict)]
    if not isinstance(value, dict):
        raise ModelFormatError(
            f"{where}: holds {show(type(value).__name__)}, expected a state dict; "
            "save the generator's alone: torch.save(net.state_dict(), NAME)"
        )
    if not found:
        keys = ", ".join(show(name) for name in list(value)[:8])
        raise ModelFormatError(
            f"{where}: holds no generator's tensors, only the entries {keys}; "
            "save the generator's state dict alone"
        )
    unets = [one for one in found if any(name.endswith(E2) for name in one[1])]
    usual = [one for one in unets or found if WRAPPERS.issuperset(one[0])]
    if len(unets) > 1 and len(usual) != 1:
        few = ", ".join(show(".".join(way)) for way, _ in unets[:8])
        raise ModelFormatError(
            f"{where}: holds {len(unets)} U-Nets, as {few}; save the state dict of one alone"
        )
    return (usual or unets or found)[0][1]


def _check_tensor(tensor: Any, torch: Any, where: str) -> None:
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise ModelFormatError(f"{where}: dtype {tensor.dtype}, expected floating point")
    if not torchfile.is_whole(tensor):
        raise ModelFormatError(f"{where}: its shape {tuple(tensor.shape)} is larger than its data")
