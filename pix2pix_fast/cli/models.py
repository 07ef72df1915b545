"""convert, export, build-trt, info, verify, bench: what is done with a model file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from .. import __version__
from .words import (
    MODEL,
    model_argument,
    plain,
    refuse_existing,
    show_facts,
    steps_bar,
    verb,
    whole_numbers,
)


@verb()
@click.argument("source", type=MODEL)
@click.argument("target", metavar="OUT.safetensors", type=click.Path(dir_okay=False))
@click.option(
    "--dtype", type=click.Choice(["f32", "f16", "bf16"]), default="f32", help="Of the file."
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def convert(source: str, target: str, dtype: Any, overwrite: bool) -> None:
    """Turn anybody's pix2pix checkpoint into our safetensors file."""
    from dataclasses import asdict

    from .. import checkpoints

    if not target.lower().endswith(".safetensors"):
        raise click.UsageError(f"{plain(target)}: expected a name that ends in .safetensors")
    refuse_existing(target, overwrite)
    model = checkpoints.convert(source, target, dtype=dtype)
    inferred = {k: v for k, v in model.card.items() if k == "inferred"}
    show_facts(
        {"output": target, "digest": model.digest} | inferred | asdict(model.architecture), False
    )


@verb()
@model_argument
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
    from ..onnx_export import to_onnx

    if not target.lower().endswith(".onnx"):
        raise click.UsageError(f"{plain(target)}: expected a name that ends in .onnx")
    refuse_existing(target, overwrite)
    to_onnx(model, target, **options)
    click.echo(f"{plain(target)}  {Path(target).stat().st_size / 1e6:.1f} MB")


@verb("build-trt")
@model_argument
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
    from .. import checkpoints, tensorrt

    if target is None and (deconv or options["capability"]):
        raise click.UsageError("--deconv and --capability need OUT.engine")
    if target:
        refuse_existing(target, overwrite)
    h, w = whole_numbers(size, "--size", "x", 2) if size else (0, 0)
    begun = time.perf_counter()
    with steps_bar("build-trt") as progress:
        path = tensorrt.prepare(
            checkpoints.read(model),
            size=(h, w) if size else None,
            deconv=deconv or "",
            target=target,
            progress=progress,
            **options,
        )
    size_bytes, seconds = path.stat().st_size, time.perf_counter() - begun
    facts: dict[str, Any] = {"output": plain(str(path)), "precision": options["precision"]}
    facts |= {"bytes": size_bytes, "seconds": round(seconds, 3)}
    if as_json:
        click.echo(json.dumps(facts))
    else:
        click.echo(f"{facts['output']}  {size_bytes / 1e6:.1f} MB  {seconds:.1f} s")


@verb()
@click.argument("model", required=False, type=MODEL)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def info(model: str | None, as_json: bool) -> None:
    """Say what MODEL is, of our own files without reading the weights; alone, say what this machine
    can run."""
    if model is not None:
        show_facts(_described(model), as_json)
        return
    import platform
    from importlib.metadata import version

    from .. import backends

    facts: dict[str, Any] = {"pix2pix_fast": __version__, "python": platform.python_version()}
    facts |= {name: version(name) for name in ("numpy", "pillow", "safetensors")}
    reasons = backends.available()
    if not reasons["cpu"]:
        from .. import _core

        cpu = _core.cpu()
        facts |= {"cpu": cpu["name"], "isa": cpu["isa"], "runnable": list(cpu["runnable"])}
        facts |= {"threads": cpu["cores"]}
    facts["backends"] = {name: reason or "ready" for name, reason in reasons.items()}
    show_facts(facts, as_json)


def _described(path: str) -> dict[str, Any]:
    """What our file says of itself; anybody else's is read for it."""
    from dataclasses import asdict

    from .. import checkpoints
    from ..errors import ModelFormatError
    from ..model import describe

    try:
        return describe(path)
    except ModelFormatError:
        model = checkpoints.read(path)  # its error knows more kinds of file
        return {"architecture": asdict(model.architecture), "card": model.card}


@verb()
@model_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def verify(model: str, as_json: bool) -> int:
    """Check MODEL: its digest, its values, and that the fastest kernels agree with the plain ones.

    A test picture goes through the readable scalar kernels and through the best ones of this CPU.
    They agree when no byte differs by more than 1 level and at least 99.9 % of them are equal.
    """
    import numpy as np

    from .. import _core, backends, checkpoints

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
    show_facts(facts, as_json)
    return 0 if good else 1


@verb()
@model_argument
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

    from .. import _core
    from ..engine import Engine

    height, width = whole_numbers(size, "--size", "x", 2)
    counts = (
        whole_numbers(threads, "--threads", ",") if threads else sorted({1, _core.cpu()["cores"]})
    )
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
