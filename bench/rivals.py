"""The table: our engine against PyTorch, ONNX Runtime and OpenVINO on this machine.

    python bench/rivals.py                 # every case, about ten minutes; a JSON line per row
    python bench/rivals.py --case unet256  # the headline alone

Each case (net, picture size, threads) has a process of its own; in it, rounds go contender by
contender, so that a slow minute of the machine hits all of them. A row shows the median over rounds
of each round's median, the spread over rounds, the error against float64, the ratio to the fastest
rival of the same precision, and, for us, the share of the algorithm's own floor (arithmetic and
weights at this machine's measured peaks). A rival that is not installed or fails is listed so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import machine
import nets
import numpy as np

from pix2pix_fast import BackendUnavailable, _core


class Case(NamedTuple):
    ngf: int
    size: int
    threads: int


CASES = {
    "unet256": Case(64, 256, 2),
    "unet256_1thread": Case(64, 256, 1),
    "unet256_512": Case(64, 512, 2),
    "unet256_ngf32": Case(32, 256, 2),
    "unet256_ngf16": Case(16, 256, 2),
}
SECONDS = 0.4  # per contender and round, at least 3 calls
REST = 0.15  # before each turn: other runtimes' threads go on spinning for a while
RESULTS = Path(__file__).parent / "results"


def contenders(case: Case, model: Any, x: np.ndarray) -> dict[tuple[str, str], Any]:
    """(name, precision) -> a function that makes the runner."""
    t = case.threads

    def torch(**options: bool) -> Any:
        return lambda: nets.torch_runner(model, x, **options)

    makers: dict[tuple[str, str], Any] = {}
    for precision, room in (("f32", ""), ("bf16", ""), ("f32", "avx2")):
        name = f"pix2pix_fast {room}".strip()
        makers[name, precision] = lambda p=precision, r=room: nets.Ours(model, x, p, t, r)
    eager = {"compiled": False, "bf16": False}
    makers["torch eager", "f32"] = torch(**eager, channels_last=False)
    makers["torch eager channels-last", "f32"] = torch(**eager, channels_last=True)
    for precision in ("f32", "bf16"):
        bf16 = precision == "bf16"
        makers["torch.compile frozen", precision] = torch(
            compiled=True, bf16=bf16, channels_last=False
        )
        makers["torch.compile frozen channels-last", precision] = torch(
            compiled=True, bf16=bf16, channels_last=True
        )
        makers["OpenVINO", precision] = lambda b=bf16: nets.openvino_runner(model, x, t, b)
    makers["torch eager channels-last", "bf16"] = torch(
        compiled=False, bf16=True, channels_last=True
    )
    for fused in (False, True):
        name = "ONNX Runtime" + (" fused norm" if fused else "")
        makers[name, "f32"] = lambda f=fused: nets.onnxruntime_runner(model, x, t, f)
    return makers


def can_run(room: str, precision: str) -> bool:
    try:
        _core.peaks(isa=room, precision=precision, threads=1)
    except BackendUnavailable:
        return False
    return True


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    """The rows of one case; to be called in a process of its own."""
    case = CASES[name]
    try:
        import torch

        torch.set_num_threads(case.threads)
    except ImportError:
        pass
    model, x = nets.unet(case.ngf), nets.picture(case.size)
    reference = nets.exact(model, x)
    runners, rows = {}, {}
    # Before any rival: their threads may go on spinning.
    peaks = {
        (room, precision): _core.peaks(isa=room, precision=precision, threads=case.threads)
        for room, precision in (("", "f32"), ("", "bf16"), ("avx2", "f32"))
        if can_run(room, precision)
    }
    for key, make in contenders(case, model, x).items():
        if key[1] == "bf16" and ("", "bf16") not in peaks:
            continue  # without bf16 instructions there is no row of ours, and PyTorch emulates: minutes a call
        row: dict[str, Any] = {"case": name, **case._asdict(), "name": key[0], "precision": key[1]}
        rows[key] = row
        try:
            runner = make()
            for _ in range(3):
                y = runner()
        except Exception as error:  # noqa: BLE001 - a rival may fail in any way; the row says how
            row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            print(f"  {key}: {row['failed']}", file=sys.stderr)
            continue
        row["error"] = float(np.linalg.norm(y - reference) / np.linalg.norm(reference))
        runners[key] = runner
    medians: dict[Any, list[float]] = {key: [] for key in runners}
    for index in range(rounds):
        print(f"{name}: round {index + 1} of {rounds}", file=sys.stderr, flush=True)
        for key, runner in runners.items():
            time.sleep(REST)
            runner()
            times: list[float] = []
            end = time.perf_counter() + SECONDS
            while len(times) < 3 or time.perf_counter() < end:
                start = time.perf_counter()
                runner()
                times.append(time.perf_counter() - start)
            medians[key].append(statistics.median(times))
    for key, values in medians.items():
        rows[key]["ms"] = statistics.median(values) * 1e3
        rows[key]["round_ms"] = [round(v * 1e3, 3) for v in values]
    for key, row in rows.items():
        rivals = {
            k: r["ms"]
            for k, r in rows.items()
            if k[1] == key[1] and not k[0].startswith("pix2pix_fast") and "ms" in r
        }
        if "ms" not in row or not key[0].startswith("pix2pix_fast") or not rivals:
            continue
        best = min(rivals, key=lambda k: rivals[k])
        # round by round: both saw the same minute
        row["ratio"] = statistics.median(
            b / a for a, b in zip(medians[key], medians[best], strict=True)
        )
        row["best_rival"] = best[0]
        room = "avx2" if key[0].endswith("avx2") else ""
        peak = peaks[room, key[1]]
        row["peak_gflops"] = peak["flops"] / 1e9
        row["read_gbytes"] = peak["bytes_per_second"] / 1e9
        row["floor_ms"] = machine.floor_seconds(runners[key].steps, peak) * 1e3
        row["floor_share"] = row["floor_ms"] / row["ms"]
    return list(rows.values())


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        mine = [row for row in rows if row["case"] == case]
        first = mine[0]
        lines.append(
            f"\n{case}: ngf {first['ngf']}, {first['size']}x{first['size']}, "
            f"{first['threads']} thread(s), batch 1"
        )
        lines.append(
            f"  {'':36}{'':6}{'ms':>9}{'spread':>9}{'error':>10}{'ratio':>8}{'of floor':>10}"
        )
        for row in sorted(mine, key=lambda r: (r["precision"], r.get("ms", 1e9))):
            head = f"  {row['name']:36}{row['precision']:6}"
            if "failed" in row:
                lines.append(f"{head}  -  {row['failed'][:70]}")
                continue
            spread = f"{min(row['round_ms']):.0f}..{max(row['round_ms']):.0f}"
            line = f"{head}{row['ms']:9.1f}{spread:>9}{row['error']:10.1e}"
            if "ratio" in row:
                line += f"{row['ratio']:7.2f}x{row['floor_share']:9.0%}"
            lines.append(line)
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], card: dict[str, Any], path: Path) -> None:
    """Milliseconds per picture of the headline case, bars sorted."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    mine = [r for r in rows if r["case"] == "unet256" and "ms" in r]
    mine.sort(key=lambda r: -r["ms"])
    figure, axes = plt.subplots(figsize=(8, 0.34 * len(mine) + 1.3))
    ours = [r["name"].startswith("pix2pix_fast") for r in mine]
    bars = axes.barh(
        [f"{r['name']}  {r['precision']}" for r in mine],
        [r["ms"] for r in mine],
        color=["#c2410c" if o else "#94a3b8" for o in ours],
    )
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_xlabel("milliseconds per picture (median of interleaved rounds); shorter is better")
    axes.set_title(f"U-Net-256, 256x256, batch 1, 2 threads, {card['cpu']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--plot", type=Path, help="write the headline as a PNG")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.rounds)))
        return
    card = machine.card()
    rows: list[dict[str, Any]] = []
    for name in options.case or CASES:
        if CASES[name].threads > card["cores"]:
            print(f"{name}: needs {CASES[name].threads} cores", file=sys.stderr)
            continue
        command = [sys.executable, __file__, "--child", name, "--rounds", str(options.rounds)]
        threads = str(CASES[name].threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
        rows += json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(card))
    print(table(rows))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"rivals-{card['date'][:10]}.jsonl"
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps({"machine": card, **row}) + "\n")
    print(f"\n{path}")
    if options.plot:
        plot(rows, card, options.plot)
        print(options.plot)


if __name__ == "__main__":
    main()
