"""The .pict and .bin files of pix2pix-tensorflow's exporter -> Model.

Three parts, each behind its length as a big-endian u32: JSON names and shapes; a codebook of 256
float32; one byte for each weight, its place in the codebook. Kernels and concatenation are as in
tfjs.py, decoder_1 is the outermost layer, and e8 has a norm.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .architecture import Architecture
from .errors import ModelFormatError
from .model import Model, StoredTensors, check_shapes
from .tensorfile import Array, Shape, parse_json, show
from .tfjs import read_shape, summary, swap_halves

MAX_NAMES_BYTES = 1 << 18
CODEBOOK_BYTES = 1024  # 256 float32


def read_pict(stream: BinaryIO, where: str) -> Model:
    """A U-Net from the exporter of pix2pix-tensorflow: names, a codebook, one byte for each weight.

    Raises ModelFormatError naming the tensor or part and the rule.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    names = parse_json(_part(stream, size, MAX_NAMES_BYTES, "names", where), f"{where}: names", 4)
    part = _part(stream, size, CODEBOOK_BYTES, "codebook", where)
    book = np.frombuffer(part, "<f4") if len(part) == CODEBOOK_BYTES else None
    if book is None or not np.isfinite(book).all():
        raise ModelFormatError(f"{where}: the codebook must be 256 finite numbers")
    if not isinstance(names, list):
        raise ModelFormatError(f"{where}: the names must be a list, got {show(names)}")
    shapes: dict[str, Shape] = {}
    for entry in names:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name in shapes:
            raise ModelFormatError(f"{where}: a tensor without a name of its own: {show(entry)}")
        shapes[name] = read_shape(entry.get("shape"), f"{where}: tensor {show(name)}")
    total, left = sum(map(math.prod, shapes.values())), size - stream.tell() - 4
    count = int.from_bytes(stream.read(4), "big")
    if not total == count == left:
        raise ModelFormatError(
            f"{where}: {count} codes declared, {left} bytes left, the tensors take {total}"
        )
    architecture, theirs = _pict_names(shapes, where)
    tensors: dict[str, Array] = {}
    for name, shape in shapes.items():
        ours = theirs[name]
        codes = np.frombuffer(stream.read(math.prod(shape)), np.uint8)
        if codes.size != math.prod(shape):
            raise ModelFormatError(f"{where}: the file became shorter while it was read")
        value = book[codes].reshape(shape)
        if len(shape) == 4:
            value = np.ascontiguousarray(value.transpose(3, 2, 0, 1))
            if ours[0] == "d" and ours != "d1.weight":  # [decoder, skip] -> [skip, decoder]
                value = swap_halves(value)
        tensors[ours] = value
    card: dict[str, Any] = {
        "name": re.sub(r"[^ -~]", "?", Path(where).stem)[:200],
        "source": "pix2pix-tensorflow's exporter, 8 bits a weight",
        "inferred": f"{summary(architecture, '')}; assumed: dropout, eps, tanh",
        "dropout_places": "assumed",
        "source_channels": "RGB",
        "value_range": [-1, 1],
    }
    model = Model(architecture, StoredTensors(tensors), card)
    model.check()
    return model


def _part(stream: BinaryIO, size: int, limit: int, what: str, where: str) -> bytes:
    length = int.from_bytes(stream.read(4), "big")
    if length > limit or length > size - stream.tell():
        raise ModelFormatError(
            f"{where}: {what} of {length} bytes, {size - stream.tell()} are left, {limit} accepted"
        )
    return stream.read(length)


def _pict_names(shapes: dict[str, Shape], where: str) -> tuple[Architecture, dict[str, str]]:
    """The architecture, and our name for each of theirs: decoder_1 is outermost there."""
    pattern = re.compile(
        r"generator/(encoder|decoder)_(\d)/(?:conv2d(?:_transpose)?/(kernel|bias)"
        r"|batch_normalization/(gamma|beta))"
    )
    found = {name: pattern.fullmatch(name) for name in shapes}
    depth = max((int(m[2]) for m in found.values() if m and m[1] == "encoder"), default=0)
    theirs: dict[str, str] = {}
    for name, match in found.items():
        if match is None or not 1 <= int(match[2]) <= depth:
            raise ModelFormatError(
                f"{where}: tensor {show(name)} belongs to no U-Net of pix2pix-tensorflow"
            )
        k = int(match[2])
        layer = f"e{k}" if match[1] == "encoder" else f"d{depth + 1 - k}"
        part = {"kernel": "weight", "gamma": "norm.weight", "beta": "norm.bias"}
        theirs[name] = f"{layer}.{part.get(match[3] or match[4], 'bias')}"
    ours = {mine: shapes[name] for name, mine in theirs.items()}
    first, last = ours.get("e1.weight", ()), ours.get(f"d{depth}.weight", ())
    if len(ours) != len(shapes) or len(first) != 4 or len(last) != 4:
        raise ModelFormatError(f"{where}: the tensors of encoder_1 or decoder_1 are missing")
    try:
        architecture = Architecture(
            depth=depth,
            ngf=first[3],
            in_channels=first[2],
            out_channels=last[2],
            bottleneck_norm=f"e{depth}.norm.weight" in ours,
            dropout=tuple(f"d{k}" for k in range(1, min(4, depth))),
        )
    except ModelFormatError as error:
        raise ModelFormatError(f"{where}: {error}") from None
    expected = architecture.shapes()
    for name, mine in theirs.items():
        need = expected.get(mine)
        if need is not None and len(need) == 4:
            need = (need[2], need[3], need[1], need[0])
        if shapes[name] != need:
            raise ModelFormatError(
                f"{where}: tensor {show(name)} has shape {shapes[name]}, as our {mine} it must be "
                f"{need or 'absent'}"
            )
    # what is missing is named before any code is decoded
    check_shapes(architecture, {mine: expected[mine] for mine in theirs.values()}, where)
    return architecture, theirs
