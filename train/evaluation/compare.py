"""Two folders, translated pictures and true ones: every measure that can be taken, as one record.

    l1 psnr ssim                   always                   pixel.py
    colour {L a b}                 always                   histogram.py, Figure 7
    lpips                          with a network           features.py
    distances {fid kid}            with a network           features.py
    labels {pixel class iou}       with a palette           labels.py, Table 6: both are label pictures
    fcn {results truths}           with palette and network labels.py, Tables 1 to 3: both are photos

A network is a TorchScript file of the user's; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pix2pix_fast.train import data
from pix2pix_fast.train.evaluation import features as nets
from pix2pix_fast.train.evaluation import folders, labels
from pix2pix_fast.train.evaluation.histogram import Histograms, intersection, plot
from pix2pix_fast.train.evaluation.pixel import NAMES, pixel_metrics


class Comparison(NamedTuple):
    """What `compare` found."""

    record: dict[str, Any]  # plain values; `each` has those of one picture, by name
    plot: str  # SVG of the colour distributions


def compare(
    results: Path | str,
    truths: Path | str,
    *,
    endings: Sequence[str] = (),
    palette: str | None = None,
    fcn: tuple[Path | str, Path | str] | None = None,
    features: Path | str | None = None,
    lpips: Path | str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Comparison:
    """Two folders of pictures, matched by name (`folders.match`, whose `endings` these
    are; a third one belongs to the labels of `fcn`).

    palette: a name or file for `labels.palette`. fcn: a segmentation network (`labels.segment`) and
    the folder of true labels; the true photos' score stands beside the results', and is what a
    network that suits the data gives them. features, lpips: networks (`features.py`). ValueError for
    whatever cannot be compared.
    """
    if fcn and not palette:
        raise ValueError("the FCN score needs a palette too, to read the true labels")
    colours = labels.palette(palette) if palette else None
    segmenter = nets.load(fcn[0], "fcn") if fcn else None
    extractor = nets.load(features, "features") if features else None
    judge = nets.load(lpips, "lpips") if lpips else None
    matched = folders.match([results, truths, fcn[1]] if fcn else [results, truths], endings)
    seen = Histograms(), Histograms()
    confusions = [labels.Confusion(colours) for _ in seen] if colours else []
    extracted: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    each: dict[str, dict[str, float]] = {}
    for done, (name, paths) in enumerate(matched.items()):
        pair = [folders.read(path) for path in paths[:2]]
        folders.same_size(*zip(paths, pair, strict=False))
        y, t = (data.to_tensor(picture) for picture in pair)
        try:
            each[name] = pixel_metrics([(y, t)])
        except data.DataError as error:
            raise data.DataError(f"{paths[0]}: {error}") from None
        if judge:
            each[name]["lpips"] = nets.perceptual(judge, *pair)
        for histograms, picture in zip(seen, pair, strict=True):
            histograms.add(picture)
        if segmenter and colours:
            truth = labels.decode(folders.read(paths[2]), colours)
            for confusion, photo in zip(confusions, pair, strict=True):
                confusion.add(labels.segment(segmenter, photo, *truth.shape), truth)
        elif colours:
            confusions[0].add(*(labels.decode(picture, colours) for picture in pair))
        if extractor:
            for vectors, picture in zip(extracted, pair, strict=True):
                vectors.append(nets.extract(extractor, picture))
        if progress:
            progress(done + 1, len(matched))

    record: dict[str, Any] = {"results": str(results), "truths": str(truths), "pictures": len(each)}
    for name in (*NAMES, "lpips") if judge else NAMES:
        record[name] = sum(figures[name] for figures in each.values()) / len(each)
    record["colour"] = intersection(*seen)
    if extractor:
        record["distances"] = nets.distances(*(torch.stack(vectors) for vectors in extracted))
    if segmenter:
        scores = [confusion.scores() for confusion in confusions]
        record["fcn"] = dict(zip(("results", "truths"), scores, strict=True))
    elif colours:
        record["labels"] = confusions[0].scores()
    used = {"palette": palette, "fcn": fcn and fcn[0], "features": features, "lpips": lpips}
    record["used"] = {name: _identity(path) for name, path in used.items() if path}
    return Comparison(record | {"each": each}, plot(*seen))


def _identity(path: Path | str) -> str:
    """A file's name and digest: figures by another network are other figures."""
    if not Path(path).is_file():
        return str(path)
    return f"{Path(path).name} sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()}"


def table(record: dict[str, Any]) -> str:
    """The record in lines for people: a measure, its figures, their names."""
    lines = [f"{record['pictures']} pictures"]
    for name, digits in (("l1", 4), ("psnr", 2), ("ssim", 4), ("lpips", 4)):
        if name in record:
            lines.append(f"{name.upper():<16} {record[name]:8.{digits}f}")
    if "distances" in record:
        far = record["distances"]
        lines += [f"{'FID':<16} {far['fid']:8.3f}", f"{'KID':<16} {far['kid']:8.5f}"]
    lines.append(_row("Lab intersection", record["colour"], ("L", "a", "b")))
    scores = {"labels": record["labels"]} if "labels" in record else {}
    scores |= {f"FCN, {who}": found for who, found in record.get("fcn", {}).items()}
    for name, found in scores.items():
        lines.append(_row(name, found, ("pixel", "class", "iou", "none")))
    if scores:
        lines.append("")
        lines.append(
            f"{'class':<16} {'pixels':>10}"
            + "".join(f"  {n + ': accuracy, iou':>26}" for n in scores)
        )
    for label in next(iter(scores.values()), {"classes": {}})["classes"]:
        row = [found["classes"][label] for found in scores.values()]
        figures = (f"  {_figure(one['accuracy']):>16}{_figure(one['iou']):>10}" for one in row)
        lines.append(f"{label:<16} {row[0]['pixels']:10d}" + "".join(figures))
    return "\n".join(lines)


def _row(name: str, found: dict[str, Any], keys: Sequence[str]) -> str:
    return f"{name:<16} " + "   ".join(f"{key} {found[key]:.4f}" for key in keys)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
