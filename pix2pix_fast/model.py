"""Our model file: safetensors, whose metadata records what tensors cannot say.

`Model` is an architecture (architecture.py) with weights and a card; `load` and `save` move it from
and to disk, `describe` reads no weights. A file is read once into private memory and never stays
open or mapped, and everything in it is checked before it is used: names, types, shapes, values,
digest. docs/model-file.md has the format, docs/decisions/002-model-file.md the reasons. Foreign
files are checkpoints.py's business.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from .architecture import Architecture
from .errors import ModelFormatError
from .tensorfile import (
    DTYPES,
    ITEM_BYTES,
    Array,
    Entry,
    Header,
    Shape,
    all_finite,
    atomic_file,
    from_float32,
    is_whole,
    open_file,
    parse_json,
    read_header,
    read_raw,
    show,
    to_float32,
)

__all__ = ["Architecture", "Model", "describe", "load", "save"]

FORMAT = 1  # the newest version that this code reads and the one it writes
MAX_METADATA_BYTES = 1 << 16
MAX_NESTING = 8
MAX_TEXT = 4096  # characters in one text of the card
FIRST_PIXELS = 1 << 20  # that an engine is made ready for because of a card
CARD_PIXELS = 1 << 24  # of a card's size that is believed
OWN_KEY = "pix2pix_fast"  # the metadata entry that makes a safetensors file ours

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
        shape: Shape = self._raw[name].shape
        return shape

    def release(self, name: str) -> None:
        """Forget one tensor; its memory goes back to the system when nobody else holds it."""
        self._raw.pop(name, None)


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

    def own_size(self) -> tuple[int, int]:
        """(height, width) of the pictures that it was made for: the card's, else the square that its
        levels shrink to one pixel, as junyanz's unet_128 and unet_256 are named; 256 x 256 for nets
        of fewer than 7 levels, which say nothing."""
        depth = self.architecture.depth
        side = 1 << depth if depth >= 7 else 256
        size = self.card.get("size")
        if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(
            is_whole(length, 1, CARD_PIXELS) for length in size
        ):
            return side, side
        return (size[0], size[1]) if self._padded(size) <= CARD_PIXELS else (side, side)

    def first_size(self) -> tuple[int, int]:
        """(height, width) to be made ready for unasked: its own up to a megapixel, padding counted,
        else 256 x 256. A card of a few bytes must not make opening dear."""
        size = self.own_size()
        return size if self._padded(size) <= FIRST_PIXELS else (256, 256)

    def _padded(self, size: Sequence[int]) -> int:
        m = self.architecture.multiple
        return math.prod(-(-length // m) * m for length in size)

    def layers(self, norm: str = "image") -> list[dict[str, Any]]:
        """The layer list of the core, see `Architecture.layers`.

        Raises ValueError for norm="running" without stored statistics.
        """
        self._check_norm(norm)
        return self.architecture.layers(norm)

    def core_tensors(self, norm: str = "image", *, release: bool = False) -> Mapping[str, Array]:
        """The tensors of `layers(norm)`: float32, C order, each made when it is looked up.

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
        value = self._fold(layer, part) if layer in self._folded else self._tensors[name]
        value = np.require(value, np.float32, ["C", "ALIGNED"])
        unchecked = layer in self._folded or not isinstance(self._tensors, StoredTensors)
        if unchecked and not all_finite(value):
            raise ModelFormatError(f"model: tensor {name!r} has NaN or infinite values")
        if self._release:
            self._left.discard(name)
            self._drop(layer, part)
        return value

    def _fold(self, layer: str, part: str) -> Array:
        """y = (conv(x) + b - mean) * scale + beta with scale = gamma / sqrt(var + eps)."""

        def get(name: str, default: float) -> Array:
            return np.asarray(self._tensors.get(f"{layer}.{name}", default), dtype=np.float64)

        scale = get("norm.weight", 1.0) / np.sqrt(get("norm.var", 1.0) + self._eps)
        if part == "bias":
            folded = (get("bias", 0.0) - get("norm.mean", 0.0)) * scale + get("norm.bias", 0.0)
        else:
            along = (-1, 1, 1, 1) if layer[0] == "e" else (1, -1, 1, 1)
            weight = self._tensors[f"{layer}.weight"]
            folded = np.empty(weight.shape, np.float32)  # in float64 without a copy in float64:
            np.multiply(
                weight, scale.reshape(along), out=folded, dtype=np.float64, casting="same_kind"
            )
        with np.errstate(over="ignore"):
            return folded.astype(np.float32, copy=False)

    def _drop(self, layer: str, part: str) -> None:
        """Forget what no later look-up needs; a folded layer's norm goes with its last tensor."""
        assert isinstance(self._tensors, StoredTensors)
        gone = [f"{layer}.{part}"]
        if layer in self._folded and not {f"{layer}.weight", f"{layer}.bias"} & self._left:
            gone += [name for name in self._tensors if name.startswith(f"{layer}.norm.")]
        for name in gone:
            self._tensors.release(name)


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
        lambda v: isinstance(v, list) and len(v) == 2 and all(is_whole(i, 1, 65536) for i in v),
    ),
    "value_range": ("[-1, 1]", lambda v: v == [-1, 1]),
    "dropout_places": ("'recorded' or 'assumed'", lambda v: v in ("recorded", "assumed")),
    "training": ("an object", lambda v: isinstance(v, dict)),
    "metrics": ("an object", lambda v: isinstance(v, dict)),
}
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


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


# -- our file --------------------------------------------------------------------------------------


def load(source: str | os.PathLike[str] | bytes) -> Model:
    """Read one of our files, given as a path or as its bytes; the weights are in private memory.

    Raises ModelFormatError for a file that is not wholly sound, OSError for an unreadable one.

    >>> model = load("edges2shoes.safetensors")
    """
    if isinstance(source, bytes):
        return _load(io.BytesIO(source), "model")
    with open_file(packaged(source)) as stream:
        return _load(stream, str(os.fspath(source)))


def packaged(path: str | os.PathLike[str]) -> Path:
    """The file of the model in this package that `path` names (as "facades_labels2photo"), else
    `path` itself; a file or folder of that name comes first. FileNotFoundError for a bare name that
    is neither: it names the models that there are."""
    name = os.fsdecode(path)
    if not name.isidentifier() or Path(name).exists():
        return Path(name)
    assets = Path(__file__).parent / "assets"
    inside = assets / f"{name}.safetensors"
    if inside.is_file():
        return inside
    known = ", ".join(sorted(found.stem for found in assets.glob("*.safetensors")))
    raise FileNotFoundError(
        errno.ENOENT, f"No such file, nor a model of the package ({known})", name
    )


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What one of our files says about itself; checks all of the header and reads no weights.

    Keys: format, architecture (a dict), card, digest, parameters, dtypes, file_bytes.
    Raises as `load` does.
    """
    with open_file(packaged(path)) as stream:
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
    raw = dict(_checked_tensors(stream, header, about, where))
    return Model(about.architecture, StoredTensors(raw), about.card, about.digest)


def _checked_tensors(
    stream: BinaryIO, header: Header, about: About, where: str
) -> Iterator[tuple[str, Array]]:
    for name, entry in header.tensors.items():
        raw = read_raw(stream, entry, where)
        if hashlib.sha256(raw.data).hexdigest() != about.sha256[name]:
            raise ModelFormatError(
                f"{where}: tensor {name!r} does not match its SHA-256: the file is damaged"
            )
        check_values(name, raw, where)
        yield name, raw


def is_ours(header: Header) -> bool:
    return OWN_KEY in header.metadata


def _about(stream: BinaryIO, where: str) -> tuple[Header, About]:
    """Header and metadata, everything checked that can be without reading a tensor."""
    header = read_header(stream, where)
    if not is_ours(header):
        raise ModelFormatError(
            f"{where}: safetensors without {OWN_KEY!r} in its metadata is not one of our files; "
            "checkpoints.read takes foreign ones and `pix2pix-fast convert` makes one of ours of it"
        )
    if set(header.metadata) != {OWN_KEY, "digest"}:
        raise ModelFormatError(
            f"{where}: __metadata__ must hold {OWN_KEY!r} and 'digest' alone, "
            f"got {show(list(header.metadata))}"
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
    if type(version) is not int or version < 1:
        raise ModelFormatError(f"{where}: metadata: format must be 1 or more, got {show(version)}")
    if version > FORMAT:
        raise ModelFormatError(
            f"{where}: format version {version} is newer than {FORMAT}, the newest that this "
            "release reads; update pix2pix_fast"
        )
    _exactly(document, ["format", "architecture", "card", "sha256"], f"{where}: metadata")
    if header.metadata["digest"] != digest(text, header.tensors):
        raise ModelFormatError(
            f"{where}: 'digest' does not match the header and metadata: the file is damaged"
        )
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
    """Write `model` to `path`, return its digest; the file appears whole and proved or not at all.

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
            end = position + math.prod(shape) * ITEM_BYTES[kind]
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
        stream.flush()
        for _ in _checked_tensors(stream, *_about(stream, str(path)), str(path)):
            pass  # what `load` will do, one tensor at a time, before the file takes its name
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
