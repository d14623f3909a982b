"""One small call of each kernel, for pytest-benchmark: pytest benchmarks/micro --benchmark-only

The whole models are in benchmarks/cases.py; these tell which kernel a change has made slower, in seconds.
"""

import dataclasses

import pytest
import torch

from fastwave import noise
from fastwave.layers import GatedStack
from fastwave.models import WaveNet, WaveNetConfig
from fastwave.ops.gated_stack import GatedStackSpec, gated_stack
from fastwave.ops.rounding import DTYPES
from fastwave.ops.upsample import upsample
from fastwave.ops.wavenet_sample import initial_sampler_state, wavenet_sample
from fastwave.pack import pack_gated_stack, pack_upsample

TEACHER = WaveNetConfig.clarinet(dilations=[2**i for i in range(10)])  # one of its two blocks
STACK = GatedStackSpec(
    residual_channels=64,
    gate_channels=64,
    skip_channels=64,
    kernel_size=3,
    dilations=[2**i for i in range(10)],
    cond_channels=80,
    head_channels=(64, 1),
    head_relu=(True, True),
)

pytestmark = pytest.mark.parametrize("threads", [1, 2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_wavenet_sample(benchmark, dtype, threads):
    torch.manual_seed(0)
    model, samples = WaveNet(TEACHER).requires_grad_(False), 240
    spec = dataclasses.replace(model.stack.spec, dtype=dtype)
    benchmark(
        wavenet_sample,
        noise.draw(model.noise_kinds, 0, 1, 0, samples),
        pack_gated_stack(model.stack.weights(), spec),
        spec,
        TEACHER.head_spec(),
        state=initial_sampler_state(spec, 1, model.first_input()),
        c=torch.rand(1, spec.cond_channels, samples),
        threads=threads,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_stack(benchmark, dtype, threads):
    torch.manual_seed(0)
    spec, samples = dataclasses.replace(STACK, dtype=dtype), 960
    weights = pack_gated_stack(GatedStack(spec).requires_grad_(False).weights(), spec)
    x, c = torch.randn(1, 1, samples), torch.rand(1, spec.cond_channels, samples)
    benchmark(gated_stack, x, weights, spec, c=c, threads=threads)


def test_upsample(benchmark, threads):
    torch.manual_seed(0)
    upsampler = WaveNet(TEACHER).requires_grad_(False).upsampler
    mel, frames = torch.rand(2, TEACHER.mel.n_mels, 16), 16
    weights = pack_upsample(upsampler.weights())
    benchmark(upsample, mel, weights, upsampler.spec, skip=0, frames=frames, threads=threads)
