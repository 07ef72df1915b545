"""What nvcc makes of the CUDA kernels, for every architecture; needs no GPU.

    python bench/cuda_compile.py                        # all that nvcc knows from sm_75 on, five minutes
    python bench/cuda_compile.py --arch 90 --dtype f16  # some

Registers, spills, local memory, and whether tensor-core and 16-byte asynchronous instructions are
there, by nvcc and nvdisasm. Writes its rows, a line per kernel, into results/cuda-compile.jsonl (those
of other architectures and precisions stay) and the table of docs/cuda-registers.md. Needs every row to
be of today's kernels: run all of it when csrc/cuda/*.cuh changes.
Exit status 1 if a kernel spills, uses local memory or lacks the instructions of its precision.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench/results/cuda-compile.jsonl"
TABLE = ROOT / "docs/cuda-registers.md"
DTYPES = ("f16", "bf16", "f32")
KINDS = ("first", "conv", "deconv", "last")  # as kernels.h counts them
TILES = ("64x64", "64x32", "16x32", "64x16")


def read() -> list[dict[str, Any]]:
    """The rows of earlier runs."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return [json.loads(line) for line in lines]


def tool(name: str) -> str | None:
    """On the path, or in NVIDIA's wheel of that name."""
    wheel = Path(sysconfig.get_path("purelib")) / "nvidia"
    places = [Path(p) / "nvidia" for p in sys.path if p] + [wheel]
    found = (path for place in places for path in place.glob(f"*/bin/{name}"))
    return shutil.which(name) or next((str(path) for path in found), None)


def architectures() -> list[int]:
    """Of this nvcc, from sm_75 on."""
    done = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True)
    return sorted(n for n in map(int, re.findall(r"sm_(\d+)\b", done.stdout)) if n >= 75)


def kernel_name(mangled: str) -> str:
    """conv_64x32 of ...layer_kernel...TileE1...KindE1..., conv_stream_64x32 of stream_kernel."""
    form = re.search(r"\d(layer|patch|stream)_kernelI", mangled)[1]  # type: ignore[index]
    tile, kind = (int(re.search(rf"{what}E(\d)", mangled)[1]) for what in ("Tile", "Kind"))  # type: ignore[index]
    return f"{KINDS[kind]}{'' if form == 'layer' else f'_{form}'}_{TILES[tile]}"


def compiled(arch: int, dtype: str) -> list[dict[str, Any]]:
    """A row per kernel of csrc/cuda/layer_{dtype}.cu."""
    nvdisasm = tool("nvdisasm")
    assert nvdisasm, "needs nvdisasm"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "layer.cubin"
        done = subprocess.run(
            ["nvcc", "-std=c++17", "-O3", f"-arch=sm_{arch}", "-Xptxas", "-v", "-cubin", "-o", str(cubin),
             str(ROOT / f"csrc/cuda/layer_{dtype}.cu")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"sm_{arch} {dtype}: {done.stderr[-2000:]}")
        sass = subprocess.run(
            [nvdisasm, str(cubin)], capture_output=True, text=True, check=True
        ).stdout
    rows: dict[str, dict[str, Any]] = {}
    for part in done.stderr.split("Compiling entry function '")[1:]:
        name = kernel_name(part)
        stack, stores, loads = map(int, re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        ).groups())  # type: ignore[union-attr]  # fmt: skip
        registers = int(re.search(r"Used (\d+) registers", part)[1])  # type: ignore[index]
        rows[name] = {"arch": arch, "dtype": dtype, "kernel": name, "registers": registers,
                      "stack_bytes": stack, "spill_bytes": stores + loads}  # fmt: skip
    for section in re.split(r"\n\s*\.section\s+\.text\.", sass)[1:]:
        text = re.split(r"\n\s*\.section\s", section)[0]
        rows[kernel_name(section)] |= {
            "tensor_core": len(re.findall(r"\bHMMA\.", text)),
            "async_16_bytes": len(re.findall(r"\bLDGSTS\.[A-Z.]*128", text)),
            "ldmatrix": len(re.findall(r"\bLDSM\.", text)),
            "local": len(re.findall(r"\b(?:LDL|STL)\b", text)),
            "cluster_barriers": len(re.findall(r"\bUCGABAR_WAIT\b", text)),
        }
    # Without clusters there is nothing in a stream kernel, and the host never launches it.
    return [row for row in rows.values() if arch >= 90 or "_stream" not in row["kernel"]]


def faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with a kernel, in words."""
    wrong = []
    if row["spill_bytes"]:
        wrong.append(f"spills {row['spill_bytes']} bytes")
    if row["stack_bytes"] or row["local"]:
        wrong.append(f"uses local memory ({row['stack_bytes']} bytes, {row['local']} instructions)")
    # bf16 needs sm_80, and the host refuses it below
    tensor = row["dtype"] != "f32" and (row["arch"] >= 80 or row["dtype"] == "f16")
    if tensor and not (row["tensor_core"] and row["ldmatrix"]):
        wrong.append("has no tensor-core instruction")
    if row["arch"] >= 80 and not row["async_16_bytes"]:
        wrong.append("has no 16-byte asynchronous copy")
    if "_stream" in row["kernel"] and row["cluster_barriers"] != 2:
        wrong.append(f"waits at {row['cluster_barriers']} cluster barriers, not at 2")
    if row["registers"] * 128 > 65536:
        wrong.append("does not fit a multiprocessor's registers")
    return wrong


def table(rows: list[dict[str, Any]], nvcc: str) -> str:
    archs = sorted({row["arch"] for row in rows})
    lines = [
        "# Registers of the CUDA kernels",
        "",
        f"`python bench/cuda_compile.py` makes this file. {nvcc}; 128 threads a block, no spills, no local",
        "memory, tensor-core instructions (HMMA, LDSM; not in f32) and 16-byte asynchronous copies (LDGSTS.128;",
        "from sm_80 on) in every kernel. bf16 needs sm_80; stream kernels need clusters, so sm_90.",
        "",
        "| kernel | " + " | ".join(f"sm_{arch}" for arch in archs) + " |",
        "| --- |" + " --- |" * len(archs),
    ]
    found = {(f"{row['kernel']}_{row['dtype']}", row["arch"]): row["registers"] for row in rows}
    for name in sorted({name for name, _ in found}):
        lines.append(
            f"| `{name}` | " + " | ".join(str(found.get((name, arch), "")) for arch in archs) + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, action="append")
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    options = parser.parse_args()
    for name in ("nvcc", "nvdisasm"):
        if not tool(name):
            print(f"{name} was not found: nvcc is the CUDA toolkit's, nvdisasm a wheel of NVIDIA's")
            return 2
    jobs = [(a, d) for a in options.arch or architectures() for d in options.dtype or DTYPES]
    rows: list[dict[str, Any]] = []
    wrong = 0
    with ThreadPoolExecutor(2) as pool:
        for (arch, dtype), made in zip(
            jobs, pool.map(lambda job: compiled(*job), jobs), strict=True
        ):
            registers = [row["registers"] for row in made]
            print(f"sm_{arch} {dtype}: {min(registers)}..{max(registers)} registers", flush=True)
            rows += made
            for row in made:
                for fault in faults(row):
                    wrong += 1
                    print(f"  {row['kernel']} {fault}")
    release = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"release [\d.]+, V([\d.]+)", release.stdout)
    rows += [row for row in read() if (row["arch"], row["dtype"]) not in jobs]
    rows.sort(key=lambda row: (row["arch"], row["dtype"], row["kernel"]))
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    TABLE.write_text(table(rows, f"nvcc {version[1]}" if version else "nvcc"))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
