"""Which picture of one folder belongs to which of another, and what a measure sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pix2pix_fast.train import data
from pix2pix_fast.train.data import DataError


def match(folders: Sequence[Path | str], endings: Sequence[str] = ()) -> dict[str, list[Path]]:
    """Name -> one picture of each folder, sorted by name; a name is a file's stem less its ending.

    `endings` has one text per folder ("_fake_B", "_real_B"; then a folder may hold other pictures,
    and may be given twice), or is empty. DataError for pictures without a partner, two of one name,
    and no pictures at all: a measure over part of a set is another measure.
    """
    if endings and len(endings) != len(folders):
        raise DataError(
            f"{len(endings)} endings for {len(folders)} folders; give one for each: _fake_B,_real_B"
        )
    found = []
    for folder, ending in zip(folders, endings or [""] * len(folders), strict=True):
        named: dict[str, Path] = {}
        for path in data._pictures(Path(folder)):
            if not path.stem.endswith(ending):
                continue
            name = path.stem.removesuffix(ending)
            if name in named:
                raise DataError(f"{path} and {named[name].name} have the same name; keep one")
            named[name] = path
        if not named:
            raise DataError(f"{folder} holds no pictures whose names end in {ending!r}")
        found.append(named)
    for folder, named in zip(folders[1:], found[1:], strict=True):
        alone = sorted(set(found[0]) ^ set(named))
        if alone:
            raise DataError(
                f"{folders[0]} and {folder}: {len(alone)} pictures have no partner of the same "
                f"name: {', '.join(alone[:5])}"
            )
    return {name: [named[name] for named in found] for name in sorted(found[0])}


def read(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 sRGB of any picture that training reads; gray becomes three equal channels."""
    array = data.to_channels(data.read_picture(path), 3, path)
    data.refuse_not_finite(array, path)
    return array if array.dtype == np.uint8 else data.to_pixels(data.to_tensor(array))


def same_size(*pictures: tuple[Path, np.ndarray]) -> None:
    """DataError when the pictures differ in size."""
    (first, a), *others = pictures
    for path, b in others:
        if a.shape[:2] != b.shape[:2]:
            raise DataError(
                f"{first} is {a.shape[0]}x{a.shape[1]} (height x width), {path} is "
                f"{b.shape[0]}x{b.shape[1]}; bring the translated ones to the size of the true ones"
            )
