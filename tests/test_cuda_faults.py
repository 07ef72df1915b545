"""Does the shim of cuda_host/ see what it is for? Faults planted in the kernels must be caught, each by
its name; AddressSanitizer and UndefinedBehaviorSanitizer must find the kernels silent, and a planted
fault not."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cuda_shim import COMMON, HOST, KERNELS, compile_all, edited, link
from test_cuda_kernels import Shape, check_integers
from test_cuda_stream import Stream
from test_cuda_stream import check as check_stream


class Fault(NamedTuple):
    """A line of layer.cuh or stream.cuh, what becomes of it, and what the shim must say; "" where only
    the numbers can be wrong."""

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
        "image = row < rows.rows ? block_x() / a.tiles_per_image : a.n;", "image = block_x() / a.tiles_per_image;",
        "write outside the buffers|another block writes|another thread of the block writes"),
    "weights asked for outside": Fault(
        "column < a.columns && valid;", "valid;",
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
        "    sums.multiply([&]", "    if (thread_index() % 32 < 16) sums.multiply([&]",
        "a warp-wide instruction that some lanes never reach"),
    "a counter that stays": Fault(
        "    if (last) store(counter, 0u);\n", "", "a counter is not zero after the run"),
    "the norm's shift in the padding": Fault(
        "        if (!(inside >> i & 1)) continue;\n", "", ""),
    "a fragment's halves exchanged": Fault(
        "r, b[n][2 * half], b[n][2 * half + 1]);", "r, b[n][2 * half + 1], b[n][2 * half]);", ""),
}  # fmt: skip
# The same for lines of stream.cuh.
STREAM_FAULTS = {
    "no cluster barrier before the inbox is read": Fault(
        "  cluster_arrive();\n  cluster_wait();  // the inbox is full", "  // the inbox is full",
        "race: .*another block of the cluster|a block ends while another|of a block that has ended"),
    "no wait at the last cluster barrier": Fault(
        "  cluster_wait();  // the inbox is full", "  // the inbox is full",
        "race: .*another block of the cluster|never waited"),
    "no cluster barrier before the inboxes are written": Fault(
        "  cluster_wait();  // all blocks", "  // all blocks", "may not have begun|arrives twice"),
    "a wait without an arrival": Fault(
        "  grid_release();\n  cluster_arrive();", "  grid_release();", "where it has not arrived"),
    "a block that leaves early": Fault(
        "  cluster_arrive();\n  cluster_wait();  // the inbox is full",
        "  if (rank == 0) return;\n  cluster_arrive();\n  cluster_wait();  // the inbox is full",
        "a block ends while another|of a block that has ended"),
    "half of a block at a cluster barrier": Fault(
        "  cluster_arrive();\n  cluster_wait();  // the inbox is full",
        "  if (thread_index() < 64) sync_block();\n  cluster_arrive();\n  cluster_wait();  // the inbox is full",
        "a barrier that some threads never reach"),
    "sums sent to a rank that is none": Fault(
        "column % columns, column / columns, first", "column % columns, column / columns + 1, first",
        "a block outside the cluster"),
    "sums sent to the wrong rank": Fault(
        "column % columns, column / columns, first", "column % columns, a.cluster - 1 - column / columns, first", ""),
    "all ranks in one slot": Fault(
        "inbox + rank * a.phases * rows * columns;", "inbox;", "race: writes a word of another block's shared memory"),
    "sums sent behind the shared memory": Fault(
        "(phase * rows + row) * columns + column % columns,",
        "(phase * rows + row) * columns + column % columns + 8 * a.cluster * a.phases * rows * columns,",
        "access outside shared memory of a block of the cluster"),
    "the rank of the grid's other side": Fault(
        "const int32_t rank = cluster_rank();", "const int32_t rank = a.cluster - 1 - cluster_rank();", ""),
    "two ranks with one share": Fault(
        "const Share share = share_of(a, rank);", "const Share share = share_of(a, rank / 2);", ""),
    "pixels read before grid_wait": Fault(
        "  grid_wait();  // nothing but weights was read, and nothing written, before this line\n"
        "  load_patch<kType, kKind>(a, share, patch);\n",
        "  load_patch<kType, kKind>(a, share, patch);\n  grid_wait();\n",
        "read before grid_wait of what another kernel may still write"),
    "no grid_wait": Fault("  grid_wait();  // nothing", "  // nothing", "before grid_wait"),
    "no wait for a copy": Fault(
        "    copy_wait<kStreamStages - 1>();\n", "", "race: .*word of shared memory|a copy that nobody waited for"),
    "a wait for one copy too few": Fault(
        "    copy_wait<kStreamStages - 1>();\n", "    copy_wait<kStreamStages>();\n",
        "race: .*word of shared memory|a copy that nobody waited for"),
    "no barrier in front of a stage": Fault(
        "    sync_block();  // the stage,", "    // the stage,", "race: .*word of shared memory"),
    "a ring filled while it is read": Fault(
        "    if (asked.phase < a.phases) sync_block();  // nobody", "    // nobody", "race: .*word of shared memory"),
    "weights of another rank's channels": Fault(
        "share.begin + mine, mine < share.count);", "share.begin + mine, true);", "read outside the buffers"),
    "pixels outside the channels": Fault(
        "any = mine < share.count;", "any = true;", "read outside the buffers"),
    "no zeros behind the map": Fault(
        "  if (row0 == 0) shared_store16(patch + patch_offset<kKind>(a.planes * pixels, piece), {});\n", "", ""),
    "a write outside the map": Fault(
        "    if (channel >= a.co_stored) continue;\n", "", "write outside the buffers|another block writes"),
    "no barrier in front of the norm": Fault(
        "  sync_block();\n  if (a.gamma) normalise", "  if (a.gamma) normalise", "race: .*word of shared memory"),
    "no barrier behind the norm": Fault(
        "  }\n  sync_block();\n}\n", "  }\n}\n", "race: .*word of shared memory"),
}  # fmt: skip
# And of patch.cuh.
PATCH_FAULTS = {
    "no barrier in front of a slice": Fault(
        "      sync_block();  // slice s and", "      // slice s and", "race: .*word of shared memory"),
    "a wait for one copy too few": Fault(
        "copy_wait<shape.stages - 2>();", "copy_wait<shape.stages - 1>();", "race: .*word of shared memory"),
    "one patch for two": Fault(
        "pixels.put(a, patches + (unit + 1 - begin) % 2 * kPatchBytes);", "pixels.put(a, patches);",
        "race: .*word of shared memory"),
    "pixels read before grid_wait": Fault(
        "  sums.clear();\n  grid_wait();", "  sums.clear();\n  pixels.fetch(a, begin);\n  grid_wait();",
        "read before grid_wait of what another kernel may still write"),
    "a patch beyond the map": Fault(
        "if (pixel < kPixels && (uint32_t)yy < (uint32_t)a.hi &&", "if (pixel < kPixels && yy >= 0 &&",
        "read outside the buffers"),
    "a patch behind its end": Fault(
        "if (pixel < kPixels) shared_store16(", "shared_store16(", "race: .*word of shared memory"),
    "channels beyond the last": Fault(
        "if (at < a.chunks_per_tap && (inside", "if ((inside", "read outside the buffers"),
    "the norm's shift in the padding": Fault(
        "raw[i] = prepared<kType>(a, s, image, yy, xx, c, raw[i], drops(a, s));\n    });",
        "raw[i] = prepared<kType>(a, s, image, yy, xx, c, raw[i], drops(a, s));\n    });\n"
        "    if (!(inside & 1)) raw[0] = prepared<kType>(a, a.src[0], image, 0, 0, 0, raw[0], false);",
        ""),
    "taps of another parity": Fault(
        "x = x0 + unit % kParities<kKind> % 2;", "x = x0;", ""),
    "taps that meet only padding": Fault(
        "if (th >= live.h1) enter(live, unit + 1);", "if (th >= kTapStep<kKind> * 2) enter(live, unit + 1);", ""),
    "rows of a cut square": Fault(
        "row / tile.across * Pixels::kSide + row % tile.across", "row / 8 * Pixels::kSide + row % 8", ""),
}  # fmt: skip
# Squares that are cut, two images, three planes in two splits, a skip; dead taps.
PATCH_CASES = [("deconv", Shape(2, 9, 11, 120, 41, 70, splits=2)), ("conv", Shape(1, 9, 10, 70, 0, 9)),
               ("conv", Shape(1, 1, 9, 8, 0, 8)), ("deconv", Shape(1, 1, 9, 8, 0, 8))]  # fmt: skip
# Several planes, a ring that is used again, two images, cut columns, a skip; kernels' kind and tile.
STREAM_CASES = [
    ("conv", "16x32", Stream(4, 1, Shape(2, 2, 3, 300, 41, 20))),
    ("deconv", "64x32", Stream(2, 1, Shape(1, 5, 4, 72, 0, 35))),
]
# Split, several tiles, two images, statistics, two sources, cut columns: every line above is run.
CASES = [Shape(2, 9, 9, 33, 24, 20, splits=3), Shape(2, 3, 3, 40, 0, 41, splits=2)]
TRIED = [("conv", "64x64"), ("deconv", "64x32"), ("conv", "16x32")]


def only_tried(sources: Path, dtype: str) -> Path:
    """layer_{dtype}.cu in an edited folder with TRIED's kernels alone (f32: its one tile), which
    compile in a third of the time."""
    name = f"layer_kernel<DType::k{dtype.upper()}, Tile::k"
    chosen = sources / f"layer_{dtype}.cu"
    others = f"tile == Tile::k64x32 ? &{name}64x32, Kind::kDeconv> : &{name}16x32, Kind::kConv>"
    forms = ("patch", "stream") if dtype == "f16" else ()
    chosen.write_text(
        f"""#include "layer.cuh"
namespace p2p::cuda {{
{"".join(f"LayerKernel {form}_{dtype}(Kind, Tile) {{ return nullptr; }}" for form in forms)}
LayerKernel layer_{dtype}(Kind, Tile {"tile" if dtype == "f16" else ""}) {{
  return {"tile != Tile::k64x64 ? " + others + " : " if dtype == "f16" else ""}&{name}64x64, Kind::kConv>;
}}
}}
"""
    )
    return chosen


def only(sources: Path, file: str) -> Path:
    """The same with the f16 kernels of STREAM_CASES or PATCH_CASES alone: those of `file`."""
    form = file.removesuffix(".cuh")
    chosen = sources / "layer_f16.cu"
    name = f"{form}_kernel<DType::kF16, Tile::k"
    kernel = (
        f"kind == Kind::kConv ? &{name}16x32, Kind::kConv> : &{name}64x32, Kind::kDeconv>"
        if form == "stream"
        else f"kind == Kind::kConv ? &{name}64x64, Kind::kConv> : &{name}64x64, Kind::kDeconv>"
    )
    others = {"layer", "patch", "stream"} - {form}
    chosen.write_text(
        f"""#include "{file}"
namespace p2p::cuda {{
{"".join(f"LayerKernel {other}_f16(Kind, Tile) {{ return nullptr; }}" for other in sorted(others))}
LayerKernel {form}_f16(Kind kind, Tile) {{ return {kernel}; }}
}}
"""
    )
    return chosen


@pytest.fixture(scope="module")
def broken(
    cuda_host: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ctypes.CDLL]:
    """A library for each fault: layer_f16.cu with it, the rest as it is; two compilers at a time."""
    folder = tmp_path_factory.mktemp("faults")
    sound = {path.stem: path for path in Path(str(cuda_host._name)).parent.glob("*.o")}
    planted = [("layer.cuh", *item) for item in FAULTS.items()]
    planted += [("stream.cuh", *item) for item in STREAM_FAULTS.items()]
    planted += [("patch.cuh", *item) for item in PATCH_FAULTS.items()]

    def make(index: int) -> ctypes.CDLL:
        file, _, fault = planted[index]

        def edit(text: str) -> str:
            assert text.count(fault.before) == 1, fault
            return text.replace(fault.before, fault.after)

        place = folder / str(index)
        sources = edited(place, edit, file)
        chosen = only_tried(sources, "f16") if file == "layer.cuh" else only(sources, file)
        objects = compile_all([chosen], place / "objects", "-O1", cuda=sources)
        return link(list((sound | objects).values()), place / "host.so")

    with ThreadPoolExecutor(2) as pool:
        made = pool.map(make, range(len(planted)))
        return {f"{file}: {name}": library for (file, name, _), library in zip(planted, made, strict=True)}


def run_cases(host: ctypes.CDLL) -> None:
    for shape in CASES:
        for kind, tile in TRIED:
            check_integers(host, kind, tile, "f16", shape)


def run_stream_cases(host: ctypes.CDLL) -> None:
    for kind, tile, stream in STREAM_CASES:
        check_stream(host, kind, tile, "f16", stream)


def run_patch_cases(host: ctypes.CDLL) -> None:
    for kind, shape in PATCH_CASES:
        check_integers(host, kind, "64x64 patch", "f16", shape)


def test_the_cases_pass_without_a_fault(cuda_host: Any) -> None:
    run_cases(cuda_host)
    run_stream_cases(cuda_host)
    run_patch_cases(cuda_host)


def caught(fault: Fault, run: Callable[[ctypes.CDLL], None], host: ctypes.CDLL) -> None:
    if fault.says:
        with pytest.raises(RuntimeError, match=fault.says):
            run(host)
    else:
        with pytest.raises(AssertionError):
            run(host)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name: str, broken: dict[str, ctypes.CDLL]) -> None:
    caught(FAULTS[name], run_cases, broken[f"layer.cuh: {name}"])


@pytest.mark.parametrize("name", STREAM_FAULTS)
def test_a_fault_planted_in_a_stream_kernel_is_caught(
    name: str, broken: dict[str, ctypes.CDLL]
) -> None:
    caught(STREAM_FAULTS[name], run_stream_cases, broken[f"stream.cuh: {name}"])


@pytest.mark.parametrize("name", PATCH_FAULTS)
def test_a_fault_planted_in_a_patch_kernel_is_caught(
    name: str, broken: dict[str, ctypes.CDLL]
) -> None:
    caught(PATCH_FAULTS[name], run_patch_cases, broken[f"patch.cuh: {name}"])


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
    assert done.stdout == "ran 70 kernels\n"


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
