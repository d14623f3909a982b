"""The built extension: which instruction set runs, and that no other one's code can run in its place."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastwave import _cpu

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / sys.implementation.cache_tag

x86_only = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 only")


def needs(tool: str):
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


@pytest.fixture
def restore_isa():
    before = _cpu.isa()
    yield
    _cpu.set_isa(before)


def isa_in_a_new_process(forced: str | None) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "FASTWAVE_ISA"}
    if forced is not None:
        environment["FASTWAVE_ISA"] = forced
    # The extension alone: it must load without the package, and importing torch takes seconds.
    code = f"import sys; sys.path.insert(0, {str(Path(_cpu.__file__).parent)!r}); import _cpu; print(_cpu.isa())"
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_isas_begin_with_what_every_machine_has():
    assert _cpu.isas()[0] == ("neon" if platform.machine() in ("aarch64", "arm64") else "baseline")


@pytest.mark.parametrize("isa", _cpu.isas())
def test_set_isa(isa, restore_isa):
    _cpu.set_isa(isa)
    assert _cpu.isa() == isa


def test_set_isa_rejects_an_unknown_name(restore_isa):
    before = _cpu.isa()
    expected = f"isa must be one of {', '.join(_cpu.isas())} on this machine, got mmx"
    with pytest.raises(ValueError, match=re.escape(expected)):
        _cpu.set_isa("mmx")
    assert _cpu.isa() == before


@pytest.mark.parametrize("isa", _cpu.isas())
def test_environment_forces_an_isa(isa):
    assert isa_in_a_new_process(isa).stdout.strip() == isa


@pytest.mark.parametrize("unset", [None, ""])
def test_the_best_isa_is_the_default(unset):
    assert isa_in_a_new_process(unset).stdout.strip() == _cpu.isas()[-1]


def test_environment_with_an_unknown_isa():
    result = isa_in_a_new_process("mmx")
    assert result.returncode != 0
    names = ", ".join(_cpu.isas())
    assert f"ValueError: FASTWAVE_ISA must be one of {names} on this machine, got mmx" in result.stderr


# ---- the code of one instruction set stays in its own namespace ------------------------------------------------------


@pytest.fixture
def check_symbols():
    script = ROOT / "tools" / "check_symbols.py"
    if not script.exists():
        pytest.skip("needs the source tree")
    spec = importlib.util.spec_from_file_location("check_symbols", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs("nm")
@pytest.mark.parametrize("isa", _cpu.isas())
def test_kernels_define_no_weak_symbol_of_others(isa, check_symbols):
    objects = sorted(str(path) for path in BUILD.glob(f"CMakeFiles/kernels_{isa}.dir/**/*.o"))
    if not objects:
        pytest.skip("no build directory here; the build itself has run this check")
    assert check_symbols.foreign_symbols("nm", isa, objects) == []


@needs("nm")
@needs("c++")
def test_the_symbol_check_finds_a_weak_symbol(check_symbols, tmp_path):
    source = tmp_path / "kernel.cpp"
    source.write_text(
        "namespace fastwave { template <class T> [[gnu::noinline]] T shared(T x) { return x + x; } }\n"
        "namespace fastwave::avx2 {\n"
        "template <class T> [[gnu::noinline]] T own(T x) { return x + x; }\n"
        "struct Own { [[gnu::noinline]] int get() const { static int n = 0; return ++n; } };\n"
        "float kernel(float x) { return own(x) + shared(x) + Own().get(); }\n"
        "}\n"
    )
    built = tmp_path / "kernel.o"
    subprocess.run(["c++", "-c", "-fPIC", str(source), "-o", str(built)], check=True)
    assert check_symbols.foreign_symbols("nm", "avx2", [str(built)]) == ["float fastwave::shared<float>(float)"]


@x86_only
@needs("objdump")
def test_no_avx_instruction_outside_its_kernels():
    """Importing, and everything up to the choice of kernels, must run on a CPU without AVX."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", _cpu.__file__], check=True, capture_output=True, text=True
    ).stdout
    inside, outside = 0, set()
    function = ""
    for line in listing.splitlines():
        if header := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            function = header[1]
        elif re.match(r"\s+[0-9a-f]+:\tv", line):  # every AVX mnemonic begins with v, and no other that compilers emit
            if re.search(r"8fastwave(4avx2|6avx512|10avx512vnni)", function):
                inside += 1
            else:
                outside.add(function)
    assert not outside
    assert inside > 0


# ---- the CUDA part ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "pattern", "where"),
    [
        ("launches", r"<<<|cudaLaunch\w*Kernel", "launch.cuh"),
        ("assembly", r"\basm\b", "ptx.cuh"),
        ("shared memory", r"__shared__", "ptx.cuh"),
    ],
)
def test_what_has_one_place_in_the_cuda_sources(what, pattern, where):
    """So that an emulated device can take that place."""
    folder = ROOT / "csrc" / "cuda"
    if not folder.exists():
        pytest.skip("needs the source tree")
    assert [path.name for path in folder.iterdir() if re.search(pattern, path.read_text())] == [where]


@pytest.fixture
def cuda():
    if importlib.util.find_spec("fastwave._cuda") is None:
        pytest.skip("built without CUDA")
    from fastwave import _cuda

    return _cuda


def test_cuda_devices(cuda):
    for device in cuda.devices():
        assert device["name"] and device["sm"] >= 75 and device["sm_count"] > 0 and device["bytes"] > 0


def test_cuda_scale_rejects_a_cpu_tensor(cuda):
    import torch

    x = torch.ones(3)
    expected = "x must be a contiguous float32 tensor of shape (any,) on cuda, got float32 (3,) on cpu"
    with pytest.raises(ValueError, match=re.escape(expected)):
        cuda.scale(x, torch.empty(3), 2.0, 1.0, stream=0)


@pytest.mark.parametrize("size", [0, 1, 255, 257, 100_000])
def test_cuda_scale(cuda, size):
    import torch

    if not cuda.devices() or not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.arange(size, dtype=torch.float32, device="cuda")
    y = torch.empty_like(x)
    cuda.scale(x, y, 2.0, 1.0, stream=torch.cuda.current_stream().cuda_stream)
    torch.testing.assert_close(y, 2 * x + 1)
