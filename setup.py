"""Builds fastwave/_cpu, and fastwave/_cuda where it is wanted, with CMake. Everything else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cmake
import ninja
import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Kept between builds, so that a second one compiles only what changed; one per Python, since they differ in headers.
BUILD = ROOT / "build" / sys.implementation.cache_tag
CMAKE = str(Path(cmake.CMAKE_BIN_DIR) / "cmake")
NINJA = str(Path(ninja.BIN_DIR) / "ninja")


def flag(name: str) -> bool | None:
    """An environment switch: None where unset, else whether it is on."""
    value = os.environ.get(name, "")
    return None if value == "" else value.lower() not in ("0", "off", "false", "no")


def gpu_present() -> bool:
    smi = shutil.which("nvidia-smi")
    return smi is not None and subprocess.run([smi, "-L"], capture_output=True).returncode == 0


def cuda_options() -> list[str]:
    """CMake options: the CUDA part is built when asked for, or where there are both a compiler and a GPU."""
    wanted = flag("FASTWAVE_CUDA")
    architectures = os.environ.get("FASTWAVE_CUDA_ARCHITECTURES")
    if wanted is None and shutil.which("nvcc") and gpu_present():
        wanted, architectures = True, architectures or "native"
    # -U: back to the default, whatever the last build in this directory said
    setting = f"-DFASTWAVE_CUDA_ARCHITECTURES={architectures}" if architectures else "-UFASTWAVE_CUDA_ARCHITECTURES"
    return [f"-DFASTWAVE_CUDA={'ON' if wanted else 'OFF'}", setting]


CUDA_OPTIONS = cuda_options()


class CMakeBuild(build_ext):
    def run(self):
        BUILD.mkdir(parents=True, exist_ok=True)
        configure = [
            *(CMAKE, "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={NINJA}"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DFASTWAVE_WERROR={'ON' if flag('FASTWAVE_WERROR') else 'OFF'}",
            *CUDA_OPTIONS,
        ]
        subprocess.run(configure, check=True)
        super().run()

    def build_extension(self, ext):
        target = ext.name.rpartition(".")[2]
        jobs = str(self.parallel or os.cpu_count() or 1)
        subprocess.run([CMAKE, "--build", str(BUILD), "--target", target, "--parallel", jobs], check=True)
        destination = Path(self.get_ext_fullpath(ext.name))
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(BUILD / self.get_ext_filename(target), destination)


extensions = [Extension("fastwave._cpu", sources=[])]
if "-DFASTWAVE_CUDA=ON" in CUDA_OPTIONS:
    extensions.append(Extension("fastwave._cuda", sources=[]))

setup(ext_modules=extensions, cmdclass={"build_ext": CMakeBuild})
