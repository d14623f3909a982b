"""What is timed: a model's shape with random weights, or a voice, on the kernels and, in float32, on their rivals."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

import fastwave
from benchmarks.baseline import ConvolutionModel, ConvolutionStacks, IncrementalWaveNet, onnx_runtime
from benchmarks.ceilings import Work, sampler_work, stack_work
from fastwave import noise
from fastwave.layers import GatedStack
from fastwave.models import ClariNetStudent, ClariNetStudentConfig, DiffWave, ParallelModel, WaveNet, WaveNetConfig
from fastwave.ops.gated_stack import GatedStackSpec, gated_stack
from fastwave.ops.project import project
from fastwave.ops.wavenet_sample import initial_sampler_state, wavenet_sample
from fastwave.pack import pack_gated_stack
from fastwave.runners import Parallel

__all__ = ["PYTORCH", "DiffusionStep", "FirstChunk", "Generation", "Sampler", "Stacks", "Voice", "Workload"]

PYTORCH, COMPILED, ONNX = "PyTorch", "torch.compile", "ONNX Runtime"

Run = Callable[[], object]


class Workload(Protocol):
    """Numbers of samples per row are multiples of ``unit``."""

    sample_rate: int
    batch: int
    unit: int

    def work(self, dtype: str) -> Work:
        """The least work of one sample."""

    def kernels(self, samples: int, dtype: str, threads: int) -> Run:
        """A function that makes so many samples of each row on the kernels."""

    def baselines(self, threads: int) -> dict[str, Callable[[int], Run]]:
        """For each rival, what makes a function that makes so many samples of each row; PyTorch is the first.

        One that cannot run here raises ImportError or RuntimeError.
        """


def _noise(kinds: tuple[str, ...], samples: int, batch: int = 1) -> Tensor:
    return noise.draw(kinds, 0, batch, 0, samples)


def _typed(spec: GatedStackSpec, dtype: str) -> GatedStackSpec:
    return dataclasses.replace(spec, dtype=dtype)


def _stacks_work(specs: list[GatedStackSpec], dtype: str) -> Work:
    return sum((stack_work(_typed(spec, dtype)) for spec in specs), Work(operations={}))


class Sampler:
    """wavenet_sample: utterances side by side, conditioning columns given, random weights."""

    def __init__(self, config: WaveNetConfig, batch: int = 1, device: str = "cpu"):
        torch.manual_seed(0)
        self.model, self.batch, self.device = WaveNet(config).requires_grad_(False).to(device), batch, device
        self.stack, self.spec = self.model.stack, self.model.stack.spec
        self.sample_rate, self.unit = config.mel.sample_rate, config.cond_repeat

    def of(self, change: Callable[[GatedStackSpec], GatedStackSpec]) -> Sampler:
        """The same with another stack."""
        other = copy.copy(self)
        other.spec = change(self.spec)
        other.stack = GatedStack(other.spec).requires_grad_(False).to(self.device)
        return other

    def work(self, dtype: str) -> Work:
        return sampler_work(_typed(self.spec, dtype))

    def _inputs(self, samples: int) -> tuple[Tensor, Tensor | None]:
        bands = self.spec.cond_channels
        c = torch.rand(self.batch, bands, samples // self.unit, device=self.device) if bands else None
        return _noise(self.model.noise_kinds, samples, self.batch).to(self.device), c

    def kernels(self, samples: int, dtype: str, threads: int) -> Run:
        spec, head = _typed(self.spec, dtype), self.model.config.head_spec()
        weights = pack_gated_stack(self.stack.weights(), spec)
        table = self.model.distribution.decode_table() if head.distribution == "softmax" else None
        state = initial_sampler_state(spec, self.batch, self.model.first_input(), device=self.device)
        z, c = self._inputs(samples)
        return lambda: wavenet_sample(z, weights, spec, head, state=state, c=c, table=table, threads=threads)

    @functools.cached_property
    def _compiled(self) -> IncrementalWaveNet:
        return IncrementalWaveNet(self.model, torch.compile)

    def baselines(self, threads: int) -> dict[str, Callable[[int], Run]]:
        def run(sampler: IncrementalWaveNet, samples: int) -> Run:
            z, c = self._inputs(samples)
            return lambda: sampler.generate(z, c)

        return {
            PYTORCH: lambda samples: run(IncrementalWaveNet(self.model), samples),
            COMPILED: lambda samples: run(self._compiled, samples),
        }


class Stacks:
    """gated_stack: long utterances through one stack after the other, conditioning given, random weights."""

    def __init__(self, specs: list[GatedStackSpec], sample_rate: int, batch: int = 1, device: str = "cpu"):
        torch.manual_seed(0)
        self.specs, self.stacks = specs, [GatedStack(spec).requires_grad_(False).to(device) for spec in specs]
        self.batch, self.device = batch, device
        self.sample_rate, self.unit = sample_rate, 8192 * specs[0].cond_repeat
        self.convolutions = ConvolutionStacks(self.stacks)

    def of(self, change: Callable[[GatedStackSpec], GatedStackSpec]) -> Stacks:
        """The same with other stacks."""
        return Stacks([change(spec) for spec in self.specs], self.sample_rate, self.batch, self.device)

    def work(self, dtype: str) -> Work:
        return _stacks_work(self.specs, dtype)

    def _inputs(self, samples: int) -> tuple[Tensor, Tensor | None]:
        spec, there = self.specs[0], dict(device=self.device)
        bands = spec.cond_channels
        c = torch.rand(self.batch, bands, samples // spec.cond_repeat, **there) if bands else None
        return torch.randn(self.batch, 1, samples, **there), c

    def kernels(self, samples: int, dtype: str, threads: int) -> Run:
        specs = [_typed(spec, dtype) for spec in self.specs]
        packed = [pack_gated_stack(stack.weights(), spec) for stack, spec in zip(self.stacks, specs, strict=True)]
        x, c = self._inputs(samples)

        def run() -> Tensor:
            y = x
            for spec, weights in zip(specs, packed, strict=True):
                y = gated_stack(y, weights, spec, c=c, threads=threads)
            return y

        return run

    @functools.cached_property
    def _compiled(self) -> Callable[[Tensor, Tensor], Tensor]:
        return torch.compile(self.convolutions, dynamic=False)  # faster code than for all lengths

    def baselines(self, threads: int) -> dict[str, Callable[[int], Run]]:
        def run(stacks: Callable[[Tensor, Tensor], Tensor], samples: int) -> Run:
            x, c = self._inputs(samples)
            return torch.inference_mode()(lambda: stacks(x, c))

        return {
            PYTORCH: lambda samples: run(self.convolutions, samples),
            COMPILED: lambda samples: run(self._compiled, samples),
            ONNX: lambda samples: onnx_runtime(self.convolutions, self._inputs(samples), threads),
        }


class Voice:
    """Vocoder.generate with a bundled voice: mel to waveform, upsampler and noise included (but not in ``work``)."""

    batch = 1

    def __init__(self, name: str):
        self.name, self.model = name, fastwave.load(name).model
        mel = self.model.config.mel
        self.sample_rate, self.unit, self.bands = mel.sample_rate, mel.hop_length, mel.n_mels

    def work(self, dtype: str) -> Work:
        if isinstance(self.model, WaveNet):
            return sampler_work(_typed(self.model.stack.spec, dtype))
        return _stacks_work([flow.spec for flow in self.model.flows], dtype)

    def _mel(self, samples: int) -> Tensor:
        torch.manual_seed(0)
        return torch.rand(1, self.bands, samples // self.unit)

    def kernels(self, samples: int, dtype: str, threads: int) -> Run:
        vocoder, mel = fastwave.load(self.name, dtype=dtype, threads=threads), self._mel(samples)
        return lambda: vocoder.generate(mel)

    def baselines(self, threads: int) -> dict[str, Callable[[int], Run]]:
        network = (
            IncrementalWaveNet(self.model).generate
            if isinstance(self.model, WaveNet)
            else ConvolutionStacks(list(self.model.flows))
        )

        def make(samples: int) -> Run:
            mel = self._mel(samples)
            return torch.inference_mode()(
                lambda: network(_noise(self.model.noise_kinds, samples), self.model.condition(mel))
            )

        return {PYTORCH: make}


class Generation:
    """Vocoder.generate of a parallel model, noise given, random weights; ``work`` is that of its stacks."""

    batch = 1

    def __init__(self, model: ParallelModel, onnx: bool = True):
        torch.manual_seed(0)
        self.model, self.onnx = model.requires_grad_(False).eval(), onnx
        self.convolutions = ConvolutionModel(self.model)
        self.mel = model.config.mel
        self.sample_rate, self.unit = self.mel.sample_rate, 64 * self.mel.hop_length

    def work(self, dtype: str) -> Work:
        """Of each stage; what several project of the conditioning is counted once."""
        runner = Parallel(self.model, dtype, torch.device("cpu"))
        work, shared = Work(operations={}), runner.shared(self.batch)
        for i, (stage, spec) in enumerate(zip(runner.stages, runner.specs, strict=True)):
            if shared.get(i, i) != i:
                spec = dataclasses.replace(spec, cond_channels=0)
            work += stack_work(spec) / stage.group
        return work

    def _inputs(self, samples: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        frames = samples // self.mel.hop_length
        columns = frames * self.model.noise_rate
        return _noise(self.model.noise_kinds, columns), torch.rand(1, self.mel.n_mels, frames)

    def kernels(self, samples: int, dtype: str, threads: int) -> Run:
        vocoder = fastwave.Vocoder(self.model, dtype=dtype, threads=threads)
        z, mel = self._inputs(samples)
        return lambda: vocoder.generate(mel, noise=z)

    def baselines(self, threads: int) -> dict[str, Callable[[int], Run]]:
        def run(samples: int) -> Run:
            inputs = self._inputs(samples)
            return torch.inference_mode()(lambda: self.convolutions(*inputs))

        rivals = {PYTORCH: run}
        if self.onnx:
            rivals[ONNX] = lambda samples: onnx_runtime(self.convolutions, self._inputs(samples), threads)
        return rivals


class DiffusionStep(Stacks):
    """One call of DiffWave's network. What depends on the mel alone is projected before, for it serves every step."""

    def __init__(self, model: DiffWave):
        self.model = model.requires_grad_(False)
        super().__init__([model.stack.spec], model.config.mel.sample_rate)
        self.stacks = [model.stack]
        self.convolutions = ConvolutionStacks(self.stacks)
        self.u = model.stages()[0].u

    def work(self, dtype: str) -> Work:
        return stack_work(dataclasses.replace(_typed(self.specs[0], dtype), cond_channels=0))

    def kernels(self, samples: int, dtype: str, threads: int) -> Run:
        spec, (x, c) = _typed(self.specs[0], dtype), self._inputs(samples)
        weights = pack_gated_stack(self.model.stack.weights(), spec)
        projected = project(c, weights, spec, threads=threads)
        return lambda: gated_stack(x, weights, spec, projected=projected, u=self.u, threads=threads)


class FirstChunk:
    """Vocoder.stream: the first frame's samples of one utterance after the other; its time is the latency of a stream.

    The baseline makes that frame alone with the model itself.
    """

    batch = 1

    def __init__(self, config: ClariNetStudentConfig):
        torch.manual_seed(0)
        self.model = ClariNetStudent(config).requires_grad_(False).eval()
        self.sample_rate, self.unit = config.mel.sample_rate, config.mel.hop_length
        frames = self.model.upsampler.spec.reach + 1
        self.mel = torch.rand(1, config.mel.n_mels, frames)

    def work(self, dtype: str) -> Work:
        return _stacks_work(self.model.config.stack_specs(), dtype)

    def kernels(self, samples: int, dtype: str, threads: int) -> Run:
        vocoder = fastwave.Vocoder(self.model, dtype=dtype, threads=threads)

        def run() -> None:
            for _ in range(samples // self.unit):
                next(vocoder.stream(self.mel.split(1, 2)))

        return run

    def baselines(self, threads: int) -> dict[str, Callable[[int], Run]]:
        def make(samples: int) -> Run:
            def run() -> None:
                for _ in range(samples // self.unit):
                    self.model.generate(self.mel[..., :1])

            return run

        return {PYTORCH: make}
