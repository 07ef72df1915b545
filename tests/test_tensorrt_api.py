"""The lines of tensorrt_api.py in the real libraries, and that our code stays within them.

tensorrt's bindings want libraries of 2 GB, of which they touch nine functions when they are imported: a stub
with these, seen by one child process alone, lets their names and docstrings be read. `make test`
puts the bindings beside its environment.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorrt_api

FUNCTIONS = """
createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL
createNvOnnxParserRefitter_INTERNAL createNvOnnxParser_INTERNAL getBuilderPluginRegistry
getNvOnnxParserVersion getPluginRegistry initLibNvInferPlugins
"""


def test_tensorrt_rtx_has_every_line() -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    assert tensorrt_api.lacks(rtx, tensorrt_api.LINES + tensorrt_api.RTX_LINES) == []


def test_a_name_or_an_argument_that_is_not_there_is_seen() -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    wrong = [
        "ActivationType.MAGIC",
        "INetworkDefinition.add_magic(input)",
        "INetworkDefinition.add_cast(input)",
        "INetworkDefinition.add_cast(input, kind)",
        "IExecutionContext.execute_async_v2(bindings, stream_handle)",
    ]
    assert tensorrt_api.lacks(rtx, wrong) == wrong


@pytest.mark.parametrize("version", ["10.15", "10.16", "11.4"])
def test_tensorrt_has_every_line(version: str, tmp_path: Path) -> None:
    folder = Path(sys.prefix).parent / f"tensorrt-{version}"
    if not folder.is_dir():
        pytest.skip(f"the bindings of tensorrt {version} are not beside the environment")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    major = version.split(".")[0]
    source = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS.split())
    (tmp_path / "stub.c").write_text(source)
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        file = f"lib{name}.so.{major}"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", file, "stub.c"]
        subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run(
        [sys.executable, tensorrt_api.__file__, "tensorrt_bindings"],
        env={**os.environ, "PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, *lacking = done.stdout.split("\n")
    assert found.startswith(version) and [line for line in lacking if line] == []


def test_fakes_refuse_what_is_not_listed() -> None:
    pytest.importorskip("torch")
    fake: Any = importlib.import_module("fake_tensorrt")
    network, trt = fake.INetworkDefinition(), fake.library()
    x = network.add_input("image", trt.DataType.FLOAT, (-1, 3, -1, -1))
    with pytest.raises(AssertionError, match=r"ActivationType\.MISH is not in LINES"):
        network.add_activation(x, trt.ActivationType.MISH)
    with pytest.raises(TypeError, match="missing a required argument"):
        network.add_cast(x)
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'kind'"):
        network.add_cast(x, "HALF", kind="HALF")
    with pytest.raises(AssertionError, match=r"ICastLayer\.precision is not in LINES"):
        network.add_cast(x, "HALF").precision = "HALF"
