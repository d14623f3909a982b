import pytest
import torch
from kernels import EMULATED, EMULATED_STACK, use

from fastwave import _cpu


@pytest.fixture(autouse=True)
def one_thread():
    """The tests' tensors are small, and bit-exact comparisons must depend neither on the machine nor on other tests."""
    torch.set_num_threads(1)


@pytest.fixture(params=_cpu.isas())
def isa(request, monkeypatch):
    """An instruction set of this machine; its name."""
    yield from use(request.param, "", {}, monkeypatch)


@pytest.fixture(params=[*_cpu.isas(), "cuda", *EMULATED])
def machine(request, monkeypatch):
    """What a sampler runs on; its name."""
    yield from use(request.param, "wavenet_sample", EMULATED, monkeypatch)


@pytest.fixture(params=[*_cpu.isas(), "cuda", *EMULATED_STACK])
def stack_machine(request, monkeypatch):
    """What a stack runs on; its name."""
    yield from use(request.param, "gated_stack", EMULATED_STACK, monkeypatch)
