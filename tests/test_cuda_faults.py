"""Does the shim of cuda_host/ see what it is for? Faults planted in the kernels must be caught, each by
its name; AddressSanitizer and UndefinedBehaviorSanitizer must find the kernels silent, and a planted
fault not."""

from __future__ import annotations

import ctypes
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cuda_shim import COMMON, HOST, KERNELS, compile_all, edited, link
from test_cuda_kernels import Shape, check_integers


class Fault(NamedTuple):
    """A line of layer.cuh, what becomes of it, and what the shim must say; "" where only the numbers
    can be wrong."""

    before: str
    after: str
    says: str


FAULTS = {
    "no barrier in front of a slice": Fault(
        "    sync_block();  // slice s is whole", "    // slice s is whole",
        "race: .*word of shared memory"),
    "no barrier between the tile and its statistics": Fault(
        "  sync_block();\n  store_tile<", "  store_tile<", "race: .*word of shared memory"),
    "no wait for a copy": Fault(
        "    copy_wait<shape.stages - 2>();\n", "", "a copy that nobody waited for"),
    "a wait for one copy too few": Fault(
        "    copy_wait<shape.stages - 2>();\n", "    copy_wait<shape.stages - 1>();\n",
        "race: .*word of shared memory"),
    "a read outside the map": Fault(
        "const int64_t pixel = (int64_t)(image[i] * a.hi + yy) * a.wi + xx;",
        "const int64_t pixel = (int64_t)(image[i] * a.hi + yy + a.n * a.hi) * a.wi + xx;",
        "read outside the buffers"),
    "a write outside the map": Fault(
        "if (image >= a.n || pixel >= pixels) continue;", "if (image >= a.n) continue;",
        "write outside the buffers|another block writes|another thread of the block writes"),
    "weights asked for outside": Fault(
        "column < a.columns && weight_at.th < live.h1;", "weight_at.th < live.h1;",
        "read outside the buffers"),
    "a misaligned vector": Fault(
        "store16((char*)a.dst + (at * a.co_stored + channel) * (16 / kVec<kType>), pack",
        "store16((char*)a.dst + (at * a.co_stored + channel) * (16 / kVec<kType>) + 8, pack",
        "misaligned access to global memory"),
    "a misaligned shared vector": Fault(
        "shared_store16(slice + piece_offset(row0 + i * (kThreads / kPieces), piece), raw[i]);",
        "shared_store16(slice + piece_offset(row0 + i * (kThreads / kPieces), piece) + 4, raw[i]);",
        "misaligned access to shared memory"),
    "no grid_wait": Fault("  grid_wait();  // nothing", "  // nothing", "before grid_wait"),
    "a thread that leaves without grid_wait": Fault(
        "  grid_wait();  // nothing", "  if (block_x() == 1) return;\n  grid_wait();  // nothing",
        "never called grid_wait"),
    "pixels read before grid_wait": Fault(
        "  sums.clear();\n  grid_wait();",
        "  sums.clear();\n  if (a.src[0].affine) sums.v[0][0][0] = 0.0f * load(a.src[0].affine);\n"
        "  grid_wait();",
        "read before grid_wait of what another kernel may still write"),
    "statistics of blocks that have not arrived": Fault(
        "    const bool last = arrive(counter) == total - 1;", "    const bool last = true;",
        "race: a word of global memory that another block writes"),
    "an arrival without a fence": Fault(
        "    fence();\n    const bool last = arrive", "    const bool last = arrive",
        "race: a word of global memory that another block writes"),
    "no fence after the arrival": Fault(
        "    shared_set(word, last ? 1.0f : 0.0f);\n    fence();\n",
        "    shared_set(word, last ? 1.0f : 0.0f);\n",
        "race: a word of global memory that another block writes"),
    "no barrier in front of the arrival": Fault(
        "uint32_t total, float* word) {\n  sync_block();\n", "uint32_t total, float* word) {\n",
        "race: a word of"),
    "what other blocks wrote read from this SM's cache": Fault(
        "sum += load_of_blocks(partial", "sum += load(partial", "without load_of_blocks"),
    "a barrier that half of a block meets": Fault(
        "  sync_block();\n\n  // The slices' memory",
        "  if (thread_index() < 64) sync_block();\n\n  // The slices' memory",
        "a barrier that some threads never reach|race"),
    "half of a warp at a fragment": Fault(
        "    sums.multiply(pixel_slices", "    if (thread_index() % 32 < 16) sums.multiply(pixel_slices",
        "a warp-wide instruction that some lanes never reach"),
    "a counter that stays": Fault(
        "    if (last) store(counter, 0u);\n", "", "a counter is not zero after the run"),
    "the norm's shift in the padding": Fault(
        "        if (!(inside >> i & 1)) continue;\n", "", ""),
    "a fragment's halves exchanged": Fault(
        "r, b[n][2 * half], b[n][2 * half + 1]);", "r, b[n][2 * half + 1], b[n][2 * half]);", ""),
}  # fmt: skip
# Split, several tiles, two images, statistics, two sources, cut columns: every line above is run.
CASES = [Shape(2, 9, 9, 33, 24, 20, splits=3), Shape(2, 3, 3, 40, 0, 41, splits=2)]
TRIED = [("conv", "64x64"), ("deconv", "64x32"), ("conv", "16x32")]


def only_tried(sources: Path, dtype: str) -> Path:
    """layer_{dtype}.cu in an edited folder with TRIED's kernels alone (f32: its one tile), which
    compile in a third of the time."""
    name = f"layer_kernel<DType::k{dtype.upper()}, Tile::k"
    chosen = sources / f"layer_{dtype}.cu"
    others = f"tile == Tile::k64x32 ? &{name}64x32, Kind::kDeconv> : &{name}16x32, Kind::kConv>"
    chosen.write_text(
        f"""#include "layer.cuh"
namespace p2p::cuda {{
LayerKernel layer_{dtype}(Kind, Tile {"tile" if dtype == "f16" else ""}) {{
  return {"tile != Tile::k64x64 ? " + others + " : " if dtype == "f16" else ""}&{name}64x64, Kind::kConv>;
}}
}}
"""
    )
    return chosen


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    """A library for each fault: layer_f16.cu with it, the rest as it is; two compilers at a time."""
    folder = tmp_path_factory.mktemp("faults")
    sound = compile_all([*KERNELS, *COMMON], folder, "-O1")

    def make(index: int, fault: Fault) -> ctypes.CDLL:
        def edit(text: str) -> str:
            assert text.count(fault.before) == 1, fault
            return text.replace(fault.before, fault.after)

        place = folder / str(index)
        sources = edited(place, edit)
        chosen = only_tried(sources, "f16")
        objects = compile_all([chosen], place / "objects", "-O1", cuda=sources)
        return link(list((sound | objects).values()), place / "host.so")

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(FAULTS, pool.map(make, range(len(FAULTS)), FAULTS.values()), strict=True))


def run_cases(host: ctypes.CDLL) -> None:
    for shape in CASES:
        for kind, tile in TRIED:
            check_integers(host, kind, tile, "f16", shape)


def test_the_cases_pass_without_a_fault(cuda_host: Any) -> None:
    run_cases(cuda_host)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name: str, broken: dict[str, ctypes.CDLL]) -> None:
    if FAULTS[name].says:
        with pytest.raises(RuntimeError, match=FAULTS[name].says):
            run_cases(broken[name])
    else:
        with pytest.raises(AssertionError):
            run_cases(broken[name])


SANITIZE = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# Undefined behaviour and a read behind the last pixel, which the shim itself would stop.
OF_SANITIZERS = {
    "AddressSanitizer: heap-buffer-overflow": Fault(
        "        raw[i] = load16((const char*)s.data + (pixel",
        "        raw[i] = load16((const char*)s.data + ((pixel + (int64_t)a.n * a.hi * a.wi)", ""),
    "runtime error: shift exponent 40 is too large": Fault(
        "        inside |= 1u << i;", "        inside |= 1u << (i + a.n + 38);", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def with_sanitizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Objects of all that runs, driver included."""
    folder = tmp_path_factory.mktemp("sanitized")
    return compile_all([*KERNELS, *COMMON, HOST / "sanitized.cpp"], folder, *SANITIZE)


def run_sanitized(objects: dict[str, Path], program: Path, *arguments: str) -> Any:
    subprocess.run(["g++", *SANITIZE, *map(str, objects.values()), "-o", str(program)], check=True)
    # The kernels' threads have stacks of their own: no fake ones.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_stack_use_after_return=0",
                   "UBSAN_OPTIONS": "print_stacktrace=1"}  # fmt: skip
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=120,
                          env=environment, check=False)  # fmt: skip


def test_sanitizers_find_the_kernels_silent(
    with_sanitizers: dict[str, Path], tmp_path: Path
) -> None:
    done = run_sanitized(with_sanitizers, tmp_path / "program")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    assert done.stdout == "ran 50 kernels\n"


@pytest.mark.parametrize("says", OF_SANITIZERS)
def test_sanitizers_find_a_planted_fault(
    says: str, with_sanitizers: dict[str, Path], tmp_path: Path
) -> None:
    fault = OF_SANITIZERS[says]
    sources = edited(tmp_path, lambda text: text.replace(fault.before, fault.after))
    assert fault.after in (sources / "layer.cuh").read_text()
    flags = [*SANITIZE, "-Wno-unused"]
    objects = compile_all([only_tried(sources, "f32")], tmp_path / "objects", *flags, cuda=sources)
    done = run_sanitized(with_sanitizers | objects, tmp_path / "program", "fault")
    assert done.returncode != 0
    assert says in done.stderr
    assert "layer.cuh" in done.stderr  # the kernel's line
