"""Is one commit faster than another, on this machine?

    python bench/compare.py BEFORE [AFTER] [--rounds 7]

Both are checked out and built side by side; processes alternate, so that a slow minute hits both.
AFTER defaults to the working tree's HEAD. A case that is slower by 10 % in the median and the
minimum, with p <= 0.05 by the rank-sum test over rounds, makes the command fail.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CASES = ["f32:64:256:2", "bf16:64:256:2", "f32:64:256:1", "f32:16:256:2", "f32:64:512:2"]
CHILD = """
import json, statistics, sys, time
sys.path.insert(0, sys.argv[1])
import nets
from pix2pix_fast import BackendUnavailable
result = {}
for case in sys.argv[2:]:
    precision, ngf, size, threads = case.split(":")
    try:
        run = nets.Ours(nets.unet(int(ngf)), nets.picture(int(size)), precision, int(threads))
    except BackendUnavailable:
        continue
    for _ in range(5):
        run()
    times, end = [], time.perf_counter() + 0.5
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    result[case] = statistics.median(times)
print(json.dumps(result))
"""
SLOWER, SIGNIFICANT = 1.10, 0.05


def build(commit: str, folder: Path) -> Path:
    """A checkout of `commit` with its module built in place; the folder to put on PYTHONPATH."""
    import pybind11

    subprocess.run(["git", "worktree", "add", "--detach", folder, commit], cwd=ROOT, check=True)
    configure = ["cmake", "-S", folder, "-B", folder / "build", "-G", "Ninja"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", "-DP2P_CUDA=off"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-DPYTHON_EXECUTABLE={sys.executable}"]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder / "build", "--target", "_core"], check=True)
    return folder


def rank_sum_p(a: list[float], b: list[float]) -> float:
    """One-sided p of "b is larger", Mann and Whitney's test by its normal approximation."""
    u = sum((y > x) + 0.5 * (y == x) for x in a for y in b)
    n, m = len(a), len(b)
    z = (u - n * m / 2 - 0.5) / math.sqrt(n * m * (n + m + 1) / 12)
    return 0.5 * math.erfc(z / math.sqrt(2))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after", nargs="?", default="HEAD")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", action="append", help=f"precision:ngf:size:threads, {CASES}")
    options = parser.parse_args()
    cases = options.case or CASES
    times: dict[str, tuple[list[float], list[float]]] = {case: ([], []) for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        trees = [Path(folder) / "before", Path(folder) / "after"]
        try:
            for commit, tree in zip((options.before, options.after), trees, strict=True):
                build(commit, tree)
            for index in range(options.rounds):
                for side in (0, 1) if index % 2 == 0 else (1, 0):
                    done = subprocess.run(
                        # our own nets.py for both: the cases must be the same
                        [sys.executable, "-c", CHILD, str(ROOT / "bench"), *cases],
                        env={**os.environ, "PYTHONPATH": str(trees[side])},
                        cwd=folder,
                        stdout=subprocess.PIPE,
                        check=True,
                    )
                    for case, seconds in json.loads(done.stdout).items():
                        times[case][side].append(seconds * 1e3)
        finally:
            for tree in trees:
                subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=False)
    failed = False
    print(f"{'case':16} {'before ms':>10} {'after ms':>10} {'after/before':>13} {'p slower':>9}")
    for case, (before, after) in times.items():
        if not before or not after:
            print(f"{case:16} cannot run here")
            continue
        ratio = statistics.median(after) / statistics.median(before)
        p = rank_sum_p(before, after)
        slower = min(ratio, min(after) / min(before)) >= SLOWER and p <= SIGNIFICANT
        failed |= slower
        print(
            f"{case:16} {statistics.median(before):10.2f} {statistics.median(after):10.2f} "
            f"{ratio:12.3f}x {p:9.3f}{'  SLOWER' if slower else ''}"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
