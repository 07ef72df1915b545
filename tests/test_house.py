"""The house's own rules: what a room may include and export, the stub against the module, and who may
import what."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import native
import pytest
from tiny import child

import pix2pix_fast
from pix2pix_fast import _core

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
ROOMS = ("scalar", "avx2", "avx512", "avx512bf16", "amx")
PACKAGE = ROOT / "pix2pix_fast"

needs_sources = pytest.mark.skipif(not CSRC.is_dir(), reason="no sources beside the tests")


@needs_sources
def test_rooms_include_nothing_that_could_leak() -> None:
    allowed = re.compile(
        r"<(immintrin|stddef|stdint)\.h>|\"\.\./kernels\.h\"|\"\.\./body/\w+\.inl\"|"
        r"\"(vec\.h|common\.inl|tiles\.inl)\"|\"\.\./avx512(bf16)?/vec\.h\""
    )
    for room in ROOMS:
        for path in (CSRC / "cpu" / room).iterdir():
            for found in re.findall(r'#include\s+(<[^>]+>|"[^"]+")', path.read_text()):
                assert allowed.fullmatch(found), f"{path.name} includes {found}"
    for path in (CSRC / "cpu" / "body").iterdir():
        assert "#include" not in path.read_text(), f"{path.name} is included inside a namespace"


@needs_sources
def test_room_flags_stay_in_their_rooms() -> None:
    text = (ROOT / "CMakeLists.txt").read_text()
    for line in text.splitlines():
        if "-mavx" in line or "-mamx" in line:
            room = "p2p_room(" in line or re.match(r"\s*set\((avx512|bf16|amx) ", line)
            assert room or "check_cxx_compiler_flag" in line, line
    assert "INTERPROCEDURAL_OPTIMIZATION" not in text and "-flto" not in text


@needs_sources
def test_a_source_distribution_can_be_built(tmp_path: Path) -> None:
    """It holds what CMake reads."""
    pytest.importorskip("setuptools")
    names = ["CMakeLists.txt", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"]
    for name in names:
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("csrc", "pix2pix_fast", "train"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", "dist"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as tar:
        inside = {name.partition("/")[2] for name in tar.getnames()}
    assert inside >= {"CMakeLists.txt", "setup.py", "pyproject.toml"}
    assert inside >= {str(path.relative_to(ROOT)) for path in CSRC.rglob("*.*")}


def failed_build(folder: Path, **environment: str) -> str:
    """The last line of a build that fails."""
    pytest.importorskip("setuptools.errors")
    done = subprocess.run(
        [sys.executable, ROOT / "setup.py", "-q", "build_ext", "-t", "temp", "-b", "lib"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@needs_sources
def test_a_build_without_its_tools_names_them(tmp_path: Path) -> None:
    line = failed_build(tmp_path, PATH=str(tmp_path))
    assert line.startswith("error: cmake is not on the PATH: `pip install cmake`")


@needs_sources
def test_a_build_without_a_compiler_names_it(tmp_path: Path) -> None:
    pytest.importorskip("pybind11")
    native.need_tools()
    line = failed_build(tmp_path, PATH=native.PATH, CXX=str(tmp_path / "no compiler"))
    assert line.startswith("error: the C++ core does not build (it takes a C++20 compiler")


def test_rooms_export_only_their_tables() -> None:
    """Weak symbols of a room would be shared with code that every CPU runs."""
    try:
        done = subprocess.run(
            ["nm", "-C", "--defined-only", str(_core.__file__)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("nm is not installed")
    lines = done.stdout.splitlines()
    if not any("p2p::cpu::avx2::" in line for line in lines):
        pytest.skip("the module has no symbol table or no such rooms")
    for line in lines:
        kind, _, name = line[17:].partition(" ")
        room = re.match(r"p2p::cpu::(scalar|avx2|avx512|avx512bf16|amx)::", name)
        assert not (room and kind in "WVuw"), f"weak symbol {name}"


def test_the_stub_names_what_the_module_has() -> None:
    tree = ast.parse((Path(pix2pix_fast.__file__).parent / "_core.pyi").read_text())
    stub = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    module = {n for n in dir(_core) if not n.startswith("_")}
    assert set(stub) == module
    for name, node in stub.items():
        if isinstance(node, ast.FunctionDef):
            check_signature(node, getattr(_core, name).__doc__)
            continue
        methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
        assert set(methods) - {"__init__"} == {n for n in dir(_core.Engine) if n[0] != "_"}
        for method, function in methods.items():
            check_signature(function, getattr(_core.Engine, method).__doc__)


def check_signature(node: ast.FunctionDef, doc: str | None) -> None:
    """pybind11 writes the signature into the first line of the docstring."""
    names = [a.arg for a in node.args.args + node.args.kwonlyargs if a.arg != "self"]
    signature = (doc or "").split("\n")[0]
    for name in names:
        assert re.search(rf"\b{name}: ", signature), f"{node.name}: {name} is not in {signature}"
    shown = [n for n in re.findall(r"(\w+): ", signature) if n != "self"]
    assert len(shown) >= len(names)


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys, pix2pix_fast; "
        "print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    loaded = set(child(code).split())
    heavy = {"torch", "PIL", "click", "rich", "onnx", "av", "starlette", "safetensors", "tensorrt"}
    assert not loaded & heavy


# One owner per foreign library (house rule 9); the loader of .pth files owns torch.
OWNERS = {
    "torch": {"torchfile.py", "engine.py", "images.py", "tensorrt.py", "tensorrt_run.py"},
    "onnx": {"onnx_export.py"},
    "click": {"cli"},  # the folder
    "rich": {"cli", "live.py"},
    "av": {"video_in.py", "video_out.py", "video_frames.py", "live.py"},
    "starlette": {"server.py", "guard.py", "protocol.py"},
    "uvicorn": {"server.py"},
    "pybind11": set(),
}


@needs_sources
def test_foreign_libraries_have_one_owner() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                owners = OWNERS.get(name.split(".")[0])
                at_home = owners is None or bool(owners & {path.name, path.parent.name})
                assert at_home, f"{path.name} imports {name}"


@needs_sources
def test_only_the_door_knows_pybind11() -> None:
    for path in CSRC.rglob("*"):
        if path.is_file() and path.name != "bindings.cpp":
            assert "pybind11" not in path.read_text(), path
