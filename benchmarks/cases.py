"""What is measured. A case is a line of CASES: a name, what it is, and a workload made from a model's shape.

A workload has a ``sample_rate``, a ``unit`` that its numbers of samples are multiples of, the ``work`` of one sample,
and gives two functions to time: ``kernels`` and, with the same weights in PyTorch, ``baseline``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

import fastwave
from benchmarks.baseline import IncrementalWaveNet
from benchmarks.ceilings import Work, sampler_work, stack_work
from fastwave import noise
from fastwave.audio import MelSpec
from fastwave.layers import GatedStack
from fastwave.models import ClariNetStudent, ClariNetStudentConfig, WaveNet, WaveNetConfig
from fastwave.ops.gated_stack import GatedStackSpec, gated_stack
from fastwave.ops.wavenet_sample import initial_sampler_state, wavenet_sample
from fastwave.pack import pack_gated_stack

__all__ = ["CASES", "Case", "FirstChunk", "Sampler", "Stacks", "Voice", "Workload"]


class Workload(Protocol):
    sample_rate: int
    unit: int
    work: Work

    def kernels(self, samples: int, threads: int) -> Callable[[], object]:
        """A function that makes so many samples on the kernels."""

    def baseline(self, samples: int) -> Callable[[], object]:
        """A function that makes so many samples in PyTorch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table.

    Attributes:
        make: builds the workload; raises FileNotFoundError where it lacks a voice.
        latency: what counts is the time of one unit.
    """

    name: str
    about: str
    make: Callable[[], Workload]
    latency: bool = False


def _noise(kinds: tuple[str, ...], samples: int) -> Tensor:
    return noise.draw(kinds, 0, 1, 0, samples)


class Sampler:
    """wavenet_sample: one utterance, conditioning columns given, random weights."""

    def __init__(self, config: WaveNetConfig):
        torch.manual_seed(0)
        self.model = WaveNet(config).requires_grad_(False)
        self.spec, self.sample_rate, self.unit = self.model.stack.spec, config.mel.sample_rate, config.cond_repeat
        self.work = sampler_work(self.spec)

    def _inputs(self, samples: int) -> tuple[Tensor, Tensor]:
        return _noise(self.model.noise_kinds, samples), torch.rand(1, self.spec.cond_channels, samples // self.unit)

    def kernels(self, samples: int, threads: int) -> Callable[[], object]:
        weights, head = pack_gated_stack(self.model.stack.weights(), self.spec), self.model.config.head_spec()
        table = self.model.distribution.decode_table() if head.distribution == "softmax" else None
        state = initial_sampler_state(self.spec, 1, self.model.first_input())
        z, c = self._inputs(samples)
        return lambda: wavenet_sample(z, weights, self.spec, head, state=state, c=c, table=table, threads=threads)

    def baseline(self, samples: int) -> Callable[[], object]:
        sampler, (z, c) = IncrementalWaveNet(self.model), self._inputs(samples)
        return lambda: sampler.generate(z, c)


class Stacks:
    """gated_stack: one long utterance through one stack after the other, conditioning given, random weights."""

    def __init__(self, specs: list[GatedStackSpec], sample_rate: int):
        torch.manual_seed(0)
        self.stacks = [GatedStack(spec).requires_grad_(False) for spec in specs]
        self.sample_rate, self.unit = sample_rate, specs[0].cond_repeat
        self.work = sum(map(stack_work, specs), Work(operations=0))

    def _inputs(self, samples: int) -> tuple[Tensor, Tensor]:
        return torch.randn(1, 1, samples), torch.rand(1, self.stacks[0].spec.cond_channels, samples // self.unit)

    def kernels(self, samples: int, threads: int) -> Callable[[], object]:
        packed = [(stack.spec, pack_gated_stack(stack.weights(), stack.spec)) for stack in self.stacks]
        x, c = self._inputs(samples)

        def run() -> Tensor:
            y = x
            for spec, weights in packed:
                y = gated_stack(y, weights, spec, c=c, threads=threads)
            return y

        return run

    def baseline(self, samples: int) -> Callable[[], object]:
        x, c = self._inputs(samples)

        @torch.inference_mode()
        def run() -> Tensor:
            y = x
            for stack in self.stacks:
                y = stack(y, c)
            return y

        return run


class Voice:
    """Vocoder.generate with a bundled voice: mel to waveform, upsampler and noise included (but not in ``work``)."""

    def __init__(self, name: str):
        self.name, self.model = name, fastwave.load(name).model
        mel = self.model.config.mel
        self.sample_rate, self.unit, self.bands = mel.sample_rate, mel.hop_length, mel.n_mels
        if isinstance(self.model, WaveNet):
            self.work = sampler_work(self.model.stack.spec)
        else:
            self.work = sum((stack_work(flow.spec) for flow in self.model.flows), Work(operations=0))

    def _mel(self, samples: int) -> Tensor:
        torch.manual_seed(0)
        return torch.rand(1, self.bands, samples // self.unit)

    def kernels(self, samples: int, threads: int) -> Callable[[], object]:
        vocoder, mel = fastwave.load(self.name, threads=threads), self._mel(samples)
        return lambda: vocoder.generate(mel)

    def baseline(self, samples: int) -> Callable[[], object]:
        mel = self._mel(samples)
        if not isinstance(self.model, WaveNet):
            return lambda: self.model.generate(mel)
        sampler = IncrementalWaveNet(self.model)

        @torch.inference_mode()
        def run() -> Tensor:
            return sampler.generate(_noise(self.model.noise_kinds, samples), self.model.condition(mel))

        return run


class FirstChunk:
    """Vocoder.stream: the first frame's samples of one utterance after the other; its time is the latency of a stream.

    The baseline makes that frame alone with the model itself.
    """

    def __init__(self, config: ClariNetStudentConfig):
        torch.manual_seed(0)
        self.model = ClariNetStudent(config).requires_grad_(False).eval()
        self.sample_rate, self.unit = config.mel.sample_rate, config.mel.hop_length
        self.work = sum(map(stack_work, config.stack_specs()), Work(operations=0))
        frames = self.model.upsampler.spec.reach + 1
        self.mel = torch.rand(1, config.mel.n_mels, frames)

    def kernels(self, samples: int, threads: int) -> Callable[[], object]:
        vocoder = fastwave.Vocoder(self.model, threads=threads)

        def run() -> None:
            for _ in range(samples // self.unit):
                next(vocoder.stream(self.mel.split(1, 2)))

        return run

    def baseline(self, samples: int) -> Callable[[], object]:
        def run() -> None:
            for _ in range(samples // self.unit):
                self.model.generate(self.mel[..., :1])

        return run


STUDENT_1 = ClariNetStudentConfig.student_1()

R9Y9 = dict(
    mel=MelSpec.preset("r9y9/wavenet_vocoder"),
    residual_channels=128,
    gate_channels=128,
    skip_channels=128,
    kernel_size=3,
    upsampler="stretched",
    upsample_scales=(4, 4, 4, 4),
    upsample_freq_kernel=1,
    upsample_slope=1.0,
    upsample_context=2,
    upsample_context_conv=True,
)

PARALLEL_WAVEGAN = GatedStackSpec(
    front_causal=False,
    residual_channels=64,
    gate_channels=64,
    skip_channels=64,
    kernel_size=3,
    dilations=[2**i for i in range(10)] * 3,
    causal=False,
    cond_channels=80,
    head_channels=(64, 1),
    head_relu=(True, True),
)

CASES = (
    Case(
        name="teacher",
        about="ClariNet's Gaussian WaveNet, 20 layers x 128, 24 kHz",
        make=lambda: Sampler(WaveNetConfig.clarinet()),
    ),
    Case(name="lj-teacher", about="the voice lj-teacher, mel to waveform", make=lambda: Voice("lj-teacher")),
    Case(
        name="r9y9-mol",
        about="r9y9's mixture of logistics, 24 layers x 128, kernel 3, 22.05 kHz",
        make=lambda: Sampler(
            WaveNetConfig(distribution="mixture_of_logistics", dilations=[2**i for i in range(6)] * 4, **R9Y9)
        ),
    ),
    Case(
        name="r9y9-softmax",
        about="r9y9's mu-law softmax, 30 layers x 128, kernel 3, 22.05 kHz",
        make=lambda: Sampler(
            WaveNetConfig(
                distribution="softmax",
                classes=256,
                one_hot_input=True,
                initial_class=127,
                dilations=[2**i for i in range(10)] * 3,
                **R9Y9,
            )
        ),
    ),
    Case(name="lj", about="the voice lj, mel to waveform", make=lambda: Voice("lj")),
    Case(
        name="student-1",
        about="ClariNet's student: 6 flows, 60 layers x 64, kernel 3, 24 kHz",
        make=lambda: Stacks(STUDENT_1.stack_specs(), STUDENT_1.mel.sample_rate),
    ),
    Case(
        name="student-1-stream",
        about="the same, first 300 samples of a stream",
        make=lambda: FirstChunk(STUDENT_1),
        latency=True,
    ),
    Case(
        name="parallel-wavegan",
        about="Parallel WaveGAN's generator: 30 layers x 64, kernel 3, 22.05 kHz",
        make=lambda: Stacks([PARALLEL_WAVEGAN], 22050),
    ),
)
