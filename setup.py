"""Builds pix2pix_fast._core by CMake (CMakeLists.txt is the only build description)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, ExecError, PlatformError

ROOT = Path(__file__).parent.resolve()


def cuda_choice() -> str:
    """P2P_CUDA from the environment: auto, on or off. Unset, the kernels for GPUs, which take a
    minute to build, are left out where there is no NVIDIA device (/dev/dxg is WSL's)."""
    devices = ("/dev/nvidiactl", "/dev/dxg")
    return os.environ.get("P2P_CUDA") or ("auto" if any(map(os.path.exists, devices)) else "off")


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        if sys.platform != "linux":  # affinity, cgroups, huge pages
            raise PlatformError(f"pix2pix_fast runs on Linux, this is {sys.platform}")
        for tool in ("cmake", "ninja"):
            if shutil.which(tool) is None:
                raise ExecError(
                    f"{tool} is not on the PATH: `pip install {tool}`, or leave out "
                    "--no-build-isolation and pip brings it"
                )
        import pybind11

        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        jobs = os.environ.get("P2P_JOBS") or str(len(os.sched_getaffinity(0)))
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DPYTHON_EXECUTABLE={sys.executable}",
            f"-DP2P_MODULE_DIR={module.parent}",
            f"-DP2P_CUDA={cuda_choice()}",
            # An earlier install's cache may name the ninja of a build environment that is gone.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
        ]  # fmt: skip
        if os.environ.get("P2P_CUDA_ARCHITECTURES"):
            configure.append(f"-DP2P_CUDA_ARCHITECTURES={os.environ['P2P_CUDA_ARCHITECTURES']}")
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(build), "--target", "_core", "-j", jobs], check=True)
        except subprocess.CalledProcessError as error:
            raise CompileError(
                "the C++ core does not build (it takes a C++20 compiler); cmake or the compiler says "
                "above what is wrong"
            ) from error


setup(ext_modules=[Extension("pix2pix_fast._core", [])], cmdclass={"build_ext": CMakeBuild})
