"""What nvcc makes of the CUDA kernels: bench/cuda_compile.py's checks on the oldest architecture, on an
H100's and on the newest, in one precision, and its committed results for all of them."""

from __future__ import annotations

import shutil

import cuda_compile
import pytest

ROWS = cuda_compile.read()


@pytest.mark.parametrize("arch", [75, 90, 120])
def test_nvcc_keeps_everything_in_registers(arch: int) -> None:
    if not shutil.which("nvcc"):
        pytest.skip("needs nvcc")
    if not cuda_compile.tool("nvdisasm"):
        pytest.skip("needs nvdisasm")
    rows = cuda_compile.compiled(arch, "f16")
    assert len(rows) == (15 if arch >= 90 else 11)
    assert [(row["kernel"], fault) for row in rows for fault in cuda_compile.faults(row)] == []


def test_every_architecture_was_checked() -> None:
    """The whole run takes five minutes: its results are committed. Run it again when a kernel changes."""
    archs = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121}
    kernels = {(row["arch"], row["dtype"]) for row in ROWS}
    assert kernels >= {(arch, dtype) for arch in archs for dtype in cuda_compile.DTYPES}
    assert [row for row in ROWS if cuda_compile.faults(row)] == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"spill_bytes": 8}, "spills"),
        ({"local": 1}, "local memory"),
        ({"stack_bytes": 16}, "local memory"),
        ({"tensor_core": 0}, "tensor-core"),
        ({"async_16_bytes": 0}, "asynchronous"),
        ({"registers": 255 * 3}, "registers"),
        ({"kernel": "conv_stream_64x32", "cluster_barriers": 1}, "cluster barriers"),
    ],
)
def test_a_bad_kernel_is_named(change: dict[str, int], word: str) -> None:
    row = next(row for row in ROWS if (row["arch"], row["dtype"]) == (90, "f16"))
    assert cuda_compile.faults(row) == []
    assert any(word in fault for fault in cuda_compile.faults(row | change))
