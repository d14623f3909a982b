"""What is measured. A case is a line of CASES: a name, types, threads, and a workload made from a model's shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from benchmarks.workloads import DiffusionStep, FirstChunk, Generation, Sampler, Stacks, Voice, Workload
from fastwave.audio import MelSpec
from fastwave.models import (
    ClariNetStudentConfig,
    DiffWave,
    DiffWaveConfig,
    FloWaveNet,
    FloWaveNetConfig,
    ParallelWaveGAN,
    ParallelWaveGANConfig,
    SqueezeWave,
    SqueezeWaveConfig,
    WaveGlow,
    WaveGlowConfig,
    WaveNetConfig,
    WGWaveNet,
    WGWaveNetConfig,
)
from fastwave.ops.gated_stack import GatedStackSpec
from fastwave.ops.rounding import DTYPES

__all__ = ["CASES", "Case"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Rows of the table: one for each type and number of threads.

    Attributes:
        make: builds the workload; raises FileNotFoundError where it lacks a voice.
        latency: what counts is the time of one unit.
    """

    name: str
    about: str
    make: Callable[[], Workload]
    dtypes: tuple[str, ...] = DTYPES
    threads: tuple[int, ...] = (1,)
    latency: bool = False


STUDENT_1 = ClariNetStudentConfig.student_1()

KSW0306_MEL = MelSpec.preset("ksw0306/ClariNet")
KSW0306_STUDENT = ClariNetStudentConfig.student_1(
    gate_channels=128, mel=KSW0306_MEL, upsample_scales=(16, 16), first_sample="zero"
)

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

R9Y9_MOL = WaveNetConfig(distribution="mixture_of_logistics", dilations=[2**i for i in range(6)] * 4, **R9Y9)
R9Y9_SOFTMAX = WaveNetConfig(
    distribution="softmax",
    classes=256,
    one_hot_input=True,
    initial_class=127,
    dilations=[2**i for i in range(10)] * 3,
    **R9Y9,
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

FLOATS = ("float32", "bfloat16")

CASES = (
    Case(
        name="teacher",
        about="ClariNet's Gaussian WaveNet, 20 layers x 128, 24 kHz",
        make=lambda: Sampler(WaveNetConfig.clarinet()),
        threads=(1, 2),
    ),
    Case(
        name="teacher-batch-8",
        about="the same, 8 utterances side by side",
        make=lambda: Sampler(WaveNetConfig.clarinet(), batch=8),
        dtypes=FLOATS,
        threads=(2,),
    ),
    Case(
        name="lj-teacher",
        about="the voice lj-teacher, mel to waveform",
        make=lambda: Voice("lj-teacher"),
        dtypes=FLOATS,
    ),
    Case(
        name="r9y9-mol",
        about="r9y9's mixture of logistics, 24 layers x 128, kernel 3, 22.05 kHz",
        make=lambda: Sampler(R9Y9_MOL),
    ),
    Case(
        name="r9y9-softmax",
        about="r9y9's mu-law softmax, 30 layers x 128, kernel 3, 22.05 kHz",
        make=lambda: Sampler(R9Y9_SOFTMAX),
        dtypes=("float32", "int8"),
    ),
    Case(
        name="ksw0306-teacher",
        about="ksw0306's Gaussian teacher, 20 layers of 128 channels and 256 gates, 22.05 kHz",
        make=lambda: Sampler(WaveNetConfig.clarinet(gate_channels=256, mel=KSW0306_MEL, upsample_scales=(16, 16))),
        dtypes=("float32", "int8"),
    ),
    Case(
        name="ksw0306-student",
        about="ksw0306's student: 6 flows, 60 layers of 64 channels and 128 gates, 22.05 kHz",
        make=lambda: Stacks(KSW0306_STUDENT.stack_specs(), KSW0306_MEL.sample_rate),
        dtypes=FLOATS,
        threads=(1, 2),
    ),
    Case(name="lj-stft", about="the voice lj-stft, mel to waveform", make=lambda: Voice("lj-stft"), dtypes=FLOATS),
    Case(
        name="student-1",
        about="ClariNet's student: 6 flows, 60 layers x 64, kernel 3, 24 kHz",
        make=lambda: Stacks(STUDENT_1.stack_specs(), STUDENT_1.mel.sample_rate),
        dtypes=FLOATS,
        threads=(1, 2),
    ),
    Case(
        name="student-1-batch-2",
        about="student-1, two utterances side by side",
        make=lambda: Stacks(STUDENT_1.stack_specs(), STUDENT_1.mel.sample_rate, batch=2),
        dtypes=FLOATS,
        threads=(2,),
    ),
    Case(
        name="student-1-stream",
        about="student-1 at 22.05 kHz, first 256 samples of a stream",
        make=lambda: FirstChunk(
            ClariNetStudentConfig.student_1(mel=MelSpec.preset("r9y9/wavenet_vocoder"), upsample_scales=(16, 16))
        ),
        dtypes=FLOATS,
        latency=True,
    ),
    Case(
        name="parallel-wavegan",
        about="Parallel WaveGAN's generator: 30 layers x 64, kernel 3, 22.05 kHz",
        make=lambda: Stacks([PARALLEL_WAVEGAN], 22050),
        dtypes=FLOATS,
    ),
    Case(
        name="parallel-wavegan-mel",
        about="the whole of it, mel to waveform",
        make=lambda: Generation(
            ParallelWaveGAN(
                ParallelWaveGANConfig(mel=MelSpec.preset("kan-bayashi/ParallelWaveGAN"), upsample_scales=(4, 4, 4, 4))
            )
        ),
        dtypes=FLOATS,
        threads=(1, 2),
    ),
    Case(
        name="diffwave-step",
        about="one call of DiffWave BASE's network: 30 layers x 64, kernel 3, 22.05 kHz",
        make=lambda: DiffusionStep(DiffWave(DiffWaveConfig.base())),
        dtypes=FLOATS,
        threads=(1, 2),
    ),
    Case(
        name="diffwave-fast",
        about="DiffWave BASE along 6 steps, mel to waveform",
        make=lambda: Generation(DiffWave(DiffWaveConfig.base(fast=True))),
        dtypes=FLOATS,
        threads=(2,),
    ),
    Case(
        name="wg-wavenet",
        about="WG-WaveNet g-8, mel to waveform, 22.05 kHz",
        make=lambda: Generation(WGWaveNet(WGWaveNetConfig.g_8()), onnx=False),
        dtypes=FLOATS,
        threads=(2,),
    ),
    Case(
        name="waveglow",
        about="WaveGlow: 12 flows of 8 layers x 256, mel to waveform, 22.05 kHz",
        make=lambda: Generation(WaveGlow(WaveGlowConfig(mel=MelSpec.preset("NVIDIA/waveglow"))), onnx=False),
        dtypes=FLOATS,
        threads=(2,),
    ),
    Case(
        name="squeezewave",
        about="SqueezeWave a128 c256, mel to waveform, 22.05 kHz",
        make=lambda: Generation(
            SqueezeWave(SqueezeWaveConfig(mel=MelSpec.preset("tianrengao/SqueezeWave"), group=128, channels=256)),
            onnx=False,
        ),
        dtypes=FLOATS,
        threads=(2,),
    ),
    Case(
        name="flowavenet",
        about="FloWaveNet: 8 blocks of 6 flows, 2 layers x 256, mel to waveform, 22.05 kHz",
        make=lambda: Generation(FloWaveNet(FloWaveNetConfig(mel=MelSpec.preset("ksw0306/FloWaveNet"))), onnx=False),
        dtypes=FLOATS,
        threads=(2,),
    ),
)
