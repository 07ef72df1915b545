"""What the verbs share: how a command fails, options, words for people and machines."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click


class Verb(click.Command):
    """A verb whose failures are one line on stderr, unless --debug asks for the traceback."""

    def __init__(self, *args: Any, **extra: Any) -> None:
        super().__init__(*args, **extra)
        debug = click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            callback=lambda context, _, value: context.meta.update(debug=value),
            help="Show the traceback of an error.",
        )
        self.params.append(debug)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            say("interrupted")
            ctx.exit(130)
        except BrokenPipeError:  # `| head` has read enough; what Python still holds goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except Exception as error:
            if ctx.meta["debug"]:
                raise
            raise click.ClickException(reason_of(error)) from error


verb = functools.partial(click.command, cls=Verb)


class ModelPath(click.Path):
    """A file or folder that exists, or the name of a model in the package."""

    def convert(self, value: Any, *where: Any) -> Any:
        from ..model import packaged

        try:
            path = packaged(value)
        except OSError as error:
            self.fail(reason_of(error), *where)
        return super().convert(str(path), *where)


MODEL = ModelPath(exists=True)


def model_argument(verb: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("model", type=MODEL)(verb)


def engine_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every verb hands to Engine as they are."""
    for option in (
        click.option("--dropout", type=click.IntRange(0, 2**64 - 1), help="Seed; turns it on."),
        click.option("--norm", type=click.Choice(["image", "running"]), default="image"),
        click.option(
            "--precision", type=click.Choice(["auto", "f32", "bf16", "f16"]), default="auto"
        ),
        click.option(
            "--backend", type=click.Choice(["auto", "cpu", "cuda", "tensorrt"]), default="auto"
        ),
        click.option("--threads", type=click.IntRange(1, 1024), help="Default: all of this CPU."),
        click.option("--tune", is_flag=True, help="Choose kernels by timing, once per machine."),
    ):
        verb = option(verb)
    return verb


def pop_engine_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of `engine_options`, out of a verb's own."""
    names = ("backend", "precision", "threads", "norm", "dropout", "tune")
    return {name: options.pop(name) for name in names}


def refuse_existing(path: str, overwrite: bool) -> None:
    if Path(path).exists() and not overwrite:
        raise FileExistsError(f"{plain(path)} exists; --overwrite replaces it")


@contextmanager
def pictures_bar(total: int) -> Iterator[tuple[Callable[[], object], Callable[[str], object]]]:
    """(advance, complain): a bar on a terminal, silence elsewhere."""
    if total < 2 or not sys.stderr.isatty():
        yield (lambda: None), say
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
    from rich.text import Text

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task("translate", total=total)
        yield (
            (lambda: bar.advance(task)),
            (lambda line: console.print(Text(f"pix2pix-fast: {line}"), soft_wrap=True)),
        )


@contextmanager
def steps_bar(name: str) -> Iterator[Callable[[int, int], object] | None]:
    """`progress(done, steps)` of one long task: a bar on a terminal, None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, steps: bar.update(task, completed=done, total=steps)


def say(line: str) -> None:
    click.echo(f"pix2pix-fast: {plain(one_line(line))}", err=True)  # click quotes arguments raw


def one_line(text: str) -> str:
    """Lines joined by a space; other spaces may be those of a file's name."""
    return re.sub(r"\s*[\r\n]\s*", " ", text).strip()


def reason_of(error: Exception) -> str:
    """What went wrong, on one line; a bug of ours says so."""
    from ..errors import P2PError

    if isinstance(error, OSError) and error.strerror:
        name = f": {plain(os.fsdecode(error.filename))}" if error.filename else ""
        return f"{error.strerror}{name}"
    known = (P2PError, ValueError, TypeError, OSError, MemoryError, ImportError)
    text = plain(one_line(str(error))) or type(error).__name__
    if isinstance(error, known):
        return text
    return f"internal error: {type(error).__name__}: {text}; --debug shows where"


def plain(text: str) -> str:
    """Text from files and names with whatever could steer a terminal escaped."""

    def shown(c: str) -> bool:  # Python calls only one space printable; names have U+3000, U+202F
        return c.isprintable() or unicodedata.category(c) == "Zs"

    return "".join(c if shown(c) else c.encode("unicode_escape").decode() for c in text)


def show_facts(facts: dict[str, Any], as_json: bool, indent: str = "") -> None:
    if as_json:
        click.echo(json.dumps(facts, default=str))
        return
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            click.echo(f"{indent}{plain(str(key))}:")
            show_facts(value, False, indent + "  ")
            continue
        if isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        click.echo(f"{indent}{plain(str(key))}: {plain(str(value))}")


def whole_numbers(text: str, option: str, separator: str, length: int | None = None) -> list[int]:
    """Whole numbers above 0, joined by `separator`."""
    parts = text.lower().split(separator)
    if not all(part.isdigit() and int(part) > 0 for part in parts) or length not in (
        None,
        len(parts),
    ):
        raise click.UsageError(f"{option}: expected numbers joined by {separator!r}, got {text!r}")
    return [int(part) for part in parts]
