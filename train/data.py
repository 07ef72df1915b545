"""Pairs of pictures: where they come from, and how a pair becomes two tensors in [-1, 1].

    pairs         DATA/train/*.jpg, A in the left half and B in the right one
    folders       DATA/A/train/NAME and DATA/B/train/NAME (or DATA/A and DATA/B), any suffixes
    colorization  DATA/train/*.jpg, any photos: A = lightness (1 channel), B = a and b of Lab (2)
    edges         DATA/train/*.jpg, any photos: A = edges found in the photo, B = the photo
    inpainting    DATA/train/*.jpg, any photos: A = the photo with a white hole, B = the photo

Folders inside are read too, such as the classes of ImageNet. Every random choice follows from
(seed, epoch, pair): the same for any number of workers and processes, and after a resume nothing
has to be restored. Pictures: 8 or 16 bits, 1 to 4 channels; .npy arrays (H, W, C) of uint8, uint16
or float in 0..1 with any number of channels.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pix2pix_fast.train import colour
from torch import Tensor
from torch.utils.data import Dataset

from pix2pix_fast import images

LOG = logging.getLogger("pix2pix_fast.train")
SUFFIXES = (*images.SUFFIXES, ".npy")
FORMS = ("pairs", "folders", "colorization", "edges", "inpainting")


class DataError(ValueError):
    """The pictures cannot be used as they are; the message says which and why."""


def read_picture(path: Path) -> np.ndarray:
    """(H, W, C) uint8, uint16 or float32, upright as in the engine; alpha is dropped, palettes and
    CMYK become RGB.
    """
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            with Image.open(path, formats=images.FORMATS) as file:
                image = images.upright(file)
                if image.mode in ("LA", "La"):
                    image = image.convert("L")
                elif image.mode != "RGB" and not _is_gray(image.mode):
                    image = image.convert("RGB")
                array = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable picture ({error})") from error
    if array.dtype == np.int32 and path.suffix.lower() != ".npy":  # Pillow's mode I: 16-bit files
        _refuse_values(array, 65535, "levels of 16 bits", path)
        array = array.astype(np.uint16)
    _refuse_kind(array.shape, array.dtype, path)
    if array.dtype.kind == "f":
        _refuse_values(array, 1, "floats", path)
        array = array.astype(np.float32)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array[:, :, None] if array.ndim == 2 else array


def picture_header(path: Path) -> tuple[int, int, int]:
    """Height, width and channels of what `read_picture` returns, from the header alone."""
    try:
        if path.suffix.lower() != ".npy":
            with Image.open(path, formats=images.FORMATS) as image:
                gray = image.mode in ("LA", "La") or _is_gray(image.mode)
                h, w = image.height, image.width
                if image.format != "TIFF" and _lies_on_its_side(image, path):  # TIFF: Pillow swaps
                    h, w = w, h
                return h, w, 1 if gray else 3
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable picture ({error})") from error
    _refuse_kind(array.shape, array.dtype, path)
    h, w, c = (*array.shape, 1)[:3]
    return h, w, c


def _lies_on_its_side(image: Image.Image, path: Path) -> bool:
    """Whether EXIF turns the picture by a quarter.

    Pillow decodes a PNG to find EXIF behind its pixels: only one that has anything there.
    """
    known = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
    if image.format == "PNG" and not any(name in image.info for name in known):
        kinds = []
        with path.open("rb") as file:
            file.seek(8)
            while len(head := file.read(8)) == 8:
                kinds.append(head[4:])
                file.seek(int.from_bytes(head[:4], "big") + 4, 1)
        behind = kinds[kinds.index(b"IDAT") :] if b"IDAT" in kinds else []
        if set(behind) <= {b"IDAT", b"IEND"}:
            return False
    return images.orientation(image) in (5, 6, 7, 8)


def _is_gray(mode: str) -> bool:
    """Pillow's modes of one channel that are read as they are."""
    return mode in ("L", "F") or mode.startswith("I")


def _refuse_kind(shape: tuple[int, ...], dtype: np.dtype[Any], path: Path) -> None:
    known = dtype.kind == "f" or dtype.newbyteorder("=") in (np.uint8, np.uint16)
    if len(shape) not in (2, 3) or 0 in shape or not known:
        raise DataError(
            f"{path}: shape {shape} of {dtype}, expected (H, W, C) of uint8, uint16 or float"
        )


def _refuse_values(array: np.ndarray, top: int, what: str, path: Path) -> None:
    """Not for NaN: the step that meets one names it, and `refuse_not_finite` elsewhere."""
    low, high = array.min(), array.max()
    if low < 0 or high > top:
        raise DataError(f"{path}: values {low:g} to {high:g}, expected {what} in 0 to {top}")


def refuse_not_finite(array: np.ndarray, path: Path) -> None:
    """DataError for NaN in a picture that is measured: it would spoil the mean of all others."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{path}: a value is not finite, expected floats in 0 to 1")


def convertible(have: int, want: int) -> bool:
    """Whether `to_channels` makes `want` channels of `have`."""
    return have == want or (have, want) in ((1, 3), (3, 1))  # of five bands none is dropped unsaid


def to_channels(array: np.ndarray, channels: int, path: Path) -> np.ndarray:
    """RGB to gray and gray to RGB where the network wants it; any other difference raises."""
    have = array.shape[2]
    if not convertible(have, channels):
        raise DataError(f"{path}: {have} channels, expected {channels}")
    if have == channels:
        return array
    if have == 1:
        return np.repeat(array, 3, axis=2)
    gray = array @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    if array.dtype.kind == "u":
        gray = np.rint(gray)
    return gray[:, :, None].astype(array.dtype)


def resize(array: np.ndarray, h: int, w: int) -> np.ndarray:
    """Bicubic as Pillow does it, aspect ignored; (H, W, C) to (h, w, C) of the same dtype."""
    if array.shape[:2] == (h, w):
        return array
    if array.dtype == np.uint8 and array.shape[2] in (1, 3):
        image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
        out = np.asarray(image.resize((w, h), Image.Resampling.BICUBIC))
        return out[:, :, None] if out.ndim == 2 else out
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(array[:, :, c], dtype=np.float32)).resize(
                (w, h), Image.Resampling.BICUBIC
            )
        )
        for c in range(array.shape[2])
    ]
    out = np.stack(planes, axis=2)
    if array.dtype.kind == "u":
        return np.clip(np.rint(out), 0, np.iinfo(array.dtype).max).astype(array.dtype)
    return np.clip(out, 0.0, 1.0)  # bicubic overshoots at edges, and tanh could never follow


def to_tensor(array: np.ndarray) -> Tensor:
    """(H, W, C) uint8 0..255, uint16 0..65535 or float 0..1 to (C, H, W) float32 in [-1, 1]."""
    top = float(np.iinfo(array.dtype).max) if array.dtype.kind == "u" else 1.0
    scaled = array.astype(np.float32) * np.float32(2.0 / top) - np.float32(1.0)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


def to_pixels(y: Tensor) -> np.ndarray:
    """(C, H, W) in [-1, 1] to (H, W, C) uint8, rounded to nearest: the engine's rule."""
    levels = (y.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return levels.round().to(torch.uint8).permute(1, 2, 0).numpy()


def with_hole(x: Tensor) -> Tensor:
    """(C, size, size) with its middle white: half of each side, a quarter of the picture."""
    size = x.shape[1]
    begin, end = size // 4, size // 4 + size // 2
    holed = x.clone()
    holed[:, begin:end, begin:end] = 1.0
    return holed


class Pairs(Dataset[tuple[Tensor, Tensor, int]]):
    """The pairs of one split; item (epoch, index) is (input, target, index), epoch -1: not
    augmented.

    input (in_channels, size, size) and target (out_channels, size, size), float32 in [-1, 1].
    Every header is read at the start: a bad folder stops before the first step, naming each bad
    file.
    """

    def __init__(self, root: Path | str, split: str, values: dict[str, Any]) -> None:
        self.root, self.split, self.values = Path(root), split, values
        form = values["data_form"]
        if form not in FORMS:
            raise DataError(f"data_form is one of {', '.join(FORMS)}, got {form!r}")
        if values["direction"] not in ("AtoB", "BtoA"):
            raise DataError(f"direction is AtoB or BtoA, got {values['direction']!r}")
        if values["load_size"] < values["size"]:
            raise DataError(
                f"load_size {values['load_size']} is smaller than size {values['size']}"
            )
        if form == "colorization" and self._channels() != (1, 2):
            raise DataError(
                "colorization: A has 1 channel (lightness), B 2 (a and b), got "
                f"in_channels {values['in_channels']}, out_channels {values['out_channels']} "
                f"with direction {values['direction']}"
            )
        if form == "inpainting" and (ci := self._channels()[0]) != (co := self._channels()[1]):
            raise DataError(f"inpainting: A has as many channels as B, got {ci} and {co}")
        if form == "edges" and self._channels()[0] not in (1, 3):
            raise DataError(f"edges: A has 1 or 3 channels, got {self._channels()[0]}")
        self.files = self._two_folders() if form == "folders" else self._one_folder()
        self._check()

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """The pair's file, relative to the data folder."""
        return str(self.files[index][0].relative_to(self.root))

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, by its name relative to the data folder."""
        return {
            str(path.relative_to(self.root)): path.stat().st_size
            for pair in self.files
            for path in pair
        }

    def digest(self) -> str:
        """SHA-256 over names and file sizes: tells data sets apart in milliseconds."""
        text = "".join(f"{name}\0{size}\n" for name, size in self.sizes().items())
        return hashlib.sha256(text.encode()).hexdigest()

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        epoch, index = key
        a, b = self._read(index, self.values["load_size" if epoch >= 0 else "size"])
        if epoch >= 0:
            rng = np.random.default_rng([self.values["seed"], epoch, index])
            a, b = self._jitter(a, b, rng)
        else:
            size = self.values["size"]
            refuse_not_finite(a, self.files[index][0])
            refuse_not_finite(b, self.files[index][-1])
            a, b = resize(a, size, size), resize(b, size, size)
        if self.values["data_form"] == "colorization":
            x, t = colour.split(b)
        else:
            x, t = to_tensor(a), to_tensor(b)
        if self.values["data_form"] == "inpainting":
            x = with_hole(x)
        if self.values["direction"] == "BtoA":
            x, t = t, x
        return x, t, index

    def _jitter(
        self, a: np.ndarray, b: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Resize, the same random crop and the same mirroring for both."""
        load, size = self.values["load_size"], self.values["size"]
        top, left = (int(v) for v in rng.integers(0, load - size + 1, size=2))
        flip = self.values["mirror"] and rng.random() < 0.5

        def cut(array: np.ndarray) -> np.ndarray:
            array = resize(array, load, load)[top : top + size, left : left + size]
            return array[:, ::-1] if flip else array

        return cut(a), cut(b)

    def _read(self, index: int, side: int) -> tuple[np.ndarray, np.ndarray]:
        """A and B at the files' own size, with the network's channels; edges and their photo at
        `side` pixels, since lines that are found first fade when the picture shrinks.
        """
        values, files = self.values, self.files[index]
        form = values["data_form"]
        if form == "colorization":
            photo = to_channels(read_picture(files[0]), 3, files[0])
            return photo, photo
        ci, co = self._channels()
        if form == "inpainting":
            photo = to_channels(read_picture(files[0]), co, files[0])
            return photo, photo
        if form == "edges":
            photo = resize(read_picture(files[0]), side, side)
            edges = colour.edges(to_channels(photo, 3, files[0]))
            return to_channels(edges, ci, files[0]), to_channels(photo, co, files[0])
        if form == "folders":
            a, b = read_picture(files[0]), read_picture(files[1])
        else:
            whole = read_picture(files[0])
            if values["mirrored"]:
                whole = whole[:, ::-1]
            half = whole.shape[1] // 2
            a, b = whole[:, :half], whole[:, half:]
        return (
            np.ascontiguousarray(to_channels(a, ci, files[0])),
            np.ascontiguousarray(to_channels(b, co, files[-1])),
        )

    def _channels(self) -> tuple[int, int]:
        """Of A and of B."""
        ci, co = self.values["in_channels"], self.values["out_channels"]
        return (co, ci) if self.values["direction"] == "BtoA" else (ci, co)

    def _one_folder(self) -> list[tuple[Path, ...]]:
        folder = self.root / self.split
        return [(path,) for path in _pictures(folder)]

    def _two_folders(self) -> list[tuple[Path, ...]]:
        sides = []
        for side in "AB":
            folder, deep = self.root / side / self.split, True
            if not folder.is_dir() and self.split == "train":
                folder, deep = self.root / side, False  # val/ beside them is not for training
            stems: dict[str, Path] = {}
            for path in _pictures(folder, deep=deep):
                stem = path.relative_to(folder).with_suffix("").as_posix()
                if stem in stems:
                    raise DataError(
                        f"{stems[stem]} and {path.name}: pairs are matched by name without "
                        "suffix, so that it can be there only once"
                    )
                stems[stem] = path
            sides.append(stems)
        a, b = sides
        alone = sorted(set(a) ^ set(b))
        if alone:
            raise DataError(
                f"{self.root}: {len(alone)} pictures have no partner in the other folder: "
                + ", ".join(alone[:5])
            )
        return [(a[stem], b[stem]) for stem in sorted(a)]

    def _check(self) -> None:
        """Reads every header; lists all bad files at once."""
        ci, co = self._channels()
        wanted = {
            "pairs": [(0, ci), (0, co)],
            "folders": [(0, ci), (1, co)],
            "colorization": [(0, 3)],
            "edges": [(0, 3), (0, co)],
            "inpainting": [(0, co)],
        }[self.values["data_form"]]
        bad = []
        for files in self.files:
            try:
                headers = [picture_header(path) for path in files]
            except DataError as error:
                bad.append(str(error))
                continue
            sizes = [header[:2] for header in headers]
            for at, want in wanted:
                if not convertible(headers[at][2], want):
                    bad.append(f"{files[at]}: {headers[at][2]} channels, expected {want}")
                    break
            if self.values["data_form"] == "pairs" and sizes[0][1] % 2:
                bad.append(
                    f"{files[0]}: {sizes[0][1]} pixels wide; "
                    "two pictures side by side need an even width"
                )
            if len(sizes) == 2 and sizes[0] != sizes[1]:
                bad.append(f"{files[0]} is {sizes[0]} (height, width), {files[1]} {sizes[1]}")
        if bad:
            more = f"\n... and {len(bad) - 10} more" if len(bad) > 10 else ""
            raise DataError(f"{len(bad)} unusable pictures:\n" + "\n".join(bad[:10]) + more)


def _pictures(folder: Path, *, deep: bool = True) -> list[Path]:
    """The pictures of a folder and (deep) of those in it by name; a warning names other files, but
    no hidden ones.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; pictures are expected there")
    files = sorted(_files(folder, deep=deep))
    pictures = [p for p in files if p.suffix.lower() in SUFFIXES]
    others = [p.name for p in files if p.suffix.lower() not in SUFFIXES]
    if others:
        LOG.warning("%s: skipped, not pictures: %s", folder, ", ".join(others[:5]))
    if not pictures:
        raise DataError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    return pictures


def _files(folder: Path, *, deep: bool, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files of a folder and (deep) of those in it, through links too, but no hidden ones."""
    here = (*above, folder.resolve())
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_file():
            yield path
        elif deep and path.is_dir() and path.resolve() not in here:  # else a link in a circle
            yield from _files(path, deep=True, above=here)


def has_split(root: Path | str, split: str, values: dict[str, Any]) -> bool:
    """Whether the data folder has this split."""
    folder = Path(root)
    return ((folder / "A" if values["data_form"] == "folders" else folder) / split).is_dir()


class Batches:
    """Batch sampler of one epoch: lists of (epoch, index), from step `first` on, for one of `world`
    ranks.

    A step takes batch * accumulate * world pairs of the epoch's permutation; what is left over is
    not used in this epoch. Rank r takes the r-th slice of each micro-batch, so that all ranks
    together see what one process with a batch of batch * world sees.
    """

    def __init__(
        self,
        count: int,
        values: dict[str, Any],
        epoch: int,
        *,
        first: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.batch, self.accumulate = values["batch"], values["accumulate"]
        self.epoch, self.first, self.rank, self.world = epoch, first, rank, world
        self.order = np.random.default_rng([values["seed"], epoch]).permutation(count)
        self.steps = steps_per_epoch(count, values, world)

    def __len__(self) -> int:
        return (self.steps - self.first) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        joined = self.batch * self.world
        for micro in range(self.first * self.accumulate, self.steps * self.accumulate):
            start = micro * joined + self.rank * self.batch
            yield [(self.epoch, int(i)) for i in self.order[start : start + self.batch]]


def steps_per_epoch(count: int, values: dict[str, Any], world: int = 1) -> int:
    """Optimiser steps per epoch; raises when the pairs do not fill one."""
    need = values["batch"] * values["accumulate"] * world
    if count < need:
        raise DataError(
            f"{count} pairs, but one step takes {need} (batch x accumulate x processes)"
        )
    return count // need
