"""Builds the extension under a sanitizer, and runs the tests of the ops on it: address and undefined, then thread.

The sanitized module stands in for fastwave._cpu, so that the package itself is the one of the source tree.
"""

import os
import subprocess
import sys
from pathlib import Path

import cmake
import ninja
import pybind11

ROOT = Path(__file__).resolve().parent.parent
CMAKE = str(Path(cmake.CMAKE_BIN_DIR) / "cmake")
COMPILER = os.environ.get("CXX", "c++")

# A few minutes: of gated_stack's shapes those with a path of their own, and no sizes of real models. The sanitizers'
# operator new ends the process where there is no memory, so what else would follow cannot be tested.
SHAPES = "tiny or lanes+1 or k5 or no-skip or centred or separable or interpolated or inverse-output or coupling"
ADDRESS = (
    f"(not test_gated_stack[ and not in_pieces or {SHAPES})"
    " and not full_size and not opcheck and not vocoder_error and not memory"
)
OPS = [f"tests/test_{op}.py" for op in ("gated_stack", "wavenet_sample", "upsample")]
RUNS = {
    # detect_leaks=0: Python and torch keep what they allocate until the process ends
    "address,undefined": {
        "library": "libasan.so",
        "environment": {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
        "tests": [*OPS, "tests/test_errors.py", "tests/test_fuzz.py", "-k", ADDRESS],
    },
    # Python and torch are not compiled for this sanitizer, which sees this module's accesses alone; and torch runs on
    # one thread (tests/conftest.py). So there is nothing to suppress.
    "thread": {
        "library": "libtsan.so",
        "environment": {"TSAN_OPTIONS": "halt_on_error=1"},
        "tests": [*OPS, "-k", "threads or pieces_and_batches"],
    },
}
# What pytest runs in: the module is put in its place before anybody imports it. Its output is captured in Python, or
# a report, which goes to the file descriptor, would be lost with the process.
START = """
import sys
sys.path[:0] = sys.argv[1:3]
import _cpu
sys.modules["fastwave._cpu"] = _cpu
import pytest
sys.exit(pytest.main(["-q", "--capture=sys", "-p", "no:cacheprovider", *sys.argv[3:]]))
"""


def build(sanitizer: str) -> Path:
    """Compiles fastwave/_cpu with -fsanitize=...; returns its folder."""
    folder = ROOT / "build" / f"sanitize-{sanitizer.partition(',')[0]}"
    configure = [
        *(CMAKE, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", f"-DFASTWAVE_SANITIZE={sanitizer}"),
        f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR) / 'ninja'}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([CMAKE, "--build", str(folder), "--target", "_cpu"], check=True)
    return folder


def library(name: str) -> str:
    return subprocess.run(
        [COMPILER, f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()


def main() -> int:
    for sanitizer in sys.argv[1:] or RUNS:  # by name, or all
        run = RUNS[sanitizer]
        folder = build(sanitizer)
        # Python is not linked with the sanitizer, which must be loaded first, with the C++ library that it hooks into
        preload = f"{library(run['library'])} {library('libstdc++.so.6')}"
        environment = os.environ | run["environment"] | {"LD_PRELOAD": preload, "FASTWAVE_SANITIZE": sanitizer}
        command = [sys.executable, "-c", START, str(folder), str(ROOT), *run["tests"]]
        print(f"-fsanitize={sanitizer}: {' '.join(run['tests'])}", flush=True)
        status = subprocess.run(command, cwd=ROOT, env=environment).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
