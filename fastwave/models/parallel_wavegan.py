"""Parallel WaveGAN: a WaveNet that turns noise into speech at once (Yamamoto et al., 2020, arXiv 1910.11480).

z ~ N(0, I),   x = G(z, c)                                                            (section 2.1)
L_G = L_aux(G) + lambda_adv E[(1 - D(G(z, c)))^2]                                     (sections 2.1 and 2.2)
L_D = E[(1 - D(x))^2] + E[D(G(z, c))^2]                                               (section 2.1)

G is one gated stack, L_aux the multi-resolution STFT loss; fastwave.discriminators has D, and
fastwave.train.parallel_wavegan minimises the two.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastwave.layers import GatedStack, Upsampler
from fastwave.losses import MultiResolutionSTFTLoss
from fastwave.models.base import ConditionedConfig, ParallelModel, Run, Stage
from fastwave.ops.gated_stack import GatedStackSpec
from fastwave.ops.upsample import UpsampleSpec

__all__ = ["ParallelWaveGAN", "ParallelWaveGANConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelWaveGANConfig(ConditionedConfig):
    """The shape of a generator; GatedStackSpec says what most fields mean. The defaults are the paper's (section 3.1).

    Attributes:
        causal: of the stack and the upsampler: no sample depends on a later sample of the noise or frame of the mel.
    """

    upsampler: str = "stretched"
    upsample_freq_kernel: int = 1
    upsample_slope: float = 1.0
    upsample_context: int = 2
    upsample_context_conv: bool = True
    residual_channels: int = 64
    gate_channels: int = 64
    skip_channels: int = 64
    kernel_size: int = 3
    dilations: Sequence[int] = tuple(2**i for i in range(10)) * 3
    residual_scale: float = math.sqrt(0.5)
    causal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "dilations", tuple(self.dilations))
        self.stack_spec()

    def upsample_spec(self) -> UpsampleSpec:
        return dataclasses.replace(super().upsample_spec(), causal=self.causal)

    def stack_spec(self) -> GatedStackSpec:
        return GatedStackSpec(
            residual_channels=self.residual_channels,
            gate_channels=self.gate_channels,
            skip_channels=self.skip_channels,
            kernel_size=self.kernel_size,
            dilations=self.dilations,
            causal=self.causal,
            residual_scale=self.residual_scale,
            cond_channels=self.mel.n_mels,
            cond_repeat=self.cond_repeat,
            head_channels=(self.skip_channels, 1),
            head_relu=(True, True),
        )


class ParallelWaveGAN(ParallelModel):
    """The generator; its noise is z, (batch, samples). See ParallelWaveGANConfig."""

    config_class = ParallelWaveGANConfig
    noise_kinds = ("normal",)

    def __init__(self, config: ParallelWaveGANConfig):
        super().__init__(config)
        self.upsampler = Upsampler(config.upsample_spec(), config.upsampler)
        self.stack = GatedStack(config.stack_spec())
        self.stft_loss = MultiResolutionSTFTLoss()

    def stages(self) -> list[Stage]:
        return [Stage(stack=self.stack)]

    def synthesize(self, noise: Tensor, run: Run) -> Tensor:
        wave, _ = run(0, noise)
        return wave

    def forward(self, z: Tensor, mel: Tensor) -> Tensor:
        """z (batch, samples), mel (batch, n_mels, frames + 2 upsample_context) -> x, as z."""
        self.check_fit("z", z, mel)
        return self.stack(z[:, None], self.upsampler(mel))[:, 0]

    def loss(self, wave: Tensor, mel: Tensor) -> Tensor:
        """L_aux: the multi-resolution STFT distance of a sample to the recording, (batch, frames * hop_length)."""
        self.check_fit("wave", wave, mel)
        return self.stft_loss(self(torch.randn_like(wave), mel).to(wave.dtype), wave)
