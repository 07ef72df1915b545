"""Our model file: safetensors, whose metadata records what tensors cannot say.

`Architecture` is the U-Net as data, `Model` adds weights and a card, `load` and `save` move it from
and to disk. A file is read once into private memory and never stays open or mapped; everything in
it is checked before it is used: names, types, shapes, values, digest (docs/model-file.md has the
format, docs/decisions/002-model-file.md the reasons). Foreign files are checkpoints.py's business.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import mmap
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, BinaryIO, Literal, NamedTuple, NoReturn, cast

import numpy as np

from .errors import ModelFormatError

FORMAT = 1  # the newest version that this code reads and the one it writes
MAX_HEADER_BYTES = 1 << 18  # a U-Net of 9 levels needs about 24 KB; parsing costs < 8 MiB at the cap
MAX_METADATA_BYTES = 1 << 16
MAX_NESTING = 8
MAX_TEXT = 4096  # characters in one text of the card
MAX_CHANNELS = 4096
OWN_KEY = "pix2pix_fast"  # the metadata entry that makes a safetensors file ours

Array = np.ndarray[Any, np.dtype[Any]]
Norm = Literal["image", "running"]
Shape = tuple[int, ...]

# name in the file -> how numpy holds the bytes; numpy has no bfloat16, so its bits stay uint16
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
CHUNK = 1 << 20  # elements looked at together: temporaries stay in cache and small


# -- the network as data ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """A pix2pix U-Net: layers e1..eN, d1..dN (d1 innermost), each 4x4, stride 2, padding 1.

    e_k has ngf * min(2^(k-1), 8) channels; dk (k >= 2) reads [e(N+1-k), d(k-1)] with skips, else
    d(k-1). Norms stand after e2..e(N-1), d1..d(N-1), and after eN with bottleneck_norm.

    depth: N, 2 to 9. ngf, in_channels, out_channels: 1 to 4096.
    skips: False is the paper's encoder-decoder.
    norm: "image": statistics of each picture; "running": stored ones are in the file as well;
        "none": no norms.
    affine: norms have weight and bias. eps: of the norms, 1e-12 to 1.
    dropout: the layers among d1..d(N-1) followed by dropout of 0.5.
    tanh: at the end, else identity.
    trained_norm: the statistics it was trained with: "image", "batch" (the same where the batch was
        1) or "none"; left empty it follows from `norm`.

    Raises ModelFormatError naming the field.
    """

    depth: int
    ngf: int
    in_channels: int
    out_channels: int
    skips: bool = True
    norm: Literal["image", "running", "none"] = "image"
    affine: bool = True
    eps: float = 1e-5
    bottleneck_norm: bool = False
    dropout: tuple[str, ...] = ()
    tanh: bool = True
    trained_norm: str = ""

    def __post_init__(self) -> None:
        _whole("depth", self.depth, 2, 9)
        for name in ("ngf", "in_channels", "out_channels"):
            _whole(name, getattr(self, name), 1, MAX_CHANNELS)
        for name in ("skips", "affine", "bottleneck_norm", "tanh"):
            if type(getattr(self, name)) is not bool:
                _refuse(name, "true or false", getattr(self, name))
        if self.norm not in ("image", "running", "none"):
            _refuse("norm", "'image', 'running' or 'none'", self.norm)
        if type(self.eps) not in (int, float) or not 1e-12 <= self.eps <= 1:
            _refuse("eps", "a number from 1e-12 to 1", self.eps)
        places = [f"d{k}" for k in range(1, self.depth)]
        if not isinstance(self.dropout, tuple) or len(set(self.dropout)) != len(self.dropout):
            _refuse("dropout", "a tuple of different layer names", self.dropout)
        for layer in self.dropout:
            if layer not in places:
                _refuse("dropout", f"layers among d1..d{self.depth - 1}", layer)
        implied = {"image": "image", "running": "batch", "none": "none"}[self.norm]
        if self.trained_norm == "":
            object.__setattr__(self, "trained_norm", implied)
        allowed = ("none",) if self.norm == "none" else ("image", "batch")
        if self.trained_norm not in allowed:
            _refuse("trained_norm", f"one of {allowed} with norm '{self.norm}'", self.trained_norm)

    @property
    def multiple(self) -> int:
        """Heights and widths are padded to a multiple of this."""
        return 1 << self.depth

    def layers(self, norm: Norm = "image") -> list[dict[str, Any]]:
        """The layer list of the core: dicts of name, op, ci, co, slope, norm, eps, skip, dropout, tanh.

        norm="running" describes the net after `Model.core_tensors("running")` folded the norms.
        """
        if norm not in ("image", "running"):
            raise ValueError(f"norm: expected 'image' or 'running', got {norm!r}")
        n, width = self.depth, [self.in_channels]
        width += [self.ngf * min(2 ** (k - 1), 8) for k in range(1, self.depth + 1)]
        keep = norm == "image"
        down = [
            {
                "name": f"e{k}",
                "op": "conv4x4s2",
                "ci": width[k - 1],
                "co": width[k],
                "slope": 1.0 if k == 1 else 0.2,
                "norm": keep and f"e{k}" in self.normed(),
                "eps": float(self.eps),
                "skip": "",
                "dropout": 0.0,
                "tanh": False,
            }
            for k in range(1, n + 1)
        ]
        up = [
            {
                "name": f"d{k}",
                "op": "deconv4x4s2",
                "ci": width[n + 1 - k] * (2 if self.skips and k > 1 else 1),
                "co": self.out_channels if k == n else width[n - k],
                "slope": 0.0,
                "norm": keep and f"d{k}" in self.normed(),
                "eps": float(self.eps),
                "skip": f"e{n + 1 - k}" if self.skips and k > 1 else "",
                "dropout": 0.5 if f"d{k}" in self.dropout else 0.0,
                "tanh": self.tanh and k == n,
            }
            for k in range(1, n + 1)
        ]
        return down + up

    def normed(self) -> list[str]:
        """Names of the layers followed by a norm."""
        if self.norm == "none":
            return []
        last = self.depth if self.bottleneck_norm else self.depth - 1
        return [f"e{k}" for k in range(2, last + 1)] + [f"d{k}" for k in range(1, self.depth)]

    def shapes(self) -> dict[str, Shape]:
        """Every tensor that the file holds, in layer order; `<layer>.bias` may be absent there.

        Convolutions are (co, ci, 4, 4), transposed ones (ci, co, 4, 4), the rest (co,).
        """
        shapes: dict[str, Shape] = {}
        normed = set(self.normed())
        for layer in self.layers():
            name, ci, co = layer["name"], layer["ci"], layer["co"]
            conv = layer["op"] == "conv4x4s2"
            shapes[f"{name}.weight"] = (co, ci, 4, 4) if conv else (ci, co, 4, 4)
            shapes[f"{name}.bias"] = (co,)
            if name in normed:
                parts = ["weight", "bias"] * self.affine + ["mean", "var"] * (self.norm == "running")
                shapes |= {f"{name}.norm.{part}": (co,) for part in parts}
        return shapes


def _refuse(name: str, expected: str, got: object) -> NoReturn:
    raise ModelFormatError(f"architecture: {name} must be {expected}, got {show(got)}")


def _whole(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        _refuse(name, f"a whole number from {low} to {high}", value)


def show(value: object) -> str:
    """`value` for an error message: escaped, so that a file cannot steer a terminal, and short."""
    text = ascii(value)
    return text if len(text) <= 120 else text[:117] + "..."


# -- weights ---------------------------------------------------------------------------------------


class StoredTensors(Mapping[str, Array]):
    """Checked tensors in the types of their file; each look-up gives float32, read-only."""

    def __init__(self, raw: dict[str, Array]) -> None:
        self._raw = raw

    def __getitem__(self, name: str) -> Array:
        return to_float32(self._raw[name])

    def __contains__(self, name: object) -> bool:
        return name in self._raw

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def shape(self, name: str) -> Shape:
        return self._raw[name].shape

    def release(self, name: str) -> None:
        """Forget one tensor; its memory goes back to the system when nobody else holds it."""
        del self._raw[name]


def to_float32(raw: Array) -> Array:
    """float32 of a tensor as DTYPES holds it; no copy where it is float32 already."""
    if raw.dtype.kind == "u":  # bfloat16 is the upper half of a float32
        wide = raw.astype(np.uint32)
        wide <<= 16
        value: Array = wide.view(np.float32)
    else:
        value = raw.astype(np.float32, copy=False)
    value = value.view()
    value.flags.writeable = False
    return value


def from_float32(value: Array, dtype: str, where: str) -> Array:
    """The reverse, rounded to nearest even. `dtype` is a key of DTYPES."""
    if dtype == "F32":
        return np.ascontiguousarray(value, dtype="<f4")
    if dtype == "F16":
        with np.errstate(over="ignore"):
            raw = np.ascontiguousarray(value, dtype="<f2")
    else:
        bits = np.ascontiguousarray(value, dtype=np.float32).view(np.uint32)
        odd = (bits >> 16) & 1
        raw = ((bits + (odd + 0x7FFF)) >> 16).astype("<u2")
    if not all_finite(raw):
        raise ModelFormatError(f"{where}: has values too large for {dtype}")
    return raw


def all_finite(raw: Array) -> bool:
    """No NaN and no infinity in a tensor as DTYPES holds it (or in a float64)."""
    mask = {"<u2": 0x7F80, "<f2": 0x7C00}.get(raw.dtype.newbyteorder("<").str)
    flat = raw.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        if mask is None:
            if not np.isfinite(part).all():
                return False
        elif ((part.view(np.uint16) & np.uint16(mask)) == mask).any():
            return False
    return True


@dataclass(frozen=True, eq=False)
class Model:
    """A U-Net with its weights.

    tensors: float32 arrays by the names of `Architecture.shapes`; the biases are optional.
    card: plain JSON values; the known entries are listed at CARD below.
    digest: SHA-256 of the file it came from, "" for a model made in memory.

    Making one costs nothing: the checks run where it is used (`check`, `core_tensors`, `save`).
    """

    architecture: Architecture
    tensors: Mapping[str, Array]
    card: dict[str, Any] = field(default_factory=dict)
    digest: str = ""

    def check(self) -> None:
        """Names and shapes of the tensors against the architecture, and the card's contents.

        Raises ModelFormatError naming the tensor and the rule.
        """
        shapes = {
            name: self.tensors.shape(name)
            if isinstance(self.tensors, StoredTensors)
            else tuple(np.shape(self.tensors[name]))
            for name in self.tensors
        }
        check_shapes(self.architecture, shapes, "model")
        check_card(self.card, "model")

    def layers(self, norm: Norm = "image") -> list[dict[str, Any]]:
        """The layer list of the core, see `Architecture.layers`.

        Raises ValueError for norm="running" without stored statistics.
        """
        self._check_norm(norm)
        return self.architecture.layers(norm)

    def core_tensors(self, norm: Norm = "image", *, release: bool = False) -> Mapping[str, Array]:
        """The tensors that go with `layers(norm)`: float32, C order, each made when it is looked up.

        norm="running" folds the stored statistics into weight and bias, in float64.
        release=True drops every tensor from this model once it was looked up, so that raw and
        packed weights are never in memory together; the model is used up afterwards.

        Raises ModelFormatError naming the tensor; ValueError for a norm that it cannot offer.
        """
        self._check_norm(norm)
        self.check()
        return CoreTensors(self, fold=norm == "running", release=release)

    def _check_norm(self, norm: str) -> None:
        if norm not in ("image", "running"):
            raise ValueError(f"norm: expected 'image' or 'running', got {norm!r}")
        if norm == "running" and self.architecture.norm != "running":
            why = {
                "image": "its file has none: it was trained with the statistics of each image",
                "none": "it has no norms at all",
            }[self.architecture.norm]
            raise ValueError(
                f"norm='running' needs stored statistics in the model, but {why}; use norm='image'"
            )


class CoreTensors(Mapping[str, Array]):
    """What `Model.core_tensors` returns."""

    def __init__(self, model: Model, *, fold: bool, release: bool) -> None:
        self._tensors = model.tensors
        self._eps = float(model.architecture.eps)
        self._folded = set(model.architecture.normed()) if fold else set()
        self._release = release and isinstance(model.tensors, StoredTensors)
        self._names = [n for n in model.architecture.shapes() if self._offered(n)]
        self._left = set(self._names)

    def _offered(self, name: str) -> bool:
        layer, _, part = name.partition(".")
        if layer in self._folded:  # a folded layer always has a bias, its norm is gone
            return part in ("weight", "bias")
        return name in self._tensors and part not in ("norm.mean", "norm.var")

    def __contains__(self, name: object) -> bool:
        return name in self._left

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names if name in self._left)

    def __len__(self) -> int:
        return len(self._left)

    def __getitem__(self, name: str) -> Array:
        if name not in self._left:
            raise KeyError(name)
        layer, _, part = name.partition(".")
        if layer in self._folded:
            value = self._fold(layer, part)
        else:
            value = np.ascontiguousarray(self._tensors[name], dtype=np.float32)
        if layer in self._folded or not isinstance(self._tensors, StoredTensors):
            if not all_finite(value):
                raise ModelFormatError(f"model: tensor {name!r} has NaN or infinite values")
        if self._release:
            self._left.discard(name)
            self._drop(layer, part)
        return value

    def _fold(self, layer: str, part: str) -> Array:
        """y = (conv(x) + b - mean) * scale + beta with scale = gamma / sqrt(var + eps)."""

        def get(name: str, default: float) -> Array:
            full = f"{layer}.{name}"
            found = self._tensors[full] if full in self._tensors else default
            return np.asarray(found, dtype=np.float64)

        scale = get("norm.weight", 1.0) / np.sqrt(get("norm.var", 1.0) + self._eps)
        if part == "bias":
            folded = (get("bias", 0.0) - get("norm.mean", 0.0)) * scale + get("norm.bias", 0.0)
        else:
            along = (-1, 1, 1, 1) if layer[0] == "e" else (1, -1, 1, 1)
            folded = get("weight", 0.0) * scale.reshape(along)
        with np.errstate(over="ignore"):
            return folded.astype(np.float32)

    def _drop(self, layer: str, part: str) -> None:
        stored = cast(StoredTensors, self._tensors)
        stored.release(f"{layer}.{part}") if f"{layer}.{part}" in stored else None
        if layer in self._folded and not {f"{layer}.weight", f"{layer}.bias"} & self._left:
            for name in [n for n in stored if n.startswith(f"{layer}.norm.")]:
                stored.release(name)


def check_shapes(architecture: Architecture, shapes: Mapping[str, Shape], where: str) -> None:
    """Exactly the tensors of the architecture (biases optional), each with its shape."""
    expected = architecture.shapes()
    for name in shapes:
        if name not in expected:
            raise ModelFormatError(f"{where}: tensor {show(name)} does not belong to this network")
    for name, shape in expected.items():
        optional = name.endswith(".bias") and not name.endswith(".norm.bias")
        if name not in shapes:
            if not optional:
                raise ModelFormatError(f"{where}: tensor {name!r} is missing, expected {shape}")
        elif tuple(shapes[name]) != shape:
            raise ModelFormatError(
                f"{where}: tensor {name!r} has shape {show(tuple(shapes[name]))}, expected {shape}"
            )


def check_values(name: str, raw: Array, where: str) -> None:
    """Finite everywhere, and no negative variance."""
    if not all_finite(raw):
        raise ModelFormatError(f"{where}: tensor {show(name)} has NaN or infinite values")
    if name.endswith(".norm.var") and (to_float32(raw) < 0).any():
        raise ModelFormatError(f"{where}: tensor {show(name)} is a variance with negative values")


# -- the card --------------------------------------------------------------------------------------

TEXT = "a text"
# Entries whose meaning is fixed. Others may hold any JSON value within the limits.
CARD: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **{
        name: (TEXT, lambda v: isinstance(v, str))
        for name in ("name", "task", "dataset", "licence", "source", "inferred", "source_channels")
    },
    "direction": ("'AtoB' or 'BtoA'", lambda v: v in ("AtoB", "BtoA")),
    "size": (
        "[height, width] from 1 to 65536",
        lambda v: isinstance(v, list) and len(v) == 2 and all(_is_whole(i, 1, 65536) for i in v),
    ),
    "value_range": ("[-1, 1]", lambda v: v == [-1, 1]),
    "dropout_places": ("'recorded' or 'assumed'", lambda v: v in ("recorded", "assumed")),
    "training": ("an object", lambda v: isinstance(v, dict)),
    "metrics": ("an object", lambda v: isinstance(v, dict)),
}
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def _is_whole(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def check_card(card: object, where: str) -> None:
    """A dict of plain JSON values within the limits, known entries of their kind."""
    if not isinstance(card, dict):
        raise ModelFormatError(f"{where}: card must be an object, got {show(card)}")
    for name, value in card.items():
        _check_plain(name, f"{where}: card", 0)
        _check_plain(value, f"{where}: card entry {show(name)}", 1)
        if name in CARD and not CARD[name][1](value):
            raise ModelFormatError(
                f"{where}: card entry {show(name)} must be {CARD[name][0]}, got {show(value)}"
            )


def _check_plain(value: object, where: str, depth: int) -> None:
    if depth > MAX_NESTING - 2:
        raise ModelFormatError(f"{where} is nested more than {MAX_NESTING - 2} deep")
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise ModelFormatError(f"{where} has {len(value)} characters, at most {MAX_TEXT} fit")
        if _CONTROL.search(value):
            raise ModelFormatError(f"{where} has control characters: {show(value)}")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ModelFormatError(f"{where} has a key that is no text: {show(key)}")
            _check_plain(key, where, depth)
            _check_plain(item, where, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, where, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ModelFormatError(f"{where} has the number {value}, which JSON cannot hold")
    elif value is not None and type(value) not in (bool, int):
        raise ModelFormatError(f"{where} must be plain JSON values, got {show(value)}")


# -- JSON from a stranger ---------------------------------------------------------------------------

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def parse_json(data: bytes, where: str, max_nesting: int) -> Any:
    """JSON without duplicate keys, NaN, long numbers or deep nesting. Raises ModelFormatError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ModelFormatError(f"{where}: the name {show(twice)} occurs twice")
        return result

    def whole(digits: str) -> int:
        if len(digits) > 18:  # more than any size; int() of a million digits takes minutes
            raise ModelFormatError(f"{where}: the number {digits[:20]}... is out of range")
        return int(digits)

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ModelFormatError(f"{where}: the number {digits[:20]} is out of range")
        return value

    def constant(name: str) -> NoReturn:
        raise ModelFormatError(f"{where}: {name} is not JSON")

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{where}: not UTF-8 at byte {error.start}") from None
    bare = np.frombuffer(_STRING.sub("", text).encode(), dtype=np.uint8)
    opened = np.isin(bare, list(b"[{")).astype(np.int32) - np.isin(bare, list(b"]}"))
    if bare.size and int(np.cumsum(opened, dtype=np.int32).max()) > max_nesting:
        raise ModelFormatError(f"{where}: JSON nested more than {max_nesting} deep")
    try:
        return json.loads(
            text,
            object_pairs_hook=unique,
            parse_int=whole,
            parse_float=number,
            parse_constant=constant,
        )
    except ModelFormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{where}: not JSON: {show(str(error))}") from None


# -- safetensors -----------------------------------------------------------------------------------


class Entry(NamedTuple):
    dtype: str
    shape: Shape
    begin: int  # bytes from the start of the file
    end: int


class Header(NamedTuple):
    tensors: dict[str, Entry]  # in the order of their bytes
    metadata: dict[str, str]


FOREIGN_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}


def read_header(stream: BinaryIO, where: str) -> Header:
    """The checked header of a safetensors file: the tensors fill the rest of it exactly, once.

    Reads no tensor. Raises ModelFormatError naming the tensor or field and the rule.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    start = stream.read(8)
    if len(start) < 8:
        raise ModelFormatError(f"{where}: {size} bytes are too few for a safetensors file")
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER_BYTES:
        raise ModelFormatError(
            f"{where}: header of {length} bytes, at most {MAX_HEADER_BYTES} are accepted"
        )
    if 8 + length > size:
        raise ModelFormatError(f"{where}: header of {length} bytes in a file of {size}")
    data = stream.read(length)
    if not data.startswith(b"{"):
        raise ModelFormatError(f"{where}: the header does not begin with '{{'")
    header = parse_json(data, f"{where}: header", 4)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ModelFormatError(f"{where}: header: __metadata__ must map texts to texts")
    entries = {
        name: _entry(value, f"{where}: tensor {show(name)}", 8 + length, size)
        for name, value in header.items()
    }
    tensors = dict(sorted(entries.items(), key=lambda item: item[1].begin))
    position, before = 8 + length, "the header"
    for name, entry in tensors.items():
        if entry.begin != position:
            what = "overlaps" if entry.begin < position else "leaves a hole after"
            raise ModelFormatError(f"{where}: tensor {show(name)} {what} {before}")
        position, before = entry.end, f"tensor {show(name)}"
    if position != size:
        raise ModelFormatError(f"{where}: {size - position} trailing bytes after {before}")
    return Header(tensors, metadata)


def _entry(value: object, where: str, start: int, size: int) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ModelFormatError(f"{where}: expected dtype, shape and data_offsets, got {show(value)}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in FOREIGN_BYTES:
        raise ModelFormatError(f"{where}: dtype {show(dtype)}, expected F32, F16 or BF16")
    if (
        not isinstance(shape, list)
        or len(shape) > 4
        or not all(_is_whole(n, 1, 2**31 - 1) for n in shape)
    ):
        raise ModelFormatError(
            f"{where}: shape {show(shape)}, expected at most 4 sizes from 1 to 2^31 - 1"
        )
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(_is_whole(n, 0, 2**62) for n in offsets)
        or offsets[0] > offsets[1]
    ):
        raise ModelFormatError(f"{where}: data_offsets {show(offsets)}, expected [begin, end]")
    begin, end = (start + n for n in offsets)
    if end > size:
        raise ModelFormatError(f"{where}: data to byte {end} in a file of {size}")
    expected = math.prod(shape) * FOREIGN_BYTES[dtype]
    if end - begin != expected:
        raise ModelFormatError(
            f"{where}: {end - begin} bytes of data, {dtype} {show(shape)} takes {expected}"
        )
    return Entry(dtype, tuple(shape), begin, end)


def read_raw(stream: BinaryIO, entry: Entry, where: str) -> Array:
    """The bytes of one tensor as DTYPES holds them, in memory of its own.

    Large ones get pages of their own, which return to the system the moment the tensor is dropped;
    malloc would keep many of them.
    """
    size = entry.end - entry.begin
    buffer = mmap.mmap(-1, size) if size >= 1 << 18 else bytearray(size)
    view, done = memoryview(buffer), 0
    stream.seek(entry.begin)
    while done < size:
        count = cast(io.RawIOBase, stream).readinto(view[done:])
        if not count:
            raise ModelFormatError(f"{where}: the file became shorter while it was read")
        done += count
    return np.frombuffer(buffer, dtype=DTYPES[entry.dtype]).reshape(entry.shape)


@contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A regular file opened to read, unbuffered. Raises ModelFormatError for anything else."""

    def opener(name: str, flags: int) -> int:  # without O_NONBLOCK a FIFO would wait for a writer
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        stream = open(path, "rb", buffering=0, opener=opener)  # noqa: SIM115
    except IsADirectoryError:
        raise ModelFormatError(f"{path}: is a folder, expected a model file") from None
    with stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ModelFormatError(f"{path}: is not a regular file")
        yield cast(BinaryIO, stream)


# -- our file --------------------------------------------------------------------------------------


def load(source: str | os.PathLike[str] | bytes) -> Model:
    """Read one of our files, given as a path or as its bytes; the weights are in private memory.

    Raises ModelFormatError for a file that is not wholly sound, OSError for one that cannot be read.

    >>> model = load("edges2shoes.safetensors")                           # doctest: +SKIP
    """
    if isinstance(source, bytes):
        return _load(io.BytesIO(source), "model")
    with open_file(source) as stream:
        return _load(stream, str(os.fspath(source)))


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What one of our files says about itself, its header checked against the digest; no weights read.

    Keys: format, architecture (dict), card, digest, parameters, dtypes (of the weights), file_bytes.
    Raises as `load` does.
    """
    with open_file(path) as stream:
        header, about = _about(stream, str(os.fspath(path)))
        file_bytes = os.fstat(stream.fileno()).st_size
    return {
        "format": FORMAT,
        "architecture": asdict(about.architecture),
        "card": about.card,
        "digest": about.digest,
        "parameters": sum(
            math.prod(entry.shape)
            for name, entry in header.tensors.items()
            if not name.endswith((".norm.mean", ".norm.var"))
        ),
        "dtypes": sorted({entry.dtype for entry in header.tensors.values()}),
        "file_bytes": file_bytes,
    }


class About(NamedTuple):
    architecture: Architecture
    card: dict[str, Any]
    sha256: dict[str, str]  # of each tensor's bytes
    digest: str


def _load(stream: BinaryIO, where: str) -> Model:
    header, about = _about(stream, where)
    raw: dict[str, Array] = {}
    for name, entry in header.tensors.items():
        tensor = read_raw(stream, entry, where)
        if hashlib.sha256(tensor.data).hexdigest() != about.sha256[name]:
            raise ModelFormatError(
                f"{where}: tensor {name!r} does not match its SHA-256: the file is damaged"
            )
        check_values(name, tensor, where)
        raw[name] = tensor
    return Model(about.architecture, StoredTensors(raw), about.card, about.digest)


def is_ours(header: Header) -> bool:
    return OWN_KEY in header.metadata


def _about(stream: BinaryIO, where: str) -> tuple[Header, About]:
    """Header and metadata, everything checked that can be without reading a tensor."""
    header = read_header(stream, where)
    if not is_ours(header):
        raise ModelFormatError(
            f"{where}: safetensors without {OWN_KEY!r} in its metadata: not one of our files. "
            "Engine and checkpoints.read take foreign ones; `pix2pix-fast convert` makes one of ours"
        )
    if set(header.metadata) != {OWN_KEY, "digest"}:
        raise ModelFormatError(
            f"{where}: __metadata__ must hold {OWN_KEY!r} and 'digest', got {show(list(header.metadata))}"
        )
    text = header.metadata[OWN_KEY]
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > MAX_METADATA_BYTES:
        raise ModelFormatError(
            f"{where}: metadata of {len(data)} bytes, at most {MAX_METADATA_BYTES} are accepted"
        )
    document = parse_json(data, f"{where}: metadata", MAX_NESTING)
    if not isinstance(document, dict):
        raise ModelFormatError(f"{where}: metadata must be an object, got {show(document)}")
    version = document.get("format")
    if not _is_whole(version, 1, 2**31):
        raise ModelFormatError(f"{where}: metadata: format must be 1 or more, got {show(version)}")
    if cast(int, version) > FORMAT:
        raise ModelFormatError(
            f"{where}: format version {version} is newer than {FORMAT}, the newest this release reads"
        )
    _exactly(document, ["format", "architecture", "card", "sha256"], f"{where}: metadata")
    if header.metadata["digest"] != digest(text, header.tensors):
        raise ModelFormatError(f"{where}: the digest does not match the header: the file is damaged")
    architecture = _architecture(document["architecture"], where)
    check_card(document["card"], where)
    hashes = document["sha256"]
    if not isinstance(hashes, dict) or not all(isinstance(h, str) for h in hashes.values()):
        raise ModelFormatError(f"{where}: metadata: sha256 must map tensor names to texts")
    for name, entry in header.tensors.items():
        if entry.dtype not in DTYPES:
            raise ModelFormatError(
                f"{where}: tensor {show(name)}: dtype {entry.dtype}, expected F32, F16 or BF16"
            )
    check_shapes(architecture, {n: e.shape for n, e in header.tensors.items()}, where)
    if set(hashes) != set(header.tensors):
        odd = sorted(set(hashes) ^ set(header.tensors))[0]
        raise ModelFormatError(f"{where}: metadata: sha256 and tensors differ in {show(odd)}")
    return header, About(architecture, document["card"], hashes, header.metadata["digest"])


def _architecture(value: object, where: str) -> Architecture:
    names = [f.name for f in fields(Architecture)]
    if not isinstance(value, dict):
        raise ModelFormatError(f"{where}: architecture must be an object, got {show(value)}")
    _exactly(value, names, f"{where}: architecture")
    if not isinstance(value["dropout"], list):
        raise ModelFormatError(f"{where}: architecture: dropout must be a list of layer names")
    try:
        return Architecture(**{**value, "dropout": tuple(map(str, value["dropout"]))})
    except ModelFormatError as error:
        raise ModelFormatError(f"{where}: {error}") from None


def _exactly(document: dict[str, Any], names: list[str], where: str) -> None:
    for name in names:
        if name not in document:
            raise ModelFormatError(f"{where}: field {name!r} is missing")
    for name in document:
        if name not in names:
            raise ModelFormatError(f"{where}: field {show(name)} is unknown")


def digest(text: str, tensors: Mapping[str, Entry]) -> str:
    """SHA-256 over the metadata's text, which holds the SHA-256 of each tensor's bytes, and over
    every tensor's name, dtype and shape. So header and metadata can be checked without the data."""
    lines = [f"{OWN_KEY} model file", text]
    for name in sorted(tensors):
        entry = tensors[name]
        lines.append(f"{name} {entry.dtype} {'x'.join(map(str, entry.shape))}")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    dtype: Literal["f32", "f16", "bf16"] = "f32",
) -> str:
    """Write `model` to `path` and return its digest; the file appears whole or not at all.

    dtype: of the convolutions' weights; biases, norms and statistics stay float32.
    Raises ModelFormatError for a model that `load` would refuse, OSError from the disk.
    """
    if dtype not in ("f32", "f16", "bf16"):
        raise ValueError(f"dtype: expected 'f32', 'f16' or 'bf16', got {dtype!r}")
    model.check()
    entries: dict[str, Entry] = {}
    position = 0
    for name, shape in model.architecture.shapes().items():
        if name in model.tensors:
            kind = dtype.upper() if name.count(".") == 1 and name.endswith(".weight") else "F32"
            end = position + math.prod(shape) * FOREIGN_BYTES[kind]
            entries[name] = Entry(kind, shape, position, end)
            position = end
    hashes = dict.fromkeys(entries, "0" * 64)  # as long as the real ones: the data can go first
    start = len(_header_bytes(model, entries, hashes)[0])
    with atomic_file(path) as stream:
        stream.seek(start)
        for name, entry in entries.items():
            where = f"tensor {name!r}"
            value = np.asarray(model.tensors[name])
            if value.dtype.kind != "f":
                raise ModelFormatError(f"{where}: dtype {value.dtype}, expected floating point")
            check_values(name, value.astype(np.float32, copy=False), "model")
            raw = from_float32(value, entry.dtype, where)
            hashes[name] = hashlib.sha256(raw.data).hexdigest()
            stream.write(raw.data)
        stream.seek(0)
        header, result = _header_bytes(model, entries, hashes)
        stream.write(header)
    return result


def _header_bytes(
    model: Model, entries: dict[str, Entry], hashes: dict[str, str]
) -> tuple[bytes, str]:
    document = {
        "format": FORMAT,
        "architecture": asdict(model.architecture),
        "card": model.card,
        "sha256": hashes,
    }
    text = _compact(document)
    if len(text.encode()) > MAX_METADATA_BYTES:
        raise ModelFormatError(
            f"model: card: the metadata takes {len(text.encode())} bytes, {MAX_METADATA_BYTES} fit"
        )
    result = digest(text, entries)
    header: dict[str, Any] = {"__metadata__": {OWN_KEY: text, "digest": result}}
    for name, entry in entries.items():
        header[name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": [entry.begin, entry.end],
        }
    data = _compact(header).encode()
    data += b" " * (-len(data) % 8)  # the format wants the tensors aligned
    return len(data).to_bytes(8, "little") + data, result


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file that takes the name `path` when the block ends well; nothing is left otherwise.

    Written beside it, flushed to the disk, renamed.
    """
    folder, name = os.path.split(os.fspath(path))
    part = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as stream:
            yield cast(BinaryIO, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    except BaseException:
        with_suppressed_unlink(part)
        raise
    if os.name == "posix":  # the rename itself must survive a power cut
        handle = os.open(folder or ".", os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def with_suppressed_unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
