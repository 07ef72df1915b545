"""pix2pix-fast: the same engine from a shell.

Results go to stdout, progress and errors to stderr, one line per error; --debug shows the traceback
instead. Exit codes: 0 fine, 1 something failed, 2 wrong usage, 130 interrupted. click and rich live
here only, and everything else is imported by the verb that needs it, so that --help stays quick.
"""

from __future__ import annotations

import glob
import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from . import __version__

if TYPE_CHECKING:
    from concurrent.futures import Future

    from PIL import Image

    from .engine import Engine

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


class _Verb(click.Command):
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
            _complain("interrupted")
            ctx.exit(130)
        except BrokenPipeError:  # `| head` has read enough; what Python still holds goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except Exception as error:
            if ctx.meta["debug"]:
                raise
            raise click.ClickException(_reason(error)) from error


class _Verbs(click.Group):
    command_class = _Verb

    def main(self, *args: Any, **extra: Any) -> Any:
        extra["standalone_mode"] = False  # click would print usage errors in four lines
        if not sys.warnoptions:
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files are no errors of ours
        try:
            code = super().main(*args, **extra)
        except click.ClickException as error:
            _complain(error.format_message())
            code = error.exit_code
        except click.Abort:  # Ctrl-C outside of a verb
            code = 130
        sys.exit(code or 0)


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)
@click.version_option(__version__, message="%(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """Translate pictures with pix2pix models, fast, on this machine."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


class _ModelPath(click.Path):
    """A file or folder that exists, or the name of a model in the package."""

    def convert(self, value: Any, *where: Any) -> Any:
        from .model import packaged

        return super().convert(str(packaged(value)), *where)


_MODEL = _ModelPath(exists=True)


def _model_argument(verb: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("model", type=_MODEL)(verb)


def _engine_options(verb: Callable[..., Any]) -> Callable[..., Any]:
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


def _pop_engine_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of `_engine_options`, out of a verb's own."""
    names = ("backend", "precision", "threads", "norm", "dropout", "tune")
    return {name: options.pop(name) for name in names}


# translate


class _Item(NamedTuple):
    source: str  # a path, or "-" for stdin
    place: Path  # where it belongs below an output folder


@main.command()
@_model_argument
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("-o", "--out", metavar="OUT", help="Picture file, folder, or - for stdout.")
@_engine_options
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
    from .engine import Engine

    items = [item for source in sources for item in _items(source, out)]
    targets = _targets(items, sources, out)
    with Engine(model, **options) as engine:
        if engine.info["inferred"]:  # a foreign file: say what we took it for
            _complain(f"{_plain(model)}: {_plain(engine.info['inferred'])}")
        to_stdout = targets == ["-"]
        failed = _translate_all(engine, items, targets, overwrite, as_json, to_stdout)
        if stats and as_json:
            click.echo(json.dumps({"stats": engine.stats}))
        elif stats:
            for key, value in engine.stats.items():
                click.echo(f"{key}: {value}", err=True)
    if failed and len(items) > 1:
        _complain(f"{failed} of {len(items)} pictures failed")
    return 1 if failed else 0


def _items(source: str, out: str | None = None) -> Iterator[_Item]:
    """What a SOURCE stands for, in a stable order; whether a file exists is found out later."""
    from .images import SUFFIXES

    if source == "-":
        yield _Item("-", Path("stdin"))
    elif Path(source).is_dir():
        found = False
        for folder, folders, names in os.walk(source):
            folders[:] = sorted(name for name in folders if not _same(Path(folder, name), out))
            for name in sorted(names):
                if name.lower().endswith(SUFFIXES):
                    found = True
                    path = Path(folder, name)
                    yield _Item(str(path), path.relative_to(source))
        if not found:
            raise click.UsageError(f"no pictures ({' '.join(SUFFIXES)}) in {_plain(source)}")
    elif glob.has_magic(source) and not Path(source).exists():
        fixed = Path(source)
        while glob.has_magic(str(fixed)):
            fixed = fixed.parent
        paths = sorted(filter(Path.is_file, fixed.glob(str(Path(source).relative_to(fixed)))))
        if not paths:
            raise click.UsageError(f"no file matches {_plain(source)}")
        for path in paths:
            yield _Item(str(path), path.relative_to(fixed))
    elif source.lower().endswith(".txt") and Path(source).is_file():
        lines = Path(source).read_text("utf-8-sig", "surrogateescape").splitlines()
        named = list(filter(None, map(str.strip, lines)))
        if not named:
            raise click.UsageError(f"{_plain(source)} names no picture")
        if "-" in named:
            raise click.UsageError(f"{_plain(source)} names -, but a list cannot take stdin")
        for line in named:
            yield _Item(line, Path(Path(line).name))
    else:
        yield _Item(source, Path(Path(source).name))


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
    if Path(out).suffix.lower() in _SAVE and not Path(out).is_dir():
        if not single:
            raise click.UsageError(
                f"-o {_plain(out)} is one picture file; several pictures need a folder"
            )
        return [out]
    if Path(out).is_file():
        raise click.UsageError(f"-o {_plain(out)} is a file, and no picture file")
    if single and Path(out).suffix and not Path(out).is_dir() and not out.endswith(os.sep):
        raise click.UsageError(
            f"-o {_plain(out)}: pictures are written as {' '.join(_SAVE)}; a folder of that name "
            f"is {_plain(out)}{os.sep}"
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
    with _progress(len(items)) as (advance, complain), ThreadPoolExecutor(1) as saver:

        def fail(item: _Item, error: Exception) -> None:
            nonlocal failed
            failed += 1
            reason = _reason(error).removeprefix("image: ").removeprefix(f"{item.source}: ")
            reason = reason.removesuffix(f": {_plain(item.source)}")  # the line begins with it
            complain(f"{_plain(item.source)}: {reason}")
            if as_json:
                click.echo(json.dumps({"source": _plain(item.source), "error": reason}))
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
                    click.echo(_plain(target))  # on a terminal the bar says enough
                advance()

        for item, target in zip(items, targets, strict=True):
            try:
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
                "source": _plain(item.source),
                "output": _plain(target),
                "width": result.width,
                "height": result.height,
                "ms": round(ms, 3),
            }
            pending.append((item, target, report, saver.submit(_save, result, target)))
            finish(3)
        finish(0)
    return failed


def _check_target(source: str, target: str, taken: dict[str, str], overwrite: bool) -> None:
    if target == "-":
        return
    key = str(Path(target).resolve())
    if key in taken:
        raise ValueError(
            f"its result {_plain(target)} is also that of {_plain(taken[key])}; "
            "give them different folders"
        )
    taken[key] = source
    if Path(target).exists():
        if source != "-" and Path(source).exists() and Path(source).samefile(target):
            raise ValueError("its result would replace it; give another -o")
        if not overwrite:
            raise FileExistsError(f"{_plain(target)} exists; --overwrite replaces it")


def _save(image: Image.Image, target: str) -> None:
    """Write a picture so that its final name never holds half of it."""
    if target == "-":
        image.save(sys.stdout.buffer, "PNG")
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".pix2pix-fast-{os.getpid()}-{time.monotonic_ns()}.part"
    kind, values = _SAVE[path.suffix.lower()]
    try:
        with part.open("xb") as file:
            image.save(file, kind, **values)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# Models


@main.command()
@click.argument("source", type=_MODEL)
@click.argument("target", metavar="OUT.safetensors", type=click.Path(dir_okay=False))
@click.option(
    "--dtype", type=click.Choice(["f32", "f16", "bf16"]), default="f32", help="Of the file."
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def convert(source: str, target: str, dtype: Any, overwrite: bool) -> None:
    """Turn anybody's pix2pix checkpoint into our safetensors file."""
    from dataclasses import asdict

    from . import checkpoints

    if not target.lower().endswith(".safetensors"):
        raise click.UsageError(f"{_plain(target)}: expected a name that ends in .safetensors")
    _refuse_existing(target, overwrite)
    model = checkpoints.convert(source, target, dtype=dtype)
    inferred = {k: v for k, v in model.card.items() if k == "inferred"}
    _show({"output": target, "digest": model.digest} | inferred | asdict(model.architecture), False)


@main.command()
@_model_argument
@click.argument("target", metavar="OUT.onnx", type=click.Path(dir_okay=False))
@click.option(
    "--pixels",
    type=click.Choice(["float", "uint8"]),
    default="float",
    show_default=True,
    help="float: NCHW in [-1, 1]; uint8: NHWC in 0..255.",
)
@click.option("--weights", type=click.Choice(["f32", "f16"]), default="f32", help="As stored.")
@click.option("--norm", type=click.Choice(["image", "running"]), default="image", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def export(model: str, target: str, overwrite: bool, **options: Any) -> None:
    """Write MODEL as ONNX, for other runtimes: any picture size, each picture's own statistics."""
    from .onnx_export import to_onnx

    if not target.lower().endswith(".onnx"):
        raise click.UsageError(f"{_plain(target)}: expected a name that ends in .onnx")
    _refuse_existing(target, overwrite)
    to_onnx(model, target, **options)
    click.echo(f"{_plain(target)}  {Path(target).stat().st_size / 1e6:.1f} MB")


@main.command("build-trt")
@_model_argument
@click.argument("target", metavar="[OUT.engine]", required=False, type=click.Path(dir_okay=False))
@click.option(
    "--precision", type=click.Choice(["f32", "f16", "bf16"]), default="f32", show_default=True
)
@click.option("--norm", type=click.Choice(["image", "running"]), default="image", show_default=True)
@click.option("--size", metavar="HxW", help="Fastest for pictures of this size.")
@click.option(
    "--deconv",
    type=click.Choice(["native", "phases"]),
    help="Transposed convolutions as the library's, or as four plain ones (OUT only).",
)
@click.option(
    "--pixels",
    type=click.Choice(["float", "uint8"]),
    default="uint8",
    show_default=True,
    help="float: NCHW in [-1, 1]; uint8: NHWC in 0..255.",
)
@click.option("--capability", default="", metavar="8.9", help="Of a GPU that is not here.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def build_trt(
    model: str,
    target: str | None,
    size: str | None,
    deconv: str | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Build MODEL's TensorRT engine now: for this machine's cache, where Engine looks for it, or
    as a plain engine into OUT, with --capability also for another machine's GPU."""
    from . import checkpoints, tensorrt

    if target is None and (deconv or options["capability"]):
        raise click.UsageError("--deconv and --capability need OUT.engine")
    if target and Path(target).exists() and not overwrite:
        raise FileExistsError(f"{_plain(target)} exists; --overwrite replaces it")
    h, w = _parse(size, "--size", "x", 2) if size else (0, 0)
    begun = time.perf_counter()
    with _steps("build-trt") as progress:
        path = tensorrt.prepare(
            checkpoints.read(model),
            size=(h, w) if size else None,
            deconv=deconv or "",
            target=target,
            progress=progress,
            **options,
        )
    size_bytes, seconds = path.stat().st_size, time.perf_counter() - begun
    facts: dict[str, Any] = {"output": _plain(str(path)), "precision": options["precision"]}
    facts |= {"bytes": size_bytes, "seconds": round(seconds, 3)}
    if as_json:
        click.echo(json.dumps(facts))
    else:
        click.echo(f"{facts['output']}  {size_bytes / 1e6:.1f} MB  {seconds:.1f} s")


@main.command()
@click.argument("model", required=False, type=_MODEL)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def info(model: str | None, as_json: bool) -> None:
    """Say what MODEL is, of our own files without reading the weights; alone, say what this machine
    can run."""
    if model is not None:
        _show(_described(model), as_json)
        return
    import platform
    from importlib.metadata import version

    from . import backends

    facts: dict[str, Any] = {"pix2pix_fast": __version__, "python": platform.python_version()}
    facts |= {name: version(name) for name in ("numpy", "pillow", "safetensors")}
    reasons = backends.available()
    if not reasons["cpu"]:
        from . import _core

        cpu = _core.cpu()
        facts |= {"cpu": cpu["name"], "isa": cpu["isa"], "runnable": list(cpu["runnable"])}
        facts |= {"threads": cpu["cores"]}
    facts["backends"] = {name: reason or "ready" for name, reason in reasons.items()}
    _show(facts, as_json)


def _described(path: str) -> dict[str, Any]:
    """What our file says of itself; anybody else's is read for it."""
    from dataclasses import asdict

    from . import checkpoints
    from .errors import ModelFormatError
    from .model import describe

    try:
        return describe(path)
    except ModelFormatError:
        model = checkpoints.read(path)  # its error knows more kinds of file
        return {"architecture": asdict(model.architecture), "card": model.card}


@main.command()
@_model_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def verify(model: str, as_json: bool) -> int:
    """Check MODEL: its digest, its values, and that the fastest kernels agree with the plain ones.

    A test picture goes through the readable scalar kernels and through the best ones of this CPU.
    They agree when no byte differs by more than 1 level and at least 99.9 % of them are equal.
    """
    import numpy as np

    from . import _core, backends, checkpoints

    read = checkpoints.read(model)  # refuses a wrong digest, shape or value by name
    side = 2**read.architecture.depth
    rng = np.random.default_rng(0)
    shape = (1, side, side, read.architecture.in_channels)
    src = rng.integers(0, 256, shape, np.uint8)
    results = []
    isas = ["scalar", _core.cpu()["isa"]]
    for isa in isas:
        executable = backends.compile_cpu(read, backends.Options(size=(side, side), isa=isa))
        results.append(np.empty((1, side, side, read.architecture.out_channels), np.uint8))
        executable.run(src, results[-1])
        executable.close()
    difference = np.abs(results[0].astype(int) - results[1])
    equal = float((difference == 0).mean())
    good = difference.max() <= 1 and equal >= 0.999
    digest = read.digest or "none (only our own files have one)"
    facts = {"digest": digest, "sound": True, "rooms": isas, "agree": bool(good)}
    facts |= {"max_level_difference": int(difference.max()), "equal_bytes": round(equal, 6)}
    _show(facts, as_json)
    return 0 if good else 1


@main.command()
@_model_argument
@click.option("--size", default="256x256", metavar="HxW", help="Picture size.", show_default=True)
@click.option("--threads", default="", metavar="N,...", help="Default: 1 and all of this CPU.")
@click.option("--precision", default="f32", metavar="P,...", show_default=True)
@click.option("--seconds", type=click.FloatRange(0, 600), default=3.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line of the table.")
def bench(
    model: str, size: str, threads: str, precision: str, seconds: float, as_json: bool
) -> None:
    """Time MODEL on this machine: uint8 picture in, uint8 picture out, one at a time.

    Every combination of threads and precision runs for --seconds, at least 5 times.
    """
    import numpy as np

    from . import _core
    from .engine import Engine

    height, width = _parse(size, "--size", "x", 2)
    counts = _parse(threads, "--threads", ",") if threads else sorted({1, _core.cpu()["cores"]})
    if not as_json:
        click.echo(
            f"{'precision':>9} {'threads':>7} {'median ms':>9} {'p95 ms':>8} {'fps':>7}  isa"
        )
    for name in precision.split(","):
        for count in counts:
            options: Any = {"precision": name, "threads": count, "size": (height, width)}
            with Engine(model, **options) as engine:
                shape = (height, width, engine.info["in_channels"])
                image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
                out = engine.translate(image)  # warm; then no call allocates
                times: list[float] = []
                end = time.perf_counter() + seconds
                while time.perf_counter() < end or len(times) < 5:
                    start = time.perf_counter()
                    engine.translate(image, out=out)
                    times.append((time.perf_counter() - start) * 1e3)
                p50, p95 = np.percentile(times, (50, 95))
                row = {"precision": name, "threads": count, "median_ms": round(p50, 3)}
                row |= {"p95_ms": round(p95, 3), "fps": round(1e3 / p50, 2)}
                row |= {"isa": engine.info["isa"], "height": height, "width": width}
                if as_json:
                    click.echo(json.dumps(row))
                else:
                    click.echo(
                        f"{name:>9} {count:>7} {p50:9.2f} {p95:8.2f} {1e3 / p50:7.1f}  {row['isa']}"
                    )


@main.command()
@click.option("--model", type=click.Path(), help="Default: the example model in the package.")
@click.option("--pictures", type=click.Path(file_okay=False), help="Default: the example drawings.")
@click.option("-o", "--out", default="demo.png", show_default=True, type=click.Path(dir_okay=False))
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@_engine_options
def demo(
    model: str | None, pictures: str | None, out: str, overwrite: bool, **options: Any
) -> None:
    """Translate the example drawings; drawings and photos go side by side into one PNG."""
    from importlib.resources import as_file, files

    from . import images
    from .engine import Engine

    if Path(out).exists() and not overwrite:
        raise FileExistsError(f"{_plain(out)} exists; --overwrite replaces it")
    if Path(out).suffix.lower() not in _SAVE:
        raise click.UsageError(f"-o {_plain(out)}: expected a picture file such as demo.png")
    with as_file(files("pix2pix_fast") / "assets") as assets:
        path = Path(model) if model else assets / "facades_labels2photo.safetensors"
        folder = Path(pictures) if pictures else assets / "pictures"
        if not path.exists():
            raise FileNotFoundError(f"no example model at {_plain(str(path))}; give one by --model")
        names = [item.source for item in _items(str(folder))]
        pairs = []
        with Engine(path, **options) as engine:
            for name in names:
                drawing = images.open_picture(name).convert("RGB")
                engine.translate(drawing)  # a new size lays out memory; the second call is timed
                start = time.perf_counter()
                photo = engine.translate(drawing)
                ms = (time.perf_counter() - start) * 1e3
                pairs.append((drawing, photo))
                size = f"{drawing.height}x{drawing.width}"
                click.echo(f"{_plain(Path(name).name)}  {size}  {ms:.1f} ms")
            what = engine.info
    _save(_side_by_side(pairs), out)
    click.echo(f"{what['backend']} {what['isa']} {what['precision']}, {what['threads']} threads")
    click.echo(_plain(out))


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


@main.command()
@_model_argument
@click.argument("source", metavar="IN", type=click.Path(dir_okay=False))
@click.argument("target", metavar="OUT", type=click.Path(dir_okay=False))
@click.option("--start", type=float, help="Seconds of IN where it begins.")
@click.option("--end", type=float, help="Seconds of IN where it ends.")
@click.option(
    "--fit",
    type=click.Choice(["resize", "native"]),
    default="resize",
    show_default=True,
    help="resize: the model's own size and back; native: the full frame.",
)
@click.option("--side-by-side", is_flag=True, help="Source at the left, result at the right.")
@click.option("--similar", type=float, default=0.0, help="Levels within which a frame repeats.")
@click.option("--deflicker", type=float, default=0.0, help="0 is off, 1 the most.")
@click.option("--audio", type=click.Choice(["copy", "drop"]), default="copy", show_default=True)
@click.option("--codec", type=click.Choice(["h264", "hevc"]), default="h264", show_default=True)
@click.option("--quality", type=int, default=20, show_default=True, help="Constant rate factor.")
@click.option("--preset", default="quick", show_default=True, help="Of the encoder, or quick.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@_engine_options
def video(
    model: str,
    source: str,
    target: str,
    **options: Any,
) -> None:
    """Translate the film IN into OUT, with its own times and its own sound."""
    from .engine import Engine
    from .video import translate_video

    with Engine(model, **_pop_engine_options(options)) as engine:
        if sys.stderr.isatty():
            from rich.progress import Progress, TextColumn, TimeRemainingColumn

            columns = (*Progress.get_default_columns()[:3], TextColumn("{task.fields[fps]}"))
            with Progress(*columns, TimeRemainingColumn(), transient=True) as bar:
                task = bar.add_task("video", total=None, fps="")
                begun = time.perf_counter()

                def show(so_far: Any, total: int | None) -> None:
                    fps = so_far.frames / max(time.perf_counter() - begun, 1e-3)
                    text = f"{fps:.0f} frames/s"
                    bar.update(task, completed=so_far.frames, total=total, fps=text)

                report = translate_video(engine, source, target, progress=show, **options)
        else:
            report = translate_video(engine, source, target, **options)
    click.echo(
        f"{_plain(target)}  {report.frames} frames, {report.duration:.2f} s of film in "
        f"{report.seconds:.2f} s: {report.fps:.0f} frames per second"
    )
    counts = {"translated": report.translated, "repeated": report.repeats}
    counts |= {"similar": report.similar, "dropped": report.dropped}
    counts |= {"audio packets": report.audio_packets}
    click.echo("  ".join(f"{name} {count}" for name, count in counts.items()))
    for warning in report.warnings:
        _complain(warning)
    if not report.complete:
        raise click.ClickException(
            f"{_plain(source)} is damaged or ends early; {_plain(target)} has what could be read of it"
        )


@main.command()
@_model_argument
@click.option("--camera", help="Number, device path or name; 0 if left out.")
@click.option("--file", type=click.Path(dir_okay=False), help="A film at its own rate instead.")
@click.option("--size", metavar="WxH", help="To ask of the camera.")
@click.option("--rate", type=click.FloatRange(1, 1000), help="Frames per second, as well.")
@click.option("--mirror", is_flag=True, help="Left and right change sides, as in a mirror.")
@click.option("--record", metavar="FILE", help="Keep the results as a film (.mp4, .mkv).")
@click.option("--quality", type=int, default=20, show_default=True, help="Of the film.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@click.option("--seconds", type=float, help="End after so long.")
@click.option(
    "--retries", type=int, default=3, show_default=True, help="To open a lost camera again."
)
@click.option(
    "--stall", type=float, default=3.0, show_default=True, help="Seconds of silence: it is lost."
)
@_engine_options
def live(
    model: str,
    camera: str | None,
    file: str | None,
    size: str | None,
    rate: float | None,
    **options: Any,
) -> None:
    """Translate a camera as it runs: the newest frame wins, late ones are dropped and counted.

    Ctrl-C ends it. There is no window here; `pix2pix-fast serve` shows a camera in the browser.
    """
    import signal
    import threading

    from . import live as source
    from .engine import Engine

    if file:
        asked = {"--camera": camera, "--size": size, "--rate": rate}
        if given := [name for name, value in asked.items() if value is not None]:
            raise click.UsageError(f"{', '.join(given)}: for a camera, not for --file")
    width, height = _parse(size, "--size", "x", 2) if size else (0, 0)
    taken: Any = (
        source.File(file)
        if file
        else source.Camera(camera or "0", size=(width, height) if size else None, rate=rate)
    )
    engine_options = _pop_engine_options(options)
    stop, report = threading.Event(), source.LiveReport()

    def end(*_: object) -> None:  # the second Ctrl-C is the ordinary one
        stop.set()
        signal.signal(signal.SIGINT, before)

    with Engine(model, **engine_options) as engine, _live_figures() as (show, complain):
        before = signal.signal(signal.SIGINT, end)
        try:
            source.live(
                engine, taken, stop=stop, report=report, show=show, notice=complain, **options
            )
        finally:
            signal.signal(signal.SIGINT, before)
            _say_live(report, options["record"])


def _say_live(report: Any, record: str | None) -> None:
    if not report.captured:
        return
    p50, p95, p99 = report.age_ms(50, 95, 99)
    click.echo(
        f"{report.translated} of {report.captured} frames in {report.seconds:.1f} s, "
        f"{report.fps:.1f} per second, {report.dropped} dropped, "
        f"{report.reconnections} reconnections"
    )
    click.echo(f"frame to result: p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms")
    if record and report.recorded:
        click.echo(f"{_plain(record)}  {report.recorded} frames")


@contextmanager
def _live_figures() -> Iterator[tuple[Callable[..., object] | None, Callable[[str], object]]]:
    """(show, complain): a line of figures that changes, on a terminal; else only complaints."""
    if not sys.stderr.isatty():
        yield None, _complain
        return
    from rich.console import Console
    from rich.status import Status

    console = Console(stderr=True)
    shown = 0.0
    with Status("waiting for the first frame", console=console) as status:

        def show(_: Any, report: Any) -> None:
            nonlocal shown
            if time.perf_counter() - shown > 0.25:
                shown = time.perf_counter()
                p50, p95 = report.age_ms(50, 95, last=200)
                status.update(
                    f"{report.fps:.1f} frames/s  frame to result p50 {p50:.1f} ms, "
                    f"p95 {p95:.1f} ms  {report.dropped} of {report.captured} dropped  "
                    "(Ctrl-C ends)"
                )

        yield show, lambda text: console.print(f"pix2pix-fast: {_plain(text)}", markup=False)


@main.command()
@click.argument("models", nargs=-1, metavar="[MODEL...]", type=_MODEL)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--allow-host",
    "allow_hosts",
    multiple=True,
    metavar="NAME[:PORT]",
    help="Another name by which browsers may ask for it; may be repeated.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1, 1 << 26),
    default=1 << 20,
    show_default=True,
    help="Of one frame, padding included.",
)
@_engine_options
def serve(models: tuple[str, ...], **options: Any) -> None:
    """Serve a page to draw on: the picture is translated while the pen moves.

    MODELs are offered on the page; none: the two in the package. Only this machine can reach it
    unless --host says otherwise (needs `pip install 'pix2pix_fast[web]'`).
    """
    from .web import serve

    serve(models, ready=lambda url: click.echo(f"{url}  (Ctrl-C stops)"), **options)


@main.command(
    cls=click.Command,  # the training part has its own --help and --debug
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(arguments: tuple[str, ...]) -> Any:
    """Train a model on pairs of pictures (needs torch: `pip install 'pix2pix_fast[train]'`)."""
    return _training("cli").train.main(arguments, "pix2pix-fast train", standalone_mode=False)


def _training(name: str) -> Any:
    """A module of pix2pix_fast.train."""
    try:
        return importlib.import_module(f"pix2pix_fast.train.{name}")
    except ImportError as error:
        cure = "pip install 'pix2pix_fast[train]'"
        raise click.ClickException(f"train lacks something ({error}): {cure}") from error


# Measures


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


@main.command()
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
        _refuse_existing(path, overwrite)
    measure = _training("evaluation.compare")
    with _steps("evaluate") as progress:
        ends = endings.split(",") if endings else ()
        record, figure = measure.compare(
            results, truths, endings=ends, progress=progress, **options
        )
    if out:
        _write(out, json.dumps(record, indent=1) + "\n")
    if plot:
        _write(plot, figure)
    click.echo(measure.table(record))


@main.command("study-page")
@_two_folders
@click.option("-o", "--out", required=True, type=click.Path(dir_okay=False), metavar="FILE.html")
@click.option("--algorithm", required=True, metavar="NAME", help="Into the answers; not shown.")
@click.option("--unpaired", is_flag=True, help="Real and fake of a pair from different inputs.")
@click.option("--practice", type=int, default=10, show_default=True, help="Trials with feedback.")
@click.option("--trials", type=int, default=40, show_default=True, help="Trials that count.")
@click.option("--pairs", type=int, default=0, help="In the page; default: as many as trials.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which pairs.")
def study_page(out: str, endings: str, unpaired: bool, overwrite: bool, **options: Any) -> None:
    """Write a page that asks people which of two pictures is fake: the paper's real-or-fake test.

    The page needs no network. At its end a person saves the answers; `study-score` reads them.
    """
    _refuse_existing(out, overwrite)
    ends = endings.split(",") if endings else ()
    page = _training("evaluation.study").page(endings=ends, paired=not unpaired, **options)
    _write(out, page)
    click.echo(f"{_plain(out)}  {Path(out).stat().st_size / 1e6:.1f} MB")


@main.command("study-score")
@click.argument("answers", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="One JSON object per algorithm.")
def study_score(answers: tuple[str, ...], as_json: bool) -> None:
    """How often people took the real picture for the fake, from the answers they saved."""
    for found in _training("evaluation.study").score(answers):
        if as_json:
            click.echo(json.dumps(found))
            continue
        click.echo(
            f"{_plain(found['algorithm'])}: fooled {found['fooled']:.1f} ± {found['error']:.1f} % "
            f"({found['people']} people, {found['trials']} trials, {found['mistimed']} mistimed)"
        )


def _refuse_existing(path: str, overwrite: bool) -> None:
    if Path(path).exists() and not overwrite:
        raise FileExistsError(f"{_plain(path)} exists; --overwrite replaces it")


def _write(target: str, text: str) -> None:
    """Write a text so that its final name never holds half of it."""
    path = Path(target)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# Words for people and machines


@contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[], object], Callable[[str], object]]]:
    """(advance, complain): a bar on a terminal, silence elsewhere."""
    if total < 2 or not sys.stderr.isatty():
        yield (lambda: None), _complain
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
def _steps(name: str) -> Iterator[Callable[[int, int], object] | None]:
    """`progress(done, steps)` of one long task: a bar on a terminal, None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, steps: bar.update(task, completed=done, total=steps)


def _complain(line: str) -> None:
    click.echo(f"pix2pix-fast: {' '.join(line.split())}", err=True)


def _reason(error: Exception) -> str:
    """What went wrong, on one line; a bug of ours says so."""
    from .errors import P2PError

    if isinstance(error, OSError) and error.strerror:
        name = f": {_plain(os.fsdecode(error.filename))}" if error.filename else ""
        return f"{error.strerror}{name}"
    known = (P2PError, ValueError, TypeError, OSError, MemoryError, ImportError)
    text = _plain(" ".join(str(error).split())) or type(error).__name__
    if isinstance(error, known):
        return text
    return f"internal error: {type(error).__name__}: {text}; --debug shows where"


def _plain(text: str) -> str:
    """Text from files and names with whatever could steer a terminal escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _show(facts: dict[str, Any], as_json: bool, indent: str = "") -> None:
    if as_json:
        click.echo(json.dumps(facts, default=str))
        return
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            click.echo(f"{indent}{_plain(str(key))}:")
            _show(value, False, indent + "  ")
            continue
        if isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        click.echo(f"{indent}{_plain(str(key))}: {_plain(str(value))}")


def _parse(text: str, option: str, separator: str, length: int | None = None) -> list[int]:
    """Whole numbers above 0, joined by `separator`."""
    parts = text.lower().split(separator)
    if not all(part.isdigit() and int(part) > 0 for part in parts) or length not in (
        None,
        len(parts),
    ):
        raise click.UsageError(f"{option}: expected numbers joined by {separator!r}, got {text!r}")
    return [int(part) for part in parts]


if __name__ == "__main__":
    main()
