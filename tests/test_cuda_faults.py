"""Does the shim of cuda_host/ see what it is for? Faults planted in the kernels must be caught, each by
its name; AddressSanitizer and UndefinedBehaviorSanitizer must find the kernels silent, and a planted
fault not."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cuda_shim import COMMON, CUDA, HOST, KERNELS, compile_all, edited, link
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
        "race: a word of shared memory|race: writes a word of shared memory"),
    "no barrier between the tile and its statistics": Fault(
        "  sync_block();\n  store_tile<", "  store_tile<", "race: a word of shared memory"),
    "no wait for a copy": Fault(
        "    copy_wait<shape.stages - 2>();\n", "", "a copy that nobody waited for"),
    "a wait for one copy too few": Fault(
        "    copy_wait<shape.stages - 2>();\n", "    copy_wait<shape.stages - 1>();\n", ""),
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


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sound")
    return compile_all([*KERNELS, *COMMON], folder, "-O1")


def run_cases(host: ctypes.CDLL) -> None:
    for shape in CASES:
        for kind, tile in TRIED:
            check_integers(host, kind, tile, "f16", shape)


def test_the_cases_pass_without_a_fault(cuda_host: Any) -> None:
    run_cases(cuda_host)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name: str, sound: dict[str, Path], tmp_path: Path) -> None:
    fault = FAULTS[name]

    def edit(text: str) -> str:
        assert text.count(fault.before) == 1
        return text.replace(fault.before, fault.after)

    sources = edited(tmp_path, edit)
    broken = compile_all([sources / "layer_f16.cu"], tmp_path / "broken", "-O1", cuda=sources)
    host = link(list((sound | broken).values()), tmp_path / "host.so")
    if fault.says:
        with pytest.raises(RuntimeError, match=fault.says):
            run_cases(host)
    else:
        with pytest.raises(AssertionError):
            run_cases(host)


SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "detect_stack_use_after_return=0:abort_on_error=0"}
