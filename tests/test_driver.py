"""The engine without Python: tests/cpp/driver.cpp plain (no heap allocation in a warm call), under
the address and undefined-behaviour sanitizers, and under the thread sanitizer; each sanitizer first
has to catch a fault planted on purpose.

The sanitized builds hold the readable room alone (a build for a processor that CMake does not know
leaves the others out): the frame around the kernels is what they watch, and the kernels' own bounds
are watched by guard bytes and integer comparisons. P2P_EXHAUSTIVE=1 builds them with every room.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import native
import pytest
from native import RUNNABLE

ALL_ROOMS = bool(int(os.environ.get("P2P_EXHAUSTIVE", "0")))
Run = Callable[..., "subprocess.CompletedProcess[str]"]
EVERY_THREADING = [
    ("threads=1", "callers=4"),  # callers side by side, each with its own buffers
    ("threads=2", "callers=2"),  # callers taking turns with the pool
    ("threads=4", "callers=1", "dropout=1"),
]


@pytest.fixture(scope="session")
def driver(
    tmp_path_factory: pytest.TempPathFactory, emulated: Callable[[str], Path]
) -> Callable[[str], Run]:
    """`driver("address,undefined")` is a function that runs that build: run("key=value", ...)."""
    native.need_tools()
    # P2P_DRIVER_BUILDS keeps those of its own between runs
    kept = os.environ.get("P2P_DRIVER_BUILDS")
    base = Path(kept) if kept else tmp_path_factory.mktemp("driver")
    base.mkdir(parents=True, exist_ok=True)

    @functools.cache
    def build(sanitize: str) -> Path:
        if not sanitize and RUNNABLE == ["scalar", "avx2"]:  # no native room would be emulated
            return emulated("p2p_driver") / "p2p_driver"
        folder = base / (sanitize.replace(",", "-") or "plain")
        options = ["-DP2P_PYTHON=OFF", "-DP2P_DRIVER=ON", f"-DP2P_SANITIZE={sanitize}"]
        if sanitize:
            if not sanitizer_links(sanitize, base):
                pytest.skip(f"this compiler has no runtime for -fsanitize={sanitize}")
            if not ALL_ROOMS:
                options += ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=portable"]
        native.build(folder, "p2p_driver", *options)
        return folder / "p2p_driver"

    def runner(sanitize: str) -> Run:
        program = build(sanitize)

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            settings = {"UBSAN_OPTIONS": "halt_on_error=1", "TSAN_OPTIONS": "halt_on_error=1"}
            return subprocess.run(
                [program, *arguments],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
                env={**os.environ, "P2P_ISA": "", **settings},
            )

        return run

    return runner


def sanitizer_links(sanitize: str, folder: Path) -> bool:
    source = folder / "empty.cpp"
    source.write_text("int main() {}\n")
    command = ["c++", f"-fsanitize={sanitize}", str(source), "-o", str(folder / "empty")]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def passed(run: Run, *arguments: str) -> str:
    done = run(*arguments)
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stdout + done.stderr
    return done.stdout


def test_a_warm_call_allocates_nothing(driver: Callable[[str], Run]) -> None:
    run = driver("")
    shown = set()
    for isa in RUNNABLE:
        for precision in ["f32", "bf16"] if isa in ("avx512bf16", "amx") else ["f32"]:
            for threading in EVERY_THREADING:
                text = passed(run, f"isa={isa}", f"precision={precision}", "calls=5", *threading)
                first, *lines = text.splitlines()
                assert first.startswith(f"room={isa} precision={precision} ")
                if "counts=1" not in first:
                    pytest.skip("this C library cannot be counted")
                made = re.findall(r"size=\S+ allocations=(\d+)", text)
                assert made == ["0"] * 4, f"{isa} {precision} {threading}: {lines}"
                shown.add(isa)
    assert shown == set(RUNNABLE)


def test_the_count_can_fail(driver: Callable[[str], Run]) -> None:
    text = passed(driver(""), f"isa={RUNNABLE[-1]}", "threads=2", "callers=0", "plant=allocation")
    assert all(int(made) > 0 for made in re.findall(r"allocations=(\d+)", text))


@pytest.mark.parametrize("threads", [1, 4])
def test_every_allocation_may_fail(driver: Callable[[str], Run], threads: int) -> None:
    """An error each time, no crash; pictures right and nothing counted twice afterwards."""
    run = driver("")
    if "counts=1" not in passed(run, "sizes=1x1"):
        pytest.skip("this C library's allocations cannot be made to fail")
    text = passed(run, "fail=1", f"threads={threads}")
    loading, calling = map(int, re.findall(r"\d+", text))
    assert loading > 50 and calling > 50


QUOTAS = {  # /proc/self/cgroup; files below /sys/fs/cgroup; CPUs
    "no groups": ("", {}, 0),
    "a container, v2": ("0::/\n", {"cpu.max": "150000 100000"}, 2),
    "not limited, v2": ("0::/\n", {"cpu.max": "max 100000"}, 0),
    "a service, v2": ("0::/system.slice/a.service\n", {"system.slice/a.service/cpu.max": "50000 100000"}, 1),
    "the slice is narrower": (
        "0::/b.slice/a.service\n",
        {"b.slice/a.service/cpu.max": "800000 100000", "b.slice/cpu.max": "300000 100000"},
        3,
    ),
    "a container, v1": (
        "9:name=systemd:/\n4:cpu,cpuacct:/docker/1a2b\n0::/\n",
        {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"},
        4,
    ),
    "not limited, v1": ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 0),
    "no group of cpu": ("2:cpuset:/x\n", {"cpu/x/cpu.cfs_quota_us": "1", "cpu/x/cpu.cfs_period_us": "1"}, 0),
    "nonsense": ("\n:\nx", {"cpu.max": "much"}, 0),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_quotas(driver: Callable[[str], Run], tmp_path: Path, case: str) -> None:
    groups, files, cpus = QUOTAS[case]
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert passed(driver(""), f"quota={tmp_path}") == f"{cpus}\nok\n"


def test_addresses_and_undefined_behaviour(driver: Callable[[str], Run]) -> None:
    run = driver("address,undefined")
    planted = run("plant=overflow")
    assert planted.returncode != 0
    assert "heap-buffer-overflow" in planted.stderr and "image.cpp" in planted.stderr
    planted = run("plant=undefined")
    assert planted.returncode != 0 and "signed integer overflow" in planted.stderr
    for threading in EVERY_THREADING:
        passed(run, *threading)
    passed(run, "depth=2", "ngf=5", "sizes=1x1,3x2,4x4,9x17")
    passed(run, "depth=6", "ngf=2", "sizes=64x64,65x1")


def test_races(driver: Callable[[str], Run]) -> None:
    run = driver("thread")
    planted = run("plant=race", "callers=2", "threads=1")
    assert planted.returncode != 0 and "data race" in planted.stderr
    for threading in EVERY_THREADING:
        passed(run, *threading, "sizes=32x32,37x50")
