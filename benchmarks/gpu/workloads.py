"""What is timed on a GPU: the CPU's workloads there, and PyTorch at its best as their rival."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch

import fastwave
from benchmarks.baseline import ConvolutionModel, ConvolutionStacks, Graphed, IncrementalWaveNet
from benchmarks.cases import FLOATS, R9Y9_MOL, R9Y9_SOFTMAX, STUDENT_1
from benchmarks.workloads import PYTORCH, Generation, Run, Sampler, Stacks
from fastwave.graphs import capture
from fastwave.models import ClariNetStudent, ParallelModel, WaveNetConfig
from fastwave.ops.gated_stack import GatedStackSpec, gated_stack, initial_state
from fastwave.pack import pack_gated_stack

__all__ = ["CASES", "Case", "Chunk", "DeviceGeneration", "DeviceSampler", "DeviceStacks"]

GRAPH, COMPILED = "CUDA graph", "torch.compile, CUDA graph"
DEVICE = "cuda"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Attributes:
    make: builds the workload.
    samples: of a row; of a sampler at the least.
    parallel: a stack, whose length is ``samples``.
    """

    name: str
    make: Callable[[], DeviceSampler | DeviceStacks | DeviceGeneration]
    samples: int
    parallel: bool = False
    dtypes: tuple[str, ...] = FLOATS


class DeviceSampler(Sampler):
    """wavenet_sample; the compiler takes half a minute, so one row only goes through it."""

    def baselines(self, threads: int) -> dict[str, Callable[[int], Run]]:
        def make(wrap) -> Callable[[int], Run]:
            sampler = IncrementalWaveNet(self.model, wrap)

            def sized(samples: int) -> Run:
                z, c = self._inputs(samples)
                return lambda: sampler.generate(z, c)

            return sized

        rivals = {PYTORCH: make(None), GRAPH: make(Graphed)}
        if self.batch == 1:
            rivals[COMPILED] = make(lambda step: Graphed(torch.compile(step)))
        return rivals


class DeviceStacks(Stacks):
    """gated_stack, all calls as one CUDA graph; PyTorch in float32, whose convolutions use TF32, and in bfloat16."""

    def __init__(self, specs: list[GatedStackSpec], sample_rate: int, batch: int, device: str, compiled: bool = False):
        super().__init__(specs, sample_rate, batch, device)
        self.compiled = compiled

    @property
    def bytes(self) -> float:
        """That a sample must be read and written with: each stack's x, c and output, in float32."""
        return sum(4 * (s.in_channels + s.out_channels + s.cond_channels / s.cond_repeat) for s in self.specs)

    def kernels(self, samples: int, dtype: str, threads: int) -> Run:
        return captured(super().kernels(samples, dtype, threads))

    def baselines(self, threads: int) -> dict[str, Callable[[int], Run]]:
        halves = ConvolutionStacks([copy.deepcopy(stack).bfloat16() for stack in self.stacks])

        def make(stacks: Callable, dtype: torch.dtype, graph: bool) -> Callable[[int], Run]:
            @torch.inference_mode()
            def sized(samples: int) -> Run:
                x, c = (tensor.to(dtype) for tensor in self._inputs(samples))
                run = torch.inference_mode()(lambda: stacks(x, c))
                return captured(run) if graph else run

            return sized

        rivals = {
            PYTORCH: make(self.convolutions, torch.float32, False),
            f"{PYTORCH}, bfloat16": make(halves, torch.bfloat16, False),
            f"{GRAPH}, bfloat16": make(halves, torch.bfloat16, True),
        }
        if self.compiled:
            rivals[f"{COMPILED}, bfloat16"] = make(torch.compile(halves, dynamic=False), torch.bfloat16, True)
        return rivals


class DeviceGeneration(Generation):
    """Vocoder.generate: one CUDA graph from the third call on, and what is copied to it and from it."""

    def __init__(self, model: ParallelModel, device: str):
        super().__init__(model, onnx=False)
        self.device, self.convolutions = device, ConvolutionModel(copy.deepcopy(self.model).to(device))

    @property
    def bytes(self) -> float:
        """That a sample must be read and written with: noise, mel and waveform, in float32."""
        model, hop = self.model, self.mel.hop_length
        return 4 * (len(model.noise_kinds) * model.noise_rate + self.mel.n_mels + hop) / hop

    def kernels(self, samples: int, dtype: str, threads: int) -> Run:
        vocoder = fastwave.Vocoder(self.model, device=self.device, dtype=dtype)
        z, mel = self._inputs(samples)
        return lambda: vocoder.generate(mel, noise=z)

    def baselines(self, threads: int) -> dict[str, Callable[[int], Run]]:
        @torch.inference_mode()
        def make(samples: int, graph: bool) -> Run:
            inputs = [tensor.to(self.device) for tensor in self._inputs(samples)]
            run = torch.inference_mode()(lambda: self.convolutions(*inputs))
            return captured(run) if graph else run

        return {PYTORCH: lambda samples: make(samples, False), GRAPH: lambda samples: make(samples, True)}


def captured(run: Run) -> Run:
    """The same as a CUDA graph."""
    for _ in range(3):
        run()
    replay, _ = capture(run, torch.cuda.Stream())
    return replay


class Chunk(DeviceStacks):
    """One of a stream's chunks after the other."""

    def kernels(self, samples: int, dtype: str, threads: int) -> Run:
        specs = [dataclasses.replace(spec, dtype=dtype) for spec in self.specs]
        packed = [pack_gated_stack(stack.weights(), spec) for stack, spec in zip(self.stacks, specs, strict=True)]
        states = [initial_state(spec, self.batch, device=self.device) for spec in specs]
        x, c = self._inputs(samples)

        def run() -> None:
            y = x
            for spec, weights, state in zip(specs, packed, states, strict=True):
                y = gated_stack(y, weights, spec, c=c, state=state)

        return captured(run)


def _sampler(config: WaveNetConfig, batch: int) -> Callable[[], DeviceSampler]:
    return lambda: DeviceSampler(config, batch, DEVICE)


def _student(batch: int, kind: type[DeviceStacks] = DeviceStacks, **named) -> Callable[[], DeviceStacks]:
    return lambda: kind(STUDENT_1.stack_specs(), STUDENT_1.mel.sample_rate, batch, DEVICE, **named)


def _generation() -> DeviceGeneration:
    return DeviceGeneration(ClariNetStudent(STUDENT_1), DEVICE)


SAMPLERS = {"teacher": WaveNetConfig.clarinet(), "r9y9-mol": R9Y9_MOL, "r9y9-softmax": R9Y9_SOFTMAX}
SECOND = STUDENT_1.mel.sample_rate

CASES = (
    *(
        Case(name=f"{name}-batch-{batch}", make=_sampler(config, batch), samples=300)
        for name, config in SAMPLERS.items()
        for batch in (1, 8, 64, 512)
    ),
    Case(name="student-1-chunk", make=_student(1, Chunk), samples=256, parallel=True),
    Case(name="student-1-1s", make=_student(1), samples=SECOND, parallel=True),
    Case(name="student-1-1s-generate", make=_generation, samples=SECOND, parallel=True),
    Case(name="student-1-10s", make=_student(1, compiled=True), samples=10 * SECOND, parallel=True),
    Case(name="student-1-32x10s", make=_student(32), samples=10 * SECOND, parallel=True),
)
