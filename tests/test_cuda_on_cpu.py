"""The emulated CUDA device itself (tests/cuda_on_cpu), and what the CUDA bindings refuse."""

import dataclasses
import re

import emulated_cuda
import pytest
import torch
from torch.utils.dlpack import to_dlpack

from fastwave import models
from fastwave.audio import MelSpec
from fastwave.models import ClariNetStudentConfig, WaveNetConfig
from fastwave.ops.custom import arguments
from fastwave.ops.gated_stack import initial_state
from fastwave.ops.wavenet_sample import initial_sampler_state
from fastwave.pack import pack_gated_stack

pytestmark = pytest.mark.skipif(emulated_cuda.cuda is None, reason="not built: make cuda_on_cpu")


@pytest.fixture(params=[0, 1, 2], ids="seed{}".format)
def emulator(request):
    emulated_cuda.emulator.configure(seed=request.param)
    yield emulated_cuda.emulator
    emulated_cuda.emulator.configure()


@pytest.mark.parametrize(
    "name",
    [
        *("barrier", "vote", "shuffle", "poison", "mma", "mailbox", "cluster", "patience"),
        *("ldmatrix", "copies", "early", "flags"),
    ],
)
def test_instruction(emulator, name):
    emulator.selftest(name)


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "deadlock": "block (1, 0): 25 threads in __syncwarp, the first is 7",
        "spinning": "block (0, 0): 3 threads in load_relaxed, the first is 0",
        "trap": "trap",
        "unaligned": "copy_async: an address is not aligned",
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


CONFIG = WaveNetConfig(
    mel=MelSpec(n_mels=7, hop_length=16, n_fft=64, win_length=64, sample_rate=8000, fmax=4000.0),
    residual_channels=4,
    gate_channels=4,
    skip_channels=4,
    kernel_size=2,
    dilations=(1, 2),
    upsample_scales=(16,),
)


def place(tensors):
    """On the emulated device, but for what is in a list, which stays the host's."""
    return {
        name: emulated_cuda.on_cuda(to_dlpack(tensor)) if isinstance(tensor, torch.Tensor) else tensor and tensor[0]
        for name, tensor in tensors.items()
    }


def in_float32(spec):
    return dataclasses.replace(spec, dtype="float32")


def sample(dtype="float32", **changes):
    """The binding's own call, with some of its tensors changed."""
    model = models.WaveNet(CONFIG).requires_grad_(False)
    spec = dataclasses.replace(model.stack.spec, dtype=dtype)
    tensors = dict(
        noise=torch.zeros(2, 1, 16),
        weights=pack_gated_stack(model.stack.weights(), spec),
        c=torch.zeros(2, 7, 16),
        g=None,
        table=None,
        forced=None,
        lengths=None,
        state=initial_sampler_state(spec, 2),
        samples=torch.zeros(2, 16),
        parameters=None,
        workspace=torch.zeros(emulated_cuda.cuda.wavenet_sample_plan(arguments(spec), 2, 0)["workspace"] // 4),
    )
    there = place(tensors | changes)
    emulated_cuda.cuda.wavenet_sample(
        arguments(spec), arguments(CONFIG.head_spec()), **there, temperature=1.0, stream=0
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(dtype="int8"), "dtype must be one of float32, bfloat16 on cuda, got int8"),
        (dict(c=[torch.zeros(2, 7, 16)]), "(2, 7, 16) on cuda, got float32 (2, 7, 16) on cpu"),
        (dict(lengths=torch.zeros(2)), "lengths must be a contiguous int64 tensor of shape (2,) on cuda"),
        (dict(workspace=torch.zeros(8)), "workspace must be a contiguous float32 tensor of shape"),
        (dict(state=None), "state must be a contiguous float32 tensor of shape"),
    ],
    ids=str,
)
def test_the_binding_refuses(changes, message):
    emulated_cuda.emulator.configure()
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(**changes)
    sample()


def stack(dtype="float32", **changes):
    """gated_stack's binding, in the same way."""
    model = models.WaveNet(CONFIG).requires_grad_(False)
    spec = dataclasses.replace(model.stack.spec, dtype=dtype)
    plan = emulated_cuda.cuda.gated_stack_plan(arguments(in_float32(spec)), 2, 16, 16, True, 0)
    tensors = dict(
        x=torch.zeros(2, 1, 16),
        weights=pack_gated_stack(model.stack.weights(), spec),
        c=torch.zeros(2, 7, 16),
        interpolation=None,
        g=None,
        u=None,
        y=None,
        lengths=None,
        state=initial_state(spec, 2),
        out=torch.zeros(2, spec.out_channels, 16),
        workspace=torch.zeros(plan["workspace"] // 4),
    )
    there = place(tensors | changes)
    emulated_cuda.cuda.gated_stack(arguments(spec), **there, reverse=False, pending=0, last=True, stream=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(dtype="int8"), "dtype must be one of float32, bfloat16 on cuda, got int8"),
        (dict(x=[torch.zeros(2, 1, 16)]), "(any, 1, any) on cuda, got float32 (2, 1, 16) on cpu"),
        (dict(lengths=torch.zeros(2)), "lengths must be a contiguous int64 tensor of shape (2,) on cuda"),
        (dict(workspace=torch.zeros(8)), "workspace must be a contiguous float32 tensor of shape"),
        (dict(state=torch.zeros(2, 3)), "state must be a contiguous float32 tensor of shape"),
        (dict(out=torch.zeros(2, 2, 15)), "out must be a contiguous float32 tensor of shape (2, 2, 16) on cuda"),
    ],
    ids=str,
)
def test_the_stacks_binding_refuses(changes, message):
    emulated_cuda.emulator.configure()
    with pytest.raises(ValueError, match=re.escape(message)):
        stack(**changes)
    stack()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bands", [0, 80])
@pytest.mark.parametrize("causal", [True, False])
def test_a_stacks_memory_grows_with_its_conditioning_alone(causal, bands, dtype):
    emulated_cuda.emulator.configure(sm_count=132)
    config = ClariNetStudentConfig.student_2()
    changes = dict(cond_channels=bands, causal=causal, delay="none", dtype=dtype, dilations=[1, 2, 512] * 20)
    spec = arguments(dataclasses.replace(config.stack_specs()[0], **changes))
    few, many = (
        emulated_cuda.cuda.gated_stack_plan(spec, 1, time, time, True, 0)["workspace"] for time in (2**17, 2**20)
    )
    columns, own = 2**20 - 2**17, {"float32": 4, "bfloat16": 2}[dtype] * bands
    assert 0 <= many - few - own * columns <= columns // 16  # and each tile has a flag


def test_lengths_out_of_bounds_are_bounded():
    """Python refuses them, but for a graph, whose values nobody sees."""
    emulated_cuda.emulator.configure()
    stack(lengths=torch.tensor([-5, 1000]))
