"""bench/gpu_check.sh and bench/gpu.py where things fail in the middle: what was found until then is kept,
and the exit status counts the stages that failed. Tools of a few lines stand in for CUDA's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu
import pytest

SCRIPT = Path(gpu.__file__).with_name("gpu_check.sh")


def check(root: Path, floor: str, **settings: str) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit status, what was printed, and the rows of a run of stages in `root`, where nvcc makes programs
    of the shell commands `floor`."""
    for folder in ("bench", "bin"):
        (root / folder).mkdir(parents=True)
    script = shutil.copy(SCRIPT, root / "bench")
    tools = {
        "nvidia-smi": "echo An NVIDIA GPU",
        "nvcc": f"printf '#!/bin/sh\\n%s\\n' '{floor}' >\"${{@: -1}}\"; chmod +x \"${{@: -1}}\"",
    }
    for name, text in tools.items():
        (root / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (root / "bin" / name).chmod(0o755)
    done = subprocess.run(
        ["bash", str(script)], capture_output=True, text=True, check=False, timeout=60,
        env={"PATH": f"{root / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable,
             "GIT_CEILING_DIRECTORIES": str(root.parent), **settings},
    )  # fmt: skip
    (results,) = (root / "bench/results").glob("gpu-*.jsonl")
    return done.returncode, done.stdout, [json.loads(line) for line in results.read_text().splitlines()]


def test_a_stage_that_fails_leaves_the_others(tmp_path: Path) -> None:
    floor = 'echo "{\\"floor\\": 1}"; echo "{\\"floor\\":"'  # the second line breaks off
    status, said, rows = check(tmp_path, floor, STAGES="tests memcheck floor")
    assert status == 2 and "floor: passed" in said
    assert [(row["stage"], row["status"]) for row in rows if "stage" in row] == [
        ("tests", 4), ("memcheck", 4), ("floor", 0)]  # fmt: skip
    assert all("needs the build" in row["said"] for row in rows[:2])
    assert [row["floor"] for row in rows if "floor" in row] == [1]
    assert all(row["gpu"] == "An NVIDIA GPU" and row["commit"] == "unknown" for row in rows)
    _, _, rows = check(tmp_path / "named", floor, STAGES="floor", COMMIT="abc")
    assert all(row["commit"] == "abc" for row in rows)


def test_time_that_runs_out_keeps_what_was_measured(tmp_path: Path) -> None:
    floor = 'echo "{\\"floor\\": 1}"; sleep 50'
    status, said, rows = check(tmp_path, floor, STAGES="floor pdl", P2P_GPU_CHECK_SECONDS="10")
    assert status == 2 and "no time is left" in said
    assert [row.get("status") for row in rows] == [124, None, 124]
    assert rows[1]["floor"] == 1


def test_a_stage_that_hangs_leaves_the_others_their_part(tmp_path: Path) -> None:
    status, said, rows = check(tmp_path, "sleep 50", STAGES="floor kernels", P2P_GPU_CHECK_SECONDS="20")
    assert status == 2 and [(row["stage"], row["status"]) for row in rows] == [("floor", 124), ("kernels", 4)]
    assert rows[0]["seconds"] <= 14, said  # 8, and 5 for what does not end when it is told to


def test_kernels_that_were_timed_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub:
        def __init__(self, model: Any, *, precision: str, **rest: Any) -> None:
            if precision == "f32":
                raise RuntimeError("no more")
            self._core = self

        def timed(self, h: int, w: int, repeats: int) -> list[dict[str, Any]]:
            sizes = dict.fromkeys(("hi", "wi", "ci", "ho", "wo", "co", "macs", "weight_bytes"), 8)
            return [{"kernel": "cuda/conv_stream_16x32", "layer": "e5", "measured_us": 2.0, **sizes}]

        def __enter__(self) -> Stub:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(gpu, "Engine", Stub)
    monkeypatch.setattr(gpu, "model_of", lambda ngf: None)
    monkeypatch.setattr(gpu.backends, "available", lambda: {"cuda": ""})
    out = tmp_path / "kernels.jsonl"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "kernels", "--out", str(out)])
    with pytest.raises(RuntimeError, match="no more"):
        gpu.main()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["precision"], row["size"]) for row in rows] == [
        ("f16", 256), ("f16", 512), ("bf16", 256), ("bf16", 512)]  # fmt: skip
