"""translate and demo: pictures in, pictures out."""

from __future__ import annotations

import glob
import json
import os
import stat
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .words import (
    MODEL,
    engine_options,
    model_argument,
    one_line,
    pictures_bar,
    plain,
    reason_of,
    refuse_existing,
    say,
    verb,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

    from PIL import Image

    from ..engine import Engine


_SAVE: dict[str, tuple[str, dict[str, Any]]] = {  # suffix -> Pillow's format and its values
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
    ".webp": ("WEBP", {"lossless": True}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
    ".ppm": ("PPM", {}),
    ".pgm": ("PPM", {}),
}
_DEEP = ("PNG", "TIFF", "PPM")  # those that hold 16 bits


class _Item(NamedTuple):
    source: str  # a path, or "-" for stdin
    place: Path  # where it belongs below an output folder
    error: OSError | None = None  # of a folder that cannot be read


@verb()
@model_argument
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("-o", "--out", metavar="OUT", help="Picture file, folder, or - for stdout.")
@engine_options
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per picture on stdout.")
@click.option("--stats", is_flag=True, help="Counters and times at the end.")
def translate(
    model: str,
    sources: tuple[str, ...],
    out: str | None,
    overwrite: bool,
    as_json: bool,
    stats: bool,
    **options: Any,
) -> int:
    """Translate pictures.

    SOURCE is a picture file, a folder (its tree is mirrored below OUT), a pattern, a .txt file that
    names one picture per line, or - for stdin. Results in a folder are PNG; a single OUT file has
    the format of its suffix. A batch goes on after a bad picture and exits with 1.
    """
    from ..engine import Engine

    items = [item for source in sources for item in _items(source, out)]
    targets = _targets(items, sources, out)
    with Engine(model, **options) as engine:
        if engine.info["inferred"]:  # a foreign file: say what we took it for
            say(f"{plain(model)}: {plain(engine.info['inferred'])}")
        _check_channels(model, engine.info["in_channels"], engine.info["out_channels"])
        to_stdout = targets == ["-"]
        failed = _translate_all(engine, items, targets, overwrite, as_json, to_stdout)
        if stats and as_json:
            click.echo(json.dumps({"stats": engine.stats}), err=to_stdout)
        elif stats:
            for key, value in engine.stats.items():
                click.echo(f"{key}: {value}", err=True)
    if failed and len(items) > 1:
        say(f"{failed} of {len(items)} pictures failed")
    return 1 if failed else 0


def _check_channels(model: str, ci: int, co: int) -> None:
    """ClickException before a whole batch meets it."""
    if ci in (1, 3) and co in (1, 3):
        return
    cure = "use Engine on arrays"
    if (ci, co) == (1, 2):
        cure = "if it colours gray pictures: python -m pix2pix_fast.train.colorize MODEL GRAY COLOUR"
    raise click.ClickException(
        f"{plain(model)} makes {co} channels of {ci}; picture files have 1 or 3: {cure}"
    )


def _items(source: str, out: str | None = None) -> Iterator[_Item]:
    """What a SOURCE stands for, in a stable order; whether a file exists is found out later."""
    from ..images import SUFFIXES

    if source == "-":
        yield _Item("-", Path("stdin"))
    elif Path(source).is_dir():
        found = False
        unread: list[OSError] = []
        for folder, folders, names in os.walk(source, onerror=unread.append):
            folders[:] = sorted(name for name in folders if not _same(Path(folder, name), out))
            for name in sorted(names):
                path = Path(folder, name)
                if name.lower().endswith(SUFFIXES) and _may_be_file(path):
                    found = True
                    yield _Item(str(path), path.relative_to(source))
        for error in unread:
            yield _Item(error.filename, Path(Path(error.filename).name), error)
        if not found and not unread:
            raise click.UsageError(f"no pictures ({' '.join(SUFFIXES)}) in {plain(source)}")
    elif glob.has_magic(source) and not Path(source).exists():
        fixed = Path(source)
        while glob.has_magic(str(fixed)):
            fixed = fixed.parent
        paths = filter(Path.is_file, fixed.glob(str(Path(source).relative_to(fixed))))
        places = [path.relative_to(fixed) for path in sorted(paths)]
        matches = [
            _Item(str(fixed / place), place)
            for place in places
            if not any(_same(fixed / folder, out) for folder in list(place.parents)[:-1])
        ]
        if not matches:
            raise click.UsageError(f"no file matches {plain(source)}")
        yield from matches
    elif source.lower().endswith(".txt") and Path(source).is_file():
        lines = Path(source).read_text("utf-8-sig", "surrogateescape").splitlines()
        named = list(filter(None, map(str.strip, lines)))
        if not named:
            raise click.UsageError(f"{plain(source)} names no picture")
        if "-" in named:
            raise click.UsageError(f"{plain(source)} names -, but a list cannot take stdin")
        for line in named:
            yield _Item(line, Path(Path(line).name))
    else:
        yield _Item(source, Path(Path(source).name))


def _may_be_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 - is_file's errors depend on Python
    except PermissionError:  # a folder with no right to look into it: told when it is opened
        return True
    except OSError:
        return False


def _same(folder: Path, out: str | None) -> bool:
    """Whether a folder is OUT: results of an earlier run below the source are no sources."""
    return out is not None and Path(out).is_dir() and folder.samefile(out)


def _targets(items: list[_Item], sources: tuple[str, ...], out: str | None) -> list[str]:
    """The output path of each item, "-" for stdout."""
    if out is None and sources == ("-",):
        out = "-"
    if not out:
        raise click.UsageError("missing -o OUT: a picture file, a folder, or - for stdout")
    single = len(sources) == 1 and len(items) == 1 and not Path(sources[0]).is_dir()
    if out == "-":
        if not single:
            raise click.UsageError("-o - takes exactly one picture")
        return ["-"]
    is_folder = Path(out).is_dir() or out.endswith(os.sep)
    if Path(out).suffix.lower() in _SAVE and not is_folder:
        if not single:
            raise click.UsageError(
                f"-o {plain(out)} is one picture file; several pictures need a folder"
            )
        return [out]
    if Path(out).is_file():
        raise click.UsageError(f"-o {plain(out)} is a file, and no picture file")
    if single and Path(out).suffix and not is_folder:
        raise click.UsageError(
            f"-o {plain(out)}: pictures are written as {' '.join(_SAVE)}; a folder of that name "
            f"is {plain(out)}{os.sep}"
        )
    return [str(Path(out, item.place).with_suffix(".png")) for item in items]


def _translate_all(
    engine: Engine,
    items: list[_Item],
    targets: list[str],
    overwrite: bool,
    as_json: bool,
    to_stdout: bool,
) -> int:
    """Translate here, where Ctrl-C arrives, and save in a second thread; the count of failures."""
    from concurrent.futures import ThreadPoolExecutor

    taken: dict[str, str] = {}  # output -> its source
    pending: list[tuple[_Item, str, dict[str, Any], Future[None]]] = []
    failed = 0
    with pictures_bar(len(items)) as (advance, complain), ThreadPoolExecutor(1) as saver:

        def fail(item: _Item, error: Exception) -> None:
            nonlocal failed
            failed += 1
            reason = _reason(item, error)
            if click.get_current_context().meta["debug"]:
                traceback.print_exception(error)
            complain(f"{plain(item.source)}: {reason}")
            if as_json:
                click.echo(json.dumps({"source": item.source, "error": reason}), err=to_stdout)
            advance()

        def finish(keep: int) -> None:
            while len(pending) > keep:
                item, target, report, future = pending.pop(0)
                try:
                    future.result()
                except Exception as error:
                    fail(item, error)
                    continue
                if as_json:
                    click.echo(json.dumps(report), err=to_stdout)
                elif not to_stdout and not (len(items) > 1 and sys.stdout.isatty()):
                    click.echo(plain(target))  # on a terminal the bar says enough
                advance()

        for item, target in zip(items, targets, strict=True):
            try:
                if item.error:
                    raise item.error
                _check_target(item.source, target, taken, overwrite)
                data = sys.stdin.buffer.read() if item.source == "-" else ""
                start = time.perf_counter()
                result: Any = engine.translate(data if item.source == "-" else item.source)
                ms = (time.perf_counter() - start) * 1e3
            except Exception as error:
                finish(0)  # in order
                fail(item, error)
                continue
            report = {
                "source": item.source,  # as it is: json.dumps escapes what is not ASCII
                "output": target,
                "width": result.width,
                "height": result.height,
                "ms": round(ms, 3),
            }
            pending.append((item, target, report, saver.submit(_save, result, target)))
            finish(3)
        finish(0)
    return failed


def _reason(item: _Item, error: Exception) -> str:
    """What went wrong, without the picture's name: the line begins with it."""
    reason = reason_of(error).removeprefix("image: ")
    for named in (plain(item.source), plain(one_line(item.source))):
        reason = reason.removeprefix(f"{named}: ").removesuffix(f": {named}")
    return reason


def _check_target(source: str, target: str, taken: dict[str, str], overwrite: bool) -> None:
    if target == "-":
        return
    key = os.path.realpath(target)  # Path.resolve raises on links that lead in a circle
    if key in taken:
        raise ValueError(
            f"its result {plain(target)} is also that of {plain(taken[key])}; "
            "give them different folders"
        )
    taken[key] = source
    if Path(target).exists():
        if source != "-" and Path(source).exists() and Path(source).samefile(target):
            raise ValueError("its result would replace it; give another -o")
        refuse_existing(target, overwrite)


def _save(image: Image.Image, target: str) -> None:
    """Write a picture so that its final name never holds half of it."""
    if target == "-":
        image.save(sys.stdout.buffer, "PNG")
        sys.stdout.buffer.flush()
        return
    from ..tensorfile import atomic_file

    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind, values = _SAVE[path.suffix.lower()]
    if kind not in _DEEP:
        image = _shallow(image)
    with atomic_file(target, durable=False) as file:
        image.save(file, kind, **values)


def _shallow(image: Image.Image) -> Image.Image:
    """16-bit gray as 8-bit gray; Pillow would refuse it or make everything above 255 white."""
    if not image.mode.startswith("I;16"):
        return image
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))


@verb()
@click.option("--model", type=MODEL, default="facades_labels2photo", show_default=True)
@click.option("--pictures", type=click.Path(file_okay=False), help="Default: the example drawings.")
@click.option("-o", "--out", default="demo.png", show_default=True, type=click.Path(dir_okay=False))
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@engine_options
def demo(model: str, pictures: str | None, out: str, overwrite: bool, **options: Any) -> int:
    """Translate the example drawings; drawings and photos go side by side into one PNG.

    A picture that cannot be read is left out and named; the exit code is 1 then.
    """
    from .. import images
    from ..engine import Engine

    refuse_existing(out, overwrite)
    if Path(out).suffix.lower() not in _SAVE:
        raise click.UsageError(f"-o {plain(out)}: expected a picture file such as demo.png")
    folder = pictures or str(Path(__file__).parents[1] / "assets/pictures")
    items = list(_items(folder))
    pairs = []
    with Engine(model, **options) as engine:
        for item in items:
            try:
                if item.error:
                    raise item.error
                drawing = _shallow(images.open_picture(item.source)).convert("RGB")
            except (OSError, ValueError) as error:
                say(f"{plain(item.source)}: {_reason(item, error)}")
                continue
            engine.translate(drawing)  # a new size lays out memory; the second call is timed
            start = time.perf_counter()
            photo = engine.translate(drawing)
            ms = (time.perf_counter() - start) * 1e3
            pairs.append((drawing, photo))
            size = f"{drawing.height}x{drawing.width}"
            click.echo(f"{plain(item.place.name)}  {size}  {ms:.1f} ms")
        what = engine.info
    if not pairs:
        raise click.ClickException("none of the pictures can be read")
    _save(_side_by_side(pairs), out)
    click.echo(f"{what['backend']} {what['isa']} {what['precision']}, {what['threads']} threads")
    click.echo(plain(out))
    return 1 if len(pairs) < len(items) else 0


def _side_by_side(pairs: list[tuple[Image.Image, Image.Image]]) -> Image.Image:
    """Every drawing above its photo, pairs side by side on white, in lines like words."""
    from PIL import Image

    gap, width = 8, 1728
    places: list[tuple[int, int]] = []
    x = y = gap
    line = 0  # height of the current one
    for drawing, _ in pairs:
        if x > gap and x + drawing.width + gap > width:
            x, y, line = gap, y + line + 2 * gap, 0
        places.append((x, y))
        x += drawing.width + gap
        line = max(line, 2 * drawing.height + gap)
    right = max(x + drawing.width for (x, _), (drawing, _) in zip(places, pairs, strict=True))
    sheet = Image.new("RGB", (right + gap, y + line + gap), "white")
    for (x, y), (drawing, photo) in zip(places, pairs, strict=True):
        sheet.paste(drawing, (x, y))
        sheet.paste(photo, (x, y + drawing.height + gap))
    return sheet
