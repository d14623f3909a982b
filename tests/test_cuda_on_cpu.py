"""The emulated CUDA device itself (tests/cuda_on_cpu): its instructions, and what must be an error there."""

import re

import emulated_cuda
import pytest
import torch
from torch.utils.dlpack import to_dlpack

pytestmark = pytest.mark.skipif(emulated_cuda.cuda is None, reason="not built: make cuda_on_cpu")


@pytest.fixture(params=[0, 1, 2], ids="seed{}".format)
def emulator(request):
    emulated_cuda.emulator.configure(seed=request.param)
    yield emulated_cuda.emulator
    emulated_cuda.emulator.configure()


@pytest.mark.parametrize("name", ["barrier", "vote", "shuffle", "poison", "mma", "mailbox", "cluster", "patience"])
def test_instruction(emulator, name):
    emulator.selftest(name)


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "deadlock": "block (1, 0): 25 threads in __syncwarp, the first is 7",
        "spinning": "block (0, 0): 3 threads in load_relaxed, the first is 0",
        "overrun": "a block has written behind its shared memory",
        "too_large": "cudaErrorCooperativeLaunchTooLarge",
    }.items(),
)
def test_error(emulator, name, message):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        emulator.selftest(name)


def test_a_device_too_old():
    emulated_cuda.emulator.configure(sm=75)
    with pytest.raises(RuntimeError, match="mma on too old a device"):
        emulated_cuda.emulator.selftest("mma")
    emulated_cuda.emulator.configure()


@pytest.mark.parametrize("size", [0, 1, 255, 257, 5000])
def test_scale(emulator, size):
    x, y = torch.arange(size, dtype=torch.float32), torch.empty(size)
    x_there, y_there = (emulated_cuda.on_cuda(to_dlpack(tensor)) for tensor in (x, y))
    emulated_cuda.cuda.scale(x_there, y_there, 2.0, 1.0, stream=0)
    torch.testing.assert_close(y, 2 * x + 1)
