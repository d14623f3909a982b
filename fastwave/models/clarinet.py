"""ClariNet's student: stacked Gaussian inverse autoregressive flows (Ping et al., 2018, section 3.2, Algorithm 1).

z^(0) ~ N(0, I);   mu_q = 0, log sigma_q = 0
for each flow:     mu, log sigma = WaveNet(z_<t, c)
                   z <- z . sigma + mu                       (Eq. 5)
                   mu_q <- mu_q . sigma + mu                 (Algorithm 1)
                   log sigma_q <- log sigma_q + log sigma
x = z,   q(x_t | z_<t) = N(mu_q, sigma_q^2)                  (Eq. 6)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastwave.layers import GatedStack, Upsampler
from fastwave.losses import MultiResolutionSTFTLoss
from fastwave.models.base import ConditionedConfig, ParallelModel, Run, Stage
from fastwave.models.wavenet import CLARINET_MEL
from fastwave.ops.gated_stack import GatedStackSpec, gated_stack_ref

__all__ = ["ClariNetStudent", "ClariNetStudentConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClariNetStudentConfig(ConditionedConfig):
    """The shape of a student; GatedStackSpec says what most fields mean.

    Attributes:
        flows: the dilations of each flow's layers.
        time_reversal: the sequence runs backwards in every second flow (section 5, student-2).
        first_sample: "net": the flows make the first sample too (Algorithm 1); "zero": it is 0, and the parameters
            that read z_<=t and c_<=t make sample t + 1 (ksw0306/ClariNet).
        initial_log_sigma: log sigma_q at the start of training: speech is far quieter than unit noise.
    """

    flows: Sequence[Sequence[int]]
    time_reversal: bool = False
    first_sample: str = "net"
    front_width: int = 32
    residual_channels: int = 64
    gate_channels: int = 64
    skip_channels: int = 64
    kernel_size: int = 3
    residual_scale: float = math.sqrt(0.5)
    initial_log_sigma: float = -4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "flows", tuple(tuple(dilations) for dilations in self.flows))
        if not self.flows:
            raise ValueError("flows must be one list of dilations or more, got none")
        if self.first_sample not in ("net", "zero"):
            raise ValueError(f"first_sample must be 'net' or 'zero', got {self.first_sample!r}")
        if self.time_reversal and self.first_sample == "zero":
            raise ValueError("first_sample must be 'net' with time_reversal, got 'zero'")
        self.stack_specs()

    @classmethod
    def student_1(cls, **changes) -> ClariNetStudentConfig:
        """Six flows of 10 layers, 64 channels, kernel 3 (section 5), 24 kHz."""
        values = dict(mel=CLARINET_MEL, flows=[[2**i for i in range(10)]] * 6, upsample_scales=(15, 20))
        return cls(**(values | changes))

    @classmethod
    def student_2(cls, **changes) -> ClariNetStudentConfig:
        """Four flows of 10, 10, 10 and 30 layers, time reversed between them (section 5)."""
        block = [2**i for i in range(10)]
        return cls.student_1(**(dict(flows=[block, block, block, block * 3], time_reversal=True) | changes))

    def stack_specs(self) -> list[GatedStackSpec]:
        """One gated stack, with its affine epilogue, per flow."""
        return [
            GatedStackSpec(
                front_width=self.front_width,
                front_relu=True,
                residual_channels=self.residual_channels,
                gate_channels=self.gate_channels,
                skip_channels=self.skip_channels,
                kernel_size=self.kernel_size,
                dilations=dilations,
                residual_scale=self.residual_scale,
                cond_channels=self.mel.n_mels,
                cond_repeat=self.cond_repeat,
                head_channels=(self.skip_channels, 2),
                head_relu=(True, True),
                epilogue="affine",
                delay="input" if self.first_sample == "net" else "output",
            )
            for dilations in self.flows
        ]


class ClariNetStudent(ParallelModel):
    """The student; its noise is z. See ClariNetStudentConfig."""

    config_class = ClariNetStudentConfig
    noise_kinds = ("normal",)

    def __init__(self, config: ClariNetStudentConfig):
        super().__init__(config)
        self.upsampler = Upsampler(config.upsample_spec(), config.upsampler)
        self.flows = nn.ModuleList(GatedStack(spec) for spec in config.stack_specs())
        for flow in self.flows:
            nn.init.constant_(flow.head[-1].bias[1:], config.initial_log_sigma / len(self.flows))
        self.stft_loss = MultiResolutionSTFTLoss(mel=config.mel)

    def reversed_flow(self, i: int) -> bool:
        """Whether flow i runs backwards in time."""
        return self.config.time_reversal and i % 2 == 1

    def stages(self) -> list[Stage]:
        return [Stage(stack=flow, reverse=self.reversed_flow(i)) for i, flow in enumerate(self.flows)]

    def synthesize(self, noise: Tensor, run: Run) -> Tensor:
        for i in range(len(self.flows)):
            noise, _ = run(i, noise)
        return noise

    def forward(self, z: Tensor, mel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Algorithm 1: z (batch, samples), mel (batch, n_mels, frames) -> x, mu_q, log_sigma_q, each as z."""
        self.check_fit("z", z, mel)
        return self.transform(z, self.upsampler(mel))

    def transform(self, z: Tensor, conditioning: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu_q, log_sigma_q = torch.zeros_like(z), torch.zeros_like(z)
        for i, flow in enumerate(self.flows):
            # the same pass with the epilogue left off gives mu and log sigma themselves
            mu, log_sigma = self.flow_parameters(flow, z, conditioning, self.reversed_flow(i))
            sigma = log_sigma.exp()
            z = z * sigma + mu
            mu_q = mu_q * sigma + mu
            log_sigma_q = log_sigma_q + log_sigma
        return z, mu_q, log_sigma_q

    def flow_parameters(self, flow: GatedStack, z: Tensor, c: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        delay = "input" if self.config.first_sample == "net" else "none"
        spec = dataclasses.replace(flow.spec, epilogue="none", delay=delay)
        mu, log_sigma = gated_stack_ref(z[:, None], flow.weights(), spec, c=c, reverse=reverse).unbind(1)
        if self.config.first_sample == "zero":
            mu = nn.functional.pad(mu[:, :-1], (1, 0))
            log_sigma = nn.functional.pad(log_sigma[:, :-1], (1, 0), value=-math.inf)
        return mu, log_sigma

    def loss(self, wave: Tensor, mel: Tensor) -> Tensor:
        """Multi-resolution STFT distance, as speech, of a sample from the recording, (batch, frames * hop_length)."""
        self.check_fit("wave", wave, mel)
        x, _, _ = self(torch.randn_like(wave), mel)
        return self.stft_loss(self.emphasis.undo(x.float()), self.emphasis.undo(wave))
