"""Our CUDA engine on a GPU against PyTorch on the same one, and each of our kernels against its floor.

    python bench/gpu.py kernels --out results.jsonl [--floor floor.jsonl]
    python bench/gpu.py network --out results.jsonl [--seconds 100]
    python bench/gpu.py network --device cpu --ngf 8   # PyTorch's side alone, to try this file

Both append JSON lines. `network` runs contender after contender, round after round, in one process,
the most telling case first, and begins no case after --seconds: a row then says so. Every contender's
picture is compared with the float64 network's before it is timed. Exit status 1 if ours failed.
bench/gpu_check.sh runs all of it and puts the GPU's name, driver and date into every line.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nets
import numpy as np

from pix2pix_fast import Engine, backends
from pix2pix_fast.model import Model

# Of an H100, as others report. Used where gpu_floor.cu's lines are not given.
H100 = {"flops": 800e12, "f32 flops": 60e12, "weights": 3.0e12, "maps": 5.5e12}
BYTES = {"f16": 2, "bf16": 2, "f32": 4}
FLUSH_BYTES = 256 << 20  # more than any L2


class Case(NamedTuple):
    precision: str
    size: int
    n: int


CASES = [
    Case("f16", 256, 1), Case("f16", 512, 1), Case("f16", 256, 4), Case("f16", 256, 16),
    Case("bf16", 256, 1), Case("f32", 256, 1), Case("f16", 512, 4), Case("f16", 512, 16),
    Case("bf16", 512, 1), Case("f32", 512, 1), Case("bf16", 256, 16), Case("f32", 256, 16),
]  # fmt: skip
COMPILED = CASES[:1]  # max-autotune takes a minute or more: in a stage of its own
BESIDE = ("pix2pix_fast resident", "torch CUDA graph", "torch compile max-autotune")


def peaks(floor: Path | None) -> tuple[dict[str, float], str]:
    """Arithmetic, weights from memory and maps from L2 per second, and where they come from."""
    lines = []
    if floor and floor.exists():
        lines = [
            json.loads(line) for line in floor.read_text().splitlines() if line.startswith("{")
        ]

    def best(name: str, field: str) -> float:
        return max((x[field] for x in lines if x.get("floor") == name), default=0)

    small = [x for x in lines if x.get("floor") == "repeated_read" and x["mb"] <= 24]
    measured = {
        "flops": best("mma_sync_f16", "tflop_per_s") * 1e12,
        "f32 flops": best("fma_f32", "tflop_per_s") * 1e12,
        "weights": best("cold_read", "gb_per_s") * 1e9,
        "maps": max((x["gb_per_s"] for x in small), default=0) * 1e9,
    }
    return (
        (measured, "measured") if all(measured.values()) else (H100, "others' figures for an H100")
    )


def floor_us(step: dict[str, Any], precision: str, peak: dict[str, float]) -> float:
    """The longest of a layer's arithmetic, its weights from memory, its maps through L2. Only weights
    that meet more than padding count: no kernel reads the others."""
    maps = step["hi"] * step["wi"] * step["ci"] + step["ho"] * step["wo"] * step["co"]
    return 1e6 * max(
        2 * step["macs"] / peak["f32 flops" if precision == "f32" else "flops"],
        step["weight_bytes"] / peak["weights"],
        maps * BYTES[precision] / peak["maps"],
    )


def kernels(
    floor: Path | None, precisions: Sequence[str] = tuple(BYTES)
) -> Iterator[list[dict[str, Any]]]:
    """The rows of each precision and size, one per layer: microseconds of its kernel, weights from
    memory, and over its floor."""
    peak, source = peaks(floor)
    for precision in precisions:
        for size in (256, 512):
            with Engine(model_of(64), backend="cuda", precision=precision, size=(size, size)) as engine:
                steps = engine._core.timed(size, size, repeats=20)
            rows = []
            for step in steps:
                least = floor_us(step, precision, peak)
                rows.append({
                    "kernel": step["kernel"], "layer": step["layer"], "precision": precision, "size": size,
                    "us": round(step["measured_us"], 2), "floor_us": round(least, 3), "floor_from": source,
                    "ratio": round(step["measured_us"] / least, 2),
                })  # fmt: skip
            yield rows


def two_phase(rows: list[dict[str, Any]], floor: Path | None) -> list[dict[str, Any]]:
    """For each row of a stream kernel what the kernels without clusters need for the same layer, from a
    process of its own: the engine reads its environment once. Their `gain` is the stream kernel's."""
    streamed = {(row["layer"], row["precision"], row["size"]): row for row in rows
                if "_stream_" in row["kernel"]}  # fmt: skip
    if not streamed:
        return []
    os.environ["P2P_CUDA_CLUSTER"] = "0"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        others = pool.apply(all_kernels, (floor, sorted({row["precision"] for row in streamed.values()})))
    found = []
    for other in others:
        row = streamed.get((other["layer"], other["precision"], other["size"]))
        if row:
            found.append(other | {"instead_of": row["kernel"], "gain": round(other["us"] / row["us"], 2)})
    return found


def all_kernels(floor: Path | None, precisions: Sequence[str]) -> list[dict[str, Any]]:
    return [row for rows in kernels(floor, precisions) for row in rows]


class Contender(NamedTuple):
    """`run` does one pass and returns the picture (n, 3, h, w), a device tensor or an array; `times`
    gives microseconds of so many passes."""

    run: Callable[[], Any]
    times: Callable[[int], list[float]]


def timed_by_events(
    torch: Any, run: Callable[[], Any], flush: Any = None
) -> Callable[[int], list[float]]:
    """Each pass between two events of the current stream; on the CPU the wall clock."""

    def times(count: int) -> list[float]:
        if not torch.cuda.is_available():
            return timed_by_clock(run)(count)
        # All passes are queued before anybody waits, as in Executable::timed_graph: what is launched
        # faster than it runs costs its time on the device, and no launch.
        marks = []
        for _ in range(count):
            if flush is not None:
                flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            marks.append((begin, end))
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) * 1e3 for begin, end in marks]

    return times


def timed_by_clock(run: Callable[[], Any]) -> Callable[[int], list[float]]:
    def times(count: int) -> list[float]:
        result = []
        for _ in range(count):
            start = time.perf_counter()
            run()
            result.append((time.perf_counter() - start) * 1e6)
        return result

    return times


# The weights of a whole net, 54 million, take seconds to make: once for all cases.
@functools.cache
def model_of(ngf: int) -> Model:
    return nets.unet(ngf)


@functools.cache
def torch_net(ngf: int, batch: bool) -> Any:
    """nets.torch_net, whose batch norm is an image's own only at batch 1; else instance norm. To be
    copied."""
    import torch

    net = nets.torch_net(model_of(ngf))
    for parent in list(net.modules()) if batch else []:
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.BatchNorm2d):
                norm = torch.nn.InstanceNorm2d(child.num_features, eps=child.eps, affine=True)
                norm.weight, norm.bias = child.weight, child.bias
                parent.add_module(name, norm)
    return net.eval().requires_grad_(False)


def rival(case: Case, ngf: int, x: Any, form: str, cold: bool = False) -> Callable[[], Contender]:
    """PyTorch in one of its forms: eager, channels-last, compile, graph, graph channels-last; cold: L2
    flushed before each pass."""
    import torch

    def make() -> Contender:
        dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[case.precision]
        layout = torch.contiguous_format if form in ("eager", "graph") else torch.channels_last
        net = copy.deepcopy(torch_net(ngf, case.n > 1)).to(x.device, dtype).to(memory_format=layout)
        tensor = x.to(dtype).to(memory_format=layout)
        if form == "compile":
            net = torch.compile(net, mode="max-autotune")
        run = torch.inference_mode()(lambda: net(tensor))
        if form.startswith("graph"):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = run()

            def run() -> Any:
                graph.replay()
                return result

        flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=x.device) if cold else None
        return Contender(run, timed_by_events(torch, run, flush))

    return make


def ours(
    case: Case, x: Any, where: str, open_engine: Callable[[], Engine]
) -> Callable[[], Contender]:
    """where: "resident" (one graph, nothing copied), "cold" (the same, L2 flushed before each pass),
    "torch" (device tensors in and out through translate), "host" (numpy uint8 in and out)."""

    def make() -> Contender:
        engine = open_engine()
        out = x.new_empty(x.shape)

        def device() -> Any:
            return engine.translate(x, out=out, value_range=(-1, 1))

        if where in ("resident", "cold"):
            flush = FLUSH_BYTES if where == "cold" else 0
            core = engine._core

            def graph(count: int) -> list[float]:
                return core.time_graph(case.n, case.size, case.size, count, flush)

            return Contender(device, graph)
        if where == "torch":
            import torch

            return Contender(device, timed_by_events(torch, device))
        image = ((x.permute(0, 2, 3, 1).cpu().numpy() + 1) * 127.5).round().astype("uint8")
        result = np.empty_like(image)

        def host() -> Any:
            engine.translate(image, out=result)
            return (result / 127.5 - 1).transpose(0, 3, 1, 2)

        return Contender(host, timed_by_clock(lambda: engine.translate(image, out=result)))

    return make


def contenders(
    case: Case, ngf: int, x: Any, open_engine: Callable[[], Engine]
) -> dict[str, Callable[[], Contender]]:
    made = {f"pix2pix_fast {where}": ours(case, x, where, open_engine)
            for where in ("resident", "cold", "torch", "host")}  # fmt: skip
    made["torch eager"] = rival(case, ngf, x, "eager")
    made["torch channels-last"] = rival(case, ngf, x, "channels-last")
    if x.device.type == "cuda":
        made["torch CUDA graph"] = rival(case, ngf, x, "graph")
        made["torch CUDA graph channels-last"] = rival(case, ngf, x, "graph channels-last")
        made["torch CUDA graph cold"] = rival(case, ngf, x, "graph", cold=True)
    made["torch compile max-autotune"] = rival(case, ngf, x, "compile")
    return made


@functools.cache
def picture_of(size: int, device: str) -> Any:
    """(1, 3, size, size) in [-1, 1] that bytes hold exactly, so that every contender sees the same one."""
    import torch

    picture = torch.from_numpy(nets.picture(size).transpose(2, 0, 1)[None].copy()).to(device)
    return ((picture + 1) * 127.5).round() / 127.5 - 1


@functools.cache
def exact(ngf: int, size: int, device: str) -> Any:
    """What the float64 network makes of it, on the CPU."""
    import torch
    from pix2pix_fast.train.networks import UNet

    net = UNet.from_model(model_of(ngf)).double().to(device)
    with torch.no_grad():
        return net(picture_of(size, device).double()).cpu()


def row_of(case: Case, name: str, **fields: Any) -> dict[str, Any]:
    settings = {"pdl": os.environ.get("P2P_CUDA_PDL", "0"), "cluster": os.environ.get("P2P_CUDA_CLUSTER", "1")}
    return {"network": "unet256", **case._asdict(), "name": name, **settings, **fields}


def error_of(picture: Any, reference: Any) -> float:
    """Relative L2 error of the first image."""
    import torch

    first = torch.as_tensor(picture)[:1].double().cpu()
    return float(torch.linalg.vector_norm(first - reference) / torch.linalg.vector_norm(reference))


def measure(
    case: Case, device: str, ngf: int, rounds: int, wanted: Callable[[str], bool]
) -> list[dict[str, Any]]:
    """The rows of one case, of the contenders that are wanted."""
    import torch

    torch.backends.cudnn.benchmark = True
    x = picture_of(case.size, device).repeat(case.n, 1, 1, 1)
    x[1:] = x[1:].flip(3)
    reference = exact(ngf, case.size, device)
    engines: list[Engine] = []  # one for all of ours

    def open_engine() -> Engine:
        if not engines:
            size = (case.size, case.size)
            engines.append(Engine(model_of(ngf), backend="cuda", precision=case.precision, size=size))
        return engines[0]

    rows, running = {}, {}
    for name, make in contenders(case, ngf, x, open_engine).items():
        if not wanted(name):
            continue
        rows[name] = row_of(case, name)
        try:
            contender = make()
            for _ in range(3):
                made = contender.run()
            if device == "cuda":
                torch.cuda.synchronize()
            rows[name]["error"] = float(f"{error_of(made, reference):.3g}")
            running[name] = contender
        except Exception as error:  # noqa: BLE001 - any may fail in any way; its row says how
            rows[name]["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            print(f"{tuple(case)} {name}: {rows[name]['failed']}", file=sys.stderr)
    medians: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, contender in running.items():
            passes = 2 if device == "cpu" else 20 if case.n == 1 else 8
            medians[name].append(statistics.median(contender.times(passes)))
    for engine in engines:
        engine.close()
    for name, values in medians.items():
        rows[name]["us"] = round(statistics.median(values), 2)
        rows[name]["round_us"] = [round(v, 2) for v in values]
    mine, graph = "pix2pix_fast resident", "torch CUDA graph"
    rivals = {k: v for k, v in medians.items() if k.startswith("torch") and "cold" not in k}
    if mine in medians and rivals:
        best = min(rivals, key=lambda k: statistics.median(rivals[k]))
        pairs = zip(medians[best], medians[mine], strict=True)
        rows[mine] |= {
            "best_rival": best,
            "ratio": round(statistics.median(a / b for a, b in pairs), 2),
        }
        if graph in medians:
            pairs = zip(medians[graph], medians[mine], strict=True)
            rows[mine]["ratio_to_cuda_graph"] = round(statistics.median(a / b for a, b in pairs), 2)
    return list(rows.values())


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["kernels", "network"])
    parser.add_argument("--out", type=Path, default=Path("/dev/stdout"))
    parser.add_argument("--floor", type=Path, help="gpu_floor.cu's lines")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--size", type=int, action="append", help="only these sizes")
    parser.add_argument("--ngf", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ours", action="store_true", help="no rivals, batch 1 in f16")
    parser.add_argument("--compile", action="store_true", help="torch.compile beside the best two")
    options = parser.parse_args()
    missing = backends.available()["cuda"] if options.device == "cuda" else ""
    if missing:
        print(f"bench/gpu.py: {missing}", file=sys.stderr)
        return 3
    if options.what == "kernels":
        rows = []
        for made in kernels(options.floor):
            append(options.out, made)  # at once: what comes next may fail, or have no time
            rows += made
        append(options.out, two_phase(rows, options.floor))
        return 0
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench/gpu.py: PyTorch finds no CUDA device", file=sys.stderr)
        return 3
    until = time.monotonic() + options.seconds
    cases = COMPILED if options.compile else CASES[:2] if options.ours else CASES
    if options.size:
        cases = [
            case._replace(size=size) for size in options.size for case in CASES if case.size == 256
        ]

    def wanted(name: str) -> bool:
        if options.compile:
            return name in BESIDE
        return name.startswith("pix2pix") if options.ours else "compile" not in name

    failed = False
    for case in cases:
        if time.monotonic() > until:
            append(options.out, [row_of(case, "all", skipped="out of time")])
            continue
        print(
            f"{case.precision}, {case.size}x{case.size}, batch {case.n}",
            file=sys.stderr,
            flush=True,
        )
        try:
            rows = measure(case, options.device, options.ngf, options.rounds, wanted)
        except Exception as error:  # noqa: BLE001 - the other cases' rows are worth having
            rows = [row_of(case, "all", failed=f"{type(error).__name__}: {error}"[:300])]
        append(options.out, rows)
        failed |= any("failed" in row for row in rows if row["name"].startswith(("pix2pix", "all")))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
