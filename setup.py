"""Builds pix2pix_fast._core by CMake (CMakeLists.txt is the only build description)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
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
            # An earlier install's cache may name the ninja of a build environment that is gone.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--target", "_core", "-j", jobs], check=True)


setup(ext_modules=[Extension("pix2pix_fast._core", [])], cmdclass={"build_ext": CMakeBuild})
