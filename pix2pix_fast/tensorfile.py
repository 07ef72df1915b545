"""Tensor files of strangers, read without trust; files of our own, written whole or not at all; where caches lie.

safetensors headers and JSON are parsed here under hard limits, since the library either maps the
file or copies it twice and its errors name no tensor (docs/decisions/002-model-file.md; the tests
hold this reader against the library). Read next: model.py, which knows what the tensors mean.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import secrets
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from .errors import ModelFormatError

MAX_HEADER_BYTES = 1 << 18  # 9 levels need about 24 KB; parsing costs < 8 MiB at the cap

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]

# name in the file -> how numpy holds the bytes; numpy has no bfloat16, so its bits stay uint16
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
CHUNK = 1 << 20  # elements looked at together: temporaries stay in cache and small


def show(value: object) -> str:
    """`value` for an error message: escaped, so that a file cannot steer a terminal, and short."""
    text = ascii(value)
    return text if len(text) <= 120 else text[:117] + "..."


def is_whole(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def parse_json(data: bytes, where: str, max_nesting: int) -> Any:
    """JSON without duplicate keys, NaN, long numbers or deep nesting. Raises ModelFormatError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
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
    outside = re.sub('"[^"]*"', "", text.replace("\\\\", "").replace('\\"', ""))  # of texts
    bare = np.frombuffer(outside.encode(), dtype=np.uint8)
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


class Entry(NamedTuple):
    dtype: str
    shape: Shape
    begin: int  # bytes from the start of the file
    end: int


class Header(NamedTuple):
    tensors: dict[str, Entry]  # in the order of their bytes
    metadata: dict[str, str]


ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}


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
        raise ModelFormatError(
            f"{where}: expected dtype, shape and data_offsets, got {show(value)}"
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ModelFormatError(f"{where}: dtype {show(dtype)}, expected F32, F16 or BF16")
    if (
        not isinstance(shape, list)
        or len(shape) > 4
        or not all(is_whole(n, 1, 2**31 - 1) for n in shape)
    ):
        raise ModelFormatError(
            f"{where}: shape {show(shape)}, expected at most 4 sizes from 1 to 2^31 - 1"
        )
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(is_whole(n, 0, 2**62) for n in offsets)
        or offsets[0] > offsets[1]
    ):
        raise ModelFormatError(f"{where}: data_offsets {show(offsets)}, expected [begin, end]")
    begin, end = (start + n for n in offsets)
    if end > size:
        raise ModelFormatError(f"{where}: data to byte {end} in a file of {size}")
    expected = math.prod(shape) * ITEM_BYTES[dtype]
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
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise ModelFormatError(f"{where}: the file became shorter while it was read")
        done += count
    dtype = "<f8" if entry.dtype == "F64" else DTYPES[entry.dtype]  # F64: foreign files' alone
    return np.frombuffer(buffer, dtype=dtype).reshape(entry.shape)


@contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A regular file opened to read, unbuffered. Raises ModelFormatError for anything else."""
    try:
        stream = open_regular(path, buffering=0)
    except IsADirectoryError:
        raise ModelFormatError(f"{path}: is a folder, expected a model file") from None
    if stream is None:
        raise ModelFormatError(f"{path}: is not a regular file")
    with stream:
        yield stream


def open_regular(path: str | os.PathLike[str], buffering: int = -1) -> BinaryIO | None:
    """A file opened to read; None for a pipe or device, which may keep one waiting for ever."""

    def opener(name: str, flags: int) -> int:  # without O_NONBLOCK a FIFO would wait for a writer
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    stream = open(path, "rb", buffering=buffering, opener=opener)  # noqa: SIM115, PTH123
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return stream
    stream.close()
    return None


def to_float32(raw: Array) -> Array:
    """float32 of a tensor as DTYPES holds it; no copy where it is float32 already."""
    if raw.dtype.kind == "u":  # bfloat16 is the upper half of a float32
        wide = raw.astype(np.uint32)
        wide <<= 16
        value: Array = wide.view(np.float32)
    else:
        with np.errstate(over="ignore"):  # check_values refuses by name what becomes infinite
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


@contextmanager
def atomic_file(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[BinaryIO]:
    """A new file that takes the name `path` when the block ends well; nothing is left otherwise.

    Written beside it under a hidden name and renamed; `durable`: it survives a power cut from then on,
    for which the disk is waited for.
    """
    final = Path(path)
    part = final.with_name(f".pix2pix-fast-{secrets.token_hex(8)}.part")  # fits where the name does
    try:
        with part.open("x+b") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        part.replace(final)
    except BaseException as error:
        with suppress(FileNotFoundError):
            part.unlink()
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(part)):
            error.filename = os.fspath(path)  # the name that the caller knows; a full disk gives none
        raise
    if durable and os.name == "posix":  # the rename itself, too
        handle = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def cache_folder(variable: str, *below: str) -> Path:
    """Where what was costly to find is kept: the folder that the environment's `variable` names, else
    pix2pix_fast and `below` in the user's cache. OSError for a user without one, as containers have them.
    """
    if named := os.environ.get(variable):
        return Path(named)
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise OSError(f"no folder to keep it in ({error}); {variable} names one") from None
    return Path(cache, "pix2pix_fast", *below)
