"""video, live, serve: films, a camera and the page."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from .words import (
    MODEL,
    engine_options,
    model_argument,
    plain,
    pop_engine_options,
    say,
    verb,
    whole_numbers,
)


@verb()
@model_argument
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
@engine_options
def video(
    model: str,
    source: str,
    target: str,
    **options: Any,
) -> None:
    """Translate the film IN into OUT, with its own times and its own sound."""
    from ..engine import Engine
    from ..video import translate_video

    with Engine(model, **pop_engine_options(options)) as engine:
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
        f"{plain(target)}  {report.frames} frames, {report.duration:.2f} s of film in "
        f"{report.seconds:.2f} s: {report.fps:.0f} frames per second"
    )
    counts = {"translated": report.translated, "repeated": report.repeats}
    counts |= {"similar": report.similar, "dropped": report.dropped}
    counts |= {"audio packets": report.audio_packets}
    click.echo("  ".join(f"{name} {count}" for name, count in counts.items()))
    for warning in report.warnings:
        say(warning)
    if not report.complete:
        raise click.ClickException(
            f"{plain(source)} is damaged or ends early; {plain(target)} has what could be read of it"
        )


@verb()
@model_argument
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
@engine_options
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

    from .. import live as source
    from ..engine import Engine

    if file:
        asked = {"--camera": camera, "--size": size, "--rate": rate}
        if given := [name for name, value in asked.items() if value is not None]:
            raise click.UsageError(f"{', '.join(given)}: for a camera, not for --file")
    width, height = whole_numbers(size, "--size", "x", 2) if size else (0, 0)
    taken: Any = (
        source.File(file)
        if file
        else source.Camera(camera or "0", size=(width, height) if size else None, rate=rate)
    )
    engine_options = pop_engine_options(options)
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
        click.echo(f"{plain(record)}  {report.recorded} frames")


@contextmanager
def _live_figures() -> Iterator[tuple[Callable[..., object] | None, Callable[[str], object]]]:
    """(show, complain): a line of figures that changes, on a terminal; else only complaints."""
    if not sys.stderr.isatty():
        yield None, say
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

        yield show, lambda text: console.print(f"pix2pix-fast: {plain(text)}", markup=False)


@verb()
@click.argument("models", nargs=-1, metavar="[MODEL...]", type=MODEL)
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
@engine_options
def serve(models: tuple[str, ...], **options: Any) -> None:
    """Serve a page to draw on: the picture is translated while the pen moves.

    MODELs are offered on the page; none: the two in the package. Only this machine can reach it
    unless --host says otherwise (needs `pip install 'pix2pix_fast[web]'`).
    """
    from ..web import serve

    serve(models, ready=lambda url: click.echo(f"{url}  (Ctrl-C stops)"), **options)
