"""The `train` verb: reads the command line, decides nothing."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click
from pix2pix_fast.train import recipes

from pix2pix_fast.cli import words

# About a minute on two cores: the whole machinery, nothing worth looking at.
SMOKE: dict[str, Any] = {
    "ngf": 8,
    "ndf": 8,
    "epochs": 1,
    "decay_epochs": 0,
    "batch": 1,
    "evaluate_count": 4,
    "log_every": 10,
}
SMOKE_STEPS = 60


_HELP = {"help_option_names": ["-h", "--help"]}


@click.command("train", context_settings=_HELP)
@click.argument("recipe")
@click.argument("data", type=click.Path(exists=True, file_okay=False))
@click.option("-o", "--output", "run", required=True, type=click.Path(), help="Folder of the run.")
@click.option("--direction", type=click.Choice(["AtoB", "BtoA"]), help="Instead of the recipe's.")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any value of a recipe."
)
@click.option("--resume", is_flag=True, help="Go on from RUN/last.pt.")
@click.option("--changed-data", is_flag=True, help="With --resume: DATA may have changed since.")
@click.option("--smoke", is_flag=True, help="A tiny network and a few steps: does it run?")
@click.option("--max-steps", type=click.IntRange(1), help="Stop and save after so many steps.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--device", default="auto", show_default=True)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def train(
    recipe: str,
    data: str,
    run: str,
    direction: str | None,
    settings: tuple[str, ...],
    resume: bool,
    changed_data: bool,
    smoke: bool,
    max_steps: int | None,
    threads: int | None,
    device: str,
    debug: bool,
) -> None:
    """Train RECIPE on the pictures in DATA; state, pictures and log go to the run folder.

    DATA holds train/ and val/ (or test/). Ctrl-C saves and stops; --resume goes on.
    """
    import torch
    from pix2pix_fast.train import distributed
    from pix2pix_fast.train.state import StateError
    from pix2pix_fast.train.train import train as run_training
    from pix2pix_fast.train.trainer import TrainingStopped

    if changed_data and not resume:
        raise click.UsageError("--changed-data belongs to --resume")
    if threads:
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ and hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(
            len(os.sched_getaffinity(0))
        )  # torch counts cores, not what it may use
    logger = logging.getLogger("pix2pix_fast.train")  # warnings; without a terminal, progress too
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    overrides: dict[str, Any] = dict(SMOKE) if smoke else {}
    if direction:
        overrides["direction"] = direction
    try:
        for setting in settings:
            name, equals, value = setting.partition("=")
            if not equals:
                raise click.UsageError(f"--set takes NAME=VALUE, got {setting!r}")
            overrides[name] = value
        try:
            values = recipes.load(recipe, **overrides)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        steps = max_steps or (SMOKE_STEPS if smoke else 0)
        trainer = run_training(
            values,
            data,
            run,
            resume=resume,
            changed_data=changed_data,
            device=device,
            max_steps=steps,
        )
        if distributed.rank() == 0:
            resnet = values["generator"].startswith("resnet")  # the engine runs none
            target = "FOLDER --format junyanz" if resnet else "NAME.safetensors"
            way_out = f"python -m pix2pix_fast.train.export {run} {target}"
            click.echo(f"{trainer.step_count} steps done; a model of them: {way_out}")
    except KeyboardInterrupt:
        state = Path(run) / "last.pt"
        kept = f"{state} is complete, --resume goes on" if state.exists() else "nothing was saved"
        click.echo(f"stopped; {kept}", err=True)
        sys.exit(130)
    except (ValueError, OSError, StateError, TrainingStopped, distributed.ProcessLost) as error:
        if debug:
            raise
        _fail(error)
    finally:
        logger.removeHandler(handler)


@click.command("export", context_settings=_HELP)
@click.argument("run", type=words.MODEL)
@click.argument("output", type=click.Path())
@click.option(
    "--format", "form", type=click.Choice(["safetensors", "junyanz"]), default="safetensors"
)
@click.option(
    "--dtype", type=click.Choice(["f32", "f16", "bf16"]), default="f16", show_default=True
)
@click.option("--which", type=click.Choice(["last", "best"]), default="last", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option("--card", multiple=True, metavar="NAME=TEXT", help="An entry of the model's card.")
def export(
    run: str,
    output: str,
    form: str,
    dtype: Any,
    which: Any,
    overwrite: bool,
    card: tuple[str, ...],
) -> None:
    """Write the model of a RUN folder, a state file or a model file: for the engine, or junyanz's
    code.

    A file for the engine is run and compared with PyTorch before this says that it is done. For
    junyanz's code OUTPUT is a folder, or the .pth of G; D goes beside it.
    """
    from pix2pix_fast.train import export as exporter

    from pix2pix_fast import model

    try:
        source: Any = model.load(run) if run.endswith(".safetensors") else run
        if form == "junyanz":
            path = Path(output)
            if path.suffix != ".pth":
                path.mkdir(parents=True, exist_ok=True)
                path /= "latest_net_G.pth"
            for written in exporter.to_junyanz(source, path, which=which, overwrite=overwrite):
                click.echo(written)
            return
        if Path(output).is_dir():
            raise click.UsageError(f"{output} is a folder, expected a file")
        words.refuse_existing(output, overwrite)
        entries = dict(entry.partition("=")[::2] for entry in card)
        made = exporter.to_file(source, output, dtype=dtype, which=which, card=entries)
    except (ValueError, OSError, RuntimeError) as error:
        _fail(error)
    click.echo(f"{output}: engine and PyTorch agree; digest {made.digest}", err=True)


@click.command("colorize", context_settings=_HELP)
@click.argument("model", type=words.MODEL)
@click.argument("picture", type=click.Path(exists=True, dir_okay=False))
@click.argument("output", type=click.Path(dir_okay=False))
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
def colorize(model: str, picture: str, output: str, overwrite: bool) -> None:
    """Colour PICTURE with MODEL, a model file or run of the recipe `colorization`, into OUTPUT."""
    from PIL import Image
    from pix2pix_fast.train.colorize import colorize as coloured
    from pix2pix_fast.train.data import read_picture

    from pix2pix_fast import Engine
    from pix2pix_fast.tensorfile import atomic_file

    kind = Image.registered_extensions().get(Path(output).suffix.lower())
    if kind not in Image.SAVE:
        raise click.UsageError(f"{output}: pictures are not written as that; end its name in .png")
    try:
        words.refuse_existing(output, overwrite)
        with Engine(model) as engine:
            pixels = coloured(engine, read_picture(Path(picture)))
        with atomic_file(output) as file:
            Image.fromarray(pixels).save(file, kind)
    except (ValueError, OSError, RuntimeError) as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    reason = words.reason_of(error) if isinstance(error, OSError) else str(error)
    click.echo(f"pix2pix-fast: {reason}", err=True)  # of as many lines as there are bad files
    sys.exit(1)
