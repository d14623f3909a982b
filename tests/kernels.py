"""What the tests of the kernels share: the machines that they run on, and how close to float64 they come.

wavenet_sample and gated_stack run on a CUDA device too where there is one, and at tiny sizes on emulated ones
(tests/cuda_on_cpu).

The bound is a small multiple of the error that torch's own float32 makes against the same float64 reference. In
bfloat16 and int8 the reference rounds where the kernel does; a value on the edge may then fall either way, so a
fraction of what rounding itself is worth is allowed too.
"""

import dataclasses
import importlib

import emulated_cuda
import pytest
import torch

from fastwave import _cpu
from fastwave.ops.custom import has_cuda

# Devices that are emulated, and the order of their threads: clusters; mailboxes, little shared memory, several layers
# in a block; no matrix instruction, and all in one block.
EMULATED = {
    "emulated-sm90": dict(sm=90, seed=1),
    "emulated-sm80": dict(sm=80, sm_count=4, shared_bytes=20_000, seed=2),
    "emulated-sm75": dict(sm=75, sm_count=1, seed=3),
}
# And for gated_stack: no room in shared memory but for what is on its way there.
EMULATED_STACK = {
    "emulated-sm90": dict(sm=90, seed=1),
    "emulated-sm75": dict(sm=75, sm_count=40, shared_bytes=46_000, seed=2),
}

OPCHECKS = ("test_schema", "test_faketensor", "test_autograd_registration")  # of torch.library.opcheck


def use(name, op, emulated, monkeypatch):
    """Runs an op on an instruction set or a device, by name; on an emulated one tensors are the CPU's, as is the op."""
    if name == "cuda":
        if not (has_cuda() and torch.cuda.is_available()):
            pytest.skip("no CUDA device")
        yield name
    elif name in emulated:
        if emulated_cuda.cuda is None:
            pytest.skip("not built: make cuda_on_cpu")
        emulated_cuda.emulator.configure(**emulated[name])
        monkeypatch.setattr(importlib.import_module(f"fastwave.ops.{op}"), "_cpu", emulated_cuda.Kernels)
        yield name
        emulated_cuda.emulator.configure()
    else:
        before = _cpu.isa()
        _cpu.set_isa(name)
        yield name
        assert _cpu.isa() == name
        _cpu.set_isa(before)


def skip_on_cuda(machine, dtype):
    """Skips what CUDA does not do."""
    if dtype == "int8" and (machine == "cuda" or machine in EMULATED):
        pytest.skip("not on CUDA")


def error(value, reference):
    return float((value.double() - reference).norm() / reference.norm().clamp(min=1e-30))


def assert_close(value, torch_float32, reference, exact=None):
    """Within four times the error of torch's float32, or of one rounding of each value.

    ``exact``: the float64 reference without the rounding of the op's dtype; a quarter of that rounding will do.
    """
    assert value.shape == reference.shape
    assert torch.isfinite(value).all()
    bound = 4 * max(error(torch_float32, reference), 2**-24)
    if exact is not None:
        rounding = error(reference, exact)
        assert rounding > 1e-5  # the reference does round
        bound = max(bound, rounding / 4)
    assert error(value, reference) <= bound


def in_float32(spec):
    return dataclasses.replace(spec, dtype="float32")


def to64(named):
    return {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in named.items()}
