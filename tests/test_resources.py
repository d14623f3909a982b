"""What a call of the kernels takes from the process: memory, threads, and nothing of torch's settings."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastwave
from fastwave.models import ClariNetStudent, ClariNetStudentConfig

FOLDER = Path(__file__).parent

# A sampler of test_wavenet_sample.py, tiny; sample(n, threads) makes n samples of two utterances.
SAMPLER = """
import sys
sys.path.insert(0, sys.argv[1])
import test_wavenet_sample as t
import torch
torch.set_num_threads(1)
model, _, run = t.make_sampler(t.WaveNetConfig(**(t.TINY | t.HEADS["gaussian-repeat"])), sys.argv[2])
z, c = torch.randn(2, 1, 4096), torch.rand(2, 7, 1024)
def sample(n, threads):
    z_n, c_n = z[:, :, :n].contiguous(), c[:, :, : n // 4].contiguous()
    def call():
        return run(z_n, c_n, threads=threads)[0]
    return call
"""

COUNTER = """
#include <stdatomic.h>
#include <stddef.h>
#include <errno.h>
void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
static atomic_long count;
long allocations(void) { return count; }
void *malloc(size_t n) { ++count; return __libc_malloc(n); }
void *calloc(size_t n, size_t size) { ++count; return __libc_calloc(n, size); }
void *realloc(void *p, size_t n) { ++count; return __libc_realloc(p, n); }
void *memalign(size_t to, size_t n) { ++count; return __libc_memalign(to, n); }
void *aligned_alloc(size_t to, size_t n) { ++count; return __libc_memalign(to, n); }
int posix_memalign(void **p, size_t to, size_t n) { ++count; return (*p = __libc_memalign(to, n)) ? 0 : ENOMEM; }
"""

COUNT = """
import ctypes
allocations = ctypes.CDLL(None).allocations
allocations.restype = ctypes.c_long
def count(call):
    call()
    before = allocations()
    call()
    return allocations() - before
assert count(lambda: torch.empty(100_000)) > 0  # the counter counts
for threads in (1, 2, 4):
    few, many = (count(sample(n, threads)) for n in (256, 1024))
    print(threads, few, many)
    # with helpers it is chance which of them begins, and asks for its workspace; but 768 samples are 96 blocks
    assert many <= few + (32 if threads > 1 else 0)
"""


needs_compiler = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or shutil.which("cc") is None, reason="needs glibc and a C compiler"
)


def library(folder: Path, source: str) -> str:
    """C code to load before the process's own."""
    (folder / "library.c").write_text(source)
    built = str(folder / "library.so")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", built, str(folder / "library.c"), "-ldl"], check=True)
    return built


def run(code: str, *arguments: str, **environment: str) -> None:
    command = [sys.executable, "-c", SAMPLER + code, str(FOLDER), *arguments]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_nothing_is_allocated_inside_the_sample_loop(dtype, tmp_path):
    run(COUNT, dtype, LD_PRELOAD=library(tmp_path, COUNTER))


LIMIT = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
int threads_left = 1 << 30;
int pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*start)(void *), void *argument) {
    int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = dlsym(RTLD_NEXT, "pthread_create");
    return threads_left-- > 0 ? create(t, a, start, argument) : EAGAIN;
}
"""

FEWER = """
import ctypes
wanted = sample(64, 1)()
left = ctypes.c_int.in_dll(ctypes.CDLL(None), "threads_left")
for threads in (2, 32):
    for left.value in (0, 1, 5):
        assert torch.equal(sample(64, threads)(), wanted)
assert left.value < 0
"""


@needs_compiler
def test_fewer_threads_than_asked_for_will_do(tmp_path):
    run(FEWER, "float32", LD_PRELOAD=library(tmp_path, LIMIT))


FEWER_OF_A_STACK = """
import ctypes
import test_gated_stack as t
left = ctypes.c_int.in_dll(ctypes.CDLL(None), "threads_left")
spec = t.GatedStackSpec(**(t.SMALL | t.MANY_WEIGHTS | dict(dilations=(1,) * 6)))  # what it does depends on the threads
stack, _ = t.make_stack(spec)
weights = t.pack_gated_stack(stack.weights(), spec)
x, c, _ = t.make_inputs(spec, 700, batch=1)
wanted = t.gated_stack(x, weights, spec, c=c)
for left.value in (0, 1, 2):
    assert torch.equal(t.gated_stack(x, weights, spec, c=c, threads=4), wanted)
"""


@needs_compiler
def test_a_stack_on_fewer_threads_than_asked_for_has_room(tmp_path):
    run(FEWER_OF_A_STACK, "float32", LD_PRELOAD=library(tmp_path, LIMIT), MALLOC_PERTURB_="85")


def test_torch_keeps_its_number_of_threads():
    config = ClariNetStudentConfig(
        mel=fastwave.MelSpec(n_mels=6, hop_length=16, n_fft=64, win_length=64, sample_rate=8000, fmax=4000.0),
        flows=((1, 2),),
        upsample_scales=(16,),
        residual_channels=4,
        gate_channels=4,
        skip_channels=4,
    )
    before = torch.get_num_threads(), torch.get_num_interop_threads()
    fastwave.Vocoder(ClariNetStudent(config), threads=3).generate(torch.rand(2, 6, 4))
    assert (torch.get_num_threads(), torch.get_num_interop_threads()) == before
