"""train, evaluate and the study of real and fake: what needs the training package."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .words import plain, refuse_existing, steps_bar, verb


@verb(
    cls=click.Command,  # the training part has its own --help and --debug
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(arguments: tuple[str, ...]) -> Any:
    """Train a model on pairs of pictures (needs torch: `pip install 'pix2pix_fast[train]'`)."""
    with _named_cure():  # most of it is imported once the arguments are right
        return _training("cli").train.main(arguments, "pix2pix-fast train", standalone_mode=False)


@contextmanager
def _named_cure() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        cure = "pip install 'pix2pix_fast[train]'"
        raise click.ClickException(f"a package is missing ({error}): {cure}") from error


def _training(name: str) -> Any:
    """A module of pix2pix_fast.train."""
    with _named_cure():
        return importlib.import_module(f"pix2pix_fast.train.{name}")


def _two_folders(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Translated pictures and true ones, matched by name."""
    for option in (
        click.argument("results", type=click.Path(exists=True, file_okay=False)),
        click.argument("truths", type=click.Path(exists=True, file_okay=False)),
        click.option(
            "--endings",
            default="",
            metavar="A,B",
            help="What names of each folder's pictures end in, as _fake_B,_real_B.",
        ),
        click.option("--overwrite", is_flag=True, help="Replace files that exist."),
    )[::-1]:
        verb = option(verb)
    return verb


@verb()
@_two_folders
@click.option("--palette", metavar="P", help="Label pictures: facades, cityscapes, or FILE.json.")
@click.option(
    "--fcn",
    nargs=2,
    type=click.Path(exists=True),
    metavar="NET.pt LABELS",
    help="FCN score: a segmentation network, and the folder of true labels (needs --palette).",
)
@click.option("--features", type=click.Path(exists=True), metavar="NET.pt", help="For FID and KID.")
@click.option("--lpips", type=click.Path(exists=True), metavar="NET.pt", help="For LPIPS.")
@click.option("--plot", type=click.Path(dir_okay=False), metavar="FILE.svg", help="Lab colours.")
@click.option("-o", "--out", type=click.Path(dir_okay=False), metavar="FILE.json", help="Record.")
def evaluate(
    results: str,
    truths: str,
    endings: str,
    overwrite: bool,
    plot: str | None,
    out: str | None,
    **options: Any,
) -> None:
    """Compare the translated pictures in RESULTS with the true ones in TRUTHS, by name.

    L1, PSNR, SSIM and Lab histogram intersection; accuracies and IoU of label pictures, the FCN
    score, FID, KID and LPIPS where their options are given. NET.pt are TorchScript files: nothing
    is downloaded (docs/training.md).
    """
    for path in filter(None, (out, plot)):
        refuse_existing(path, overwrite)
        if not Path(path).parent.is_dir():  # the measures may take hours
            raise FileNotFoundError(f"{plain(path)}: its folder does not exist; make it first")
    measure = _training("evaluation.compare")
    with steps_bar("evaluate") as progress:
        ends = endings.split(",") if endings else ()
        record, figure = measure.compare(
            results, truths, endings=ends, progress=progress, **options
        )
    click.echo(measure.table(record))  # first: whatever writing meets, the figures are there
    if out:
        _write(out, json.dumps(record, indent=1) + "\n")
    if plot:
        _write(plot, figure)


def _write(target: str, text: str) -> None:
    from ..tensorfile import atomic_file

    with atomic_file(target) as stream:
        stream.write(text.encode())


@verb("study-page")
@_two_folders
@click.option("-o", "--out", required=True, type=click.Path(dir_okay=False), metavar="FILE.html")
@click.option("--algorithm", required=True, metavar="NAME", help="Into the answers; not shown.")
@click.option("--unpaired", is_flag=True, help="Real and fake of a pair from different inputs.")
@click.option("--practice", type=int, default=10, show_default=True, help="Trials with feedback.")
@click.option("--trials", type=int, default=40, show_default=True, help="Trials that count.")
@click.option("--pairs", type=int, default=0, help="In the page; default: one for each trial, practice included.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which pairs.")
def study_page(out: str, endings: str, unpaired: bool, overwrite: bool, **options: Any) -> None:
    """Write a page that asks people which of two pictures is fake: the paper's real-or-fake test.

    The page needs no network. At its end a person saves the answers; `study-score` reads them.
    """
    refuse_existing(out, overwrite)
    ends = endings.split(",") if endings else ()
    page = _training("evaluation.study").page(endings=ends, paired=not unpaired, **options)
    _write(out, page)
    click.echo(f"{plain(out)}  {Path(out).stat().st_size / 1e6:.1f} MB")


@verb("study-score")
@click.argument("answers", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="One JSON object per algorithm.")
def study_score(answers: tuple[str, ...], as_json: bool) -> None:
    """How often people took the real picture for the fake, from the answers they saved."""
    for found in _training("evaluation.study").score(answers):
        if as_json:
            click.echo(json.dumps(found))
            continue
        click.echo(
            f"{plain(found['algorithm'])}: fooled {found['fooled']:.1f} ± {found['error']:.1f} % "
            f"({found['people']} people, {found['trials']} trials, {found['mistimed']} mistimed)"
        )
