"""WG-WaveNet (Hsu and Lee, 2020): a WaveGlow whose flows share one coupling, and a WaveNet that mends its output.

z ~ N(0, sigma^2), 8 samples to a column
for each flow, 4 of them, backwards:                            (section 2.1)
    mu, log sigma = WN(x_a, mel);   x_b <- (x_b - mu) exp(-log sigma)
    x <- W^-1 x
wave = WaveNet(x, mel)                                          (section 2.2)

Training maximises the flow's likelihood of speech, and now and then draws z and compares spectra (Eq. 5).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastwave.audio import MelSpec
from fastwave.flows import (
    InverseStack,
    InvertibleConv,
    affine_coupling,
    coupling_stack,
    flow_nll,
    phases,
    squeeze,
    unsqueeze,
)
from fastwave.layers import GatedStack
from fastwave.losses import SpectralMelLoss
from fastwave.models.base import ParallelModel, Run, Stage
from fastwave.ops.gated_stack import GatedStackSpec

__all__ = ["ConvUpsampler", "WGWaveNet", "WGWaveNetConfig"]

BOUND = 10.0  # of mu, log sigma and each flow's output, in training


@dataclasses.dataclass(frozen=True, kw_only=True)
class WGWaveNetConfig:
    """The shape of a WG-WaveNet; the defaults are the paper's (section 3.2).

    Attributes:
        mel: the front end whose mels the model understands; ``group`` divides its hop_length.
        flows: how many, around one coupling.
        group: samples of a column of the flows.
        layers, channels: of the coupling's gated stack, with dilations 1, 2, 4, ...
        post_layers, post_channels: of the post-filter's.
        kernel_size: of both.
        upsample_scales: frames are repeated by each scale, a convolution behind it: together hop_length.
        sigma: of the latent.
    """

    mel: MelSpec
    flows: int = 4
    group: int = 8
    layers: int = 7
    channels: int = 128
    post_layers: int = 7
    post_channels: int = 64
    kernel_size: int = 3
    upsample_scales: Sequence[int] = (2, 5, 2, 5, 2)
    sigma: float = 0.6

    def __post_init__(self) -> None:
        object.__setattr__(self, "upsample_scales", tuple(self.upsample_scales))
        for name in ("flows", "layers", "post_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        hop = self.mel.hop_length
        if self.group < 2 or self.group % 2 or hop % self.group:
            raise ValueError(f"group must be even and divide hop_length {hop}, got {self.group}")
        if math.prod(self.upsample_scales) != hop or min(self.upsample_scales, default=1) < 1:
            raise ValueError(f"upsample_scales must multiply to hop_length {hop}, got {self.upsample_scales}")
        if not self.sigma > 0:
            raise ValueError(f"sigma must be above 0, got {self.sigma}")
        self.coupling_spec()
        self.post_spec()

    @classmethod
    def g_8(cls, sample_rate: int = 22_050, **changes) -> WGWaveNetConfig:
        """The paper's model at 22.05 kHz (section 3.2), or at 44.1 kHz ("w800", section 3.5)."""
        mel = dataclasses.replace(MelSpec.preset("BogiHsu/WG-WaveNet"), sample_rate=sample_rate)
        return cls(**(dict(mel=mel) | changes))

    @classmethod
    def g_20(cls, sample_rate: int = 22_050, **changes) -> WGWaveNetConfig:
        """The faster one, with 20 samples to a column (section 3.3)."""
        return cls.g_8(sample_rate, **(dict(group=20) | changes))

    def coupling_spec(self) -> GatedStackSpec:
        """The gated stack that all couplings share, as generation uses it."""
        return self._spec(
            in_channels=self.group // 2,
            channels=self.channels,
            layers=self.layers,
            cond_channels=self.mel.n_mels * self.group,
            head_channels=(self.group,),
            head_relu=(False,),
            epilogue="inverse",
        )

    def post_spec(self) -> GatedStackSpec:
        """The post-filter."""
        return self._spec(
            channels=self.post_channels,
            layers=self.post_layers,
            cond_channels=self.mel.n_mels,
            head_channels=(1,),
            head_relu=(True,),
        )

    def _spec(self, channels: int, layers: int, **shape) -> GatedStackSpec:
        return GatedStackSpec(
            residual_channels=channels,
            gate_channels=channels,
            skip_channels=channels,
            kernel_size=self.kernel_size,
            dilations=[2**i for i in range(layers)],
            causal=False,
            residual_scale=1.0,
            **shape,
        )


class ConvUpsampler(nn.Module):
    """Pairs of frames, then repetition and a convolution over 5 columns and all bands, in turn; a ReLU behind each."""

    def __init__(self, n_mels: int, scales: Sequence[int]):
        super().__init__()
        self.scales = scales
        self.pairs = nn.Conv1d(n_mels, n_mels, 2)
        self.convs = nn.ModuleList(nn.Conv1d(n_mels, n_mels, 5, padding=2) for _ in scales)

    def forward(self, mel: Tensor) -> Tensor:
        """(batch, n_mels, frames + 2), the first unused -> (batch, n_mels, frames * hop_length)."""
        mel = self.pairs(mel[..., 1:]).relu()
        for scale, conv in zip(self.scales, self.convs, strict=True):
            mel = conv(mel.repeat_interleave(scale, -1)).relu()
        return mel


class WGWaveNet(ParallelModel):
    """The flow and its post-filter; the noise is z / sigma, (batch, group, columns). See WGWaveNetConfig.

    The upsampler is plain PyTorch in generation too.
    """

    config_class = WGWaveNetConfig
    context = 1

    def __init__(self, config: WGWaveNetConfig):
        super().__init__(config)
        self.noise_kinds = ("normal",) * config.group
        self.upsampler = ConvUpsampler(config.mel.n_mels, config.upsample_scales)
        self.convs = nn.ModuleList(InvertibleConv(config.group) for _ in range(config.flows))
        self.coupling = coupling_stack(config.coupling_spec())
        self.post_filter = GatedStack(config.post_spec())
        self.spectral_loss = SpectralMelLoss(config.mel)

    @property
    def noise_rate(self) -> int:
        return self.config.mel.hop_length // self.config.group

    @property
    def condition_rate(self) -> int:
        return self.config.mel.hop_length

    @property
    def condition_reach(self) -> tuple[int, int]:
        reach = 0
        for scale in reversed(self.config.upsample_scales):  # a convolution sees 2 columns further on either side
            reach = -(-(reach + 2) // scale)
        return reach, reach + 1

    def grouped(self, x: Tensor) -> Tensor:
        """(batch, channels, samples) -> (batch, channels * group, columns)."""
        return squeeze(x, self.config.group)

    def stages(self) -> list[Stage]:
        group, stages = self.config.group, []
        condition = functools.partial(phases, group=group)
        for conv in reversed(self.convs):
            stages.append(Stage(stack=self.coupling, group=group, condition=condition))
            stages.append(Stage(stack=InverseStack(conv), group=group, condition=None))
        return [*stages, Stage(stack=self.post_filter)]

    def flow_inverse(self, z: Tensor, run: Run) -> Tensor:
        """z (batch, group, columns) -> the flow's waveform (batch, 1, samples)."""
        for i in range(self.config.flows):
            z_a, z_b = z.chunk(2, 1)
            z_b, z_a = run(2 * i, z_a, y=z_b)
            z, _ = run(2 * i + 1, torch.cat([z_a, z_b], 1))
        return unsqueeze(z, self.config.group)

    def synthesize(self, noise: Tensor, run: Run) -> Tensor:
        wave, _ = run(2 * self.config.flows, self.flow_inverse(self.config.sigma * noise, run))
        return wave

    def forward(self, wave: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        """wave (batch, frames * hop_length), mel (batch, n_mels, frames + 2) -> z (batch, group, columns), and
        log |det dz/dwave|, (batch,)."""
        self.check_fit("wave", wave, mel)
        z, log_sigmas, logdets = self.transform(wave, self.upsampler(mel))
        return z, sum(log_sigma.sum((1, 2)) for log_sigma in log_sigmas) + sum(logdets)

    def transform(self, wave: Tensor, conditioning: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """z, and each flow's log sigma and log-determinant of W (fastwave.flows)."""
        x, c = self.grouped(wave[:, None]), self.grouped(conditioning)
        log_sigmas, logdets = [], []
        for conv in self.convs:
            x, logdet = conv(x)
            x, log_sigma = affine_coupling(self.coupling, x, c, BOUND)
            x = x.clamp(-BOUND, BOUND)
            log_sigmas.append(log_sigma)
            logdets.append(logdet)
        return x, log_sigmas, logdets

    def inverse(self, z: Tensor, mel: Tensor) -> Tensor:
        """The wave whose ``forward`` is z; the post-filter has no part in it."""
        self.check_fit("z", z, mel, self.config.group)
        return self.flow_inverse(z, self.reference_run(self.upsampler(mel)))[:, 0]

    def flow_loss(self, wave: Tensor, mel: Tensor) -> Tensor:
        """L_z: negative log-likelihood in nats per sample, without its constant."""
        return flow_nll(*self(wave, mel), self.config.sigma)

    def sample_loss(self, wave: Tensor, mel: Tensor) -> Tensor:
        """L_s (Eq. 1) of a sample."""
        self.check_fit("wave", wave, mel)
        noise = torch.randn_like(self.grouped(wave[:, None]))
        sample = self.synthesize(noise, self.reference_run(self.upsampler(mel)))[:, 0]
        return self.spectral_loss(sample.to(wave.dtype), wave)

    def loss(self, wave: Tensor, mel: Tensor) -> Tensor:
        """L_z + L_s (Eq. 5)."""
        return self.flow_loss(wave, mel) + self.sample_loss(wave, mel)
