"""WaveGlow (Prenger, Valle and Catanzaro, 2018, arXiv 1811.00002): a flow between speech and Gaussian noise.

x = the wave, 8 samples to a column
for each flow, 12 of them:
    before every fourth but the first, 2 channels leave x and are part of z    (section 2.3)
    x <- W x                                                                   (section 2.2)
    mu, log sigma = WN(x_a, mel);   x_b <- x_b . sigma + mu                    (section 2.1)
z = what has left, and x

Generation runs it backwards (section 2.4), all samples at once.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from fastwave.audio import MelSpec
from fastwave.flows import Glow, flow_nll, squeeze, unsqueeze
from fastwave.models.base import ParallelModel, Run, Stage
from fastwave.ops.gated_stack import GatedStackSpec

__all__ = ["Denoiser", "TransposedUpsampler", "WaveGlow", "WaveGlowConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WaveGlowConfig:
    """The shape of a WaveGlow; the defaults are the paper's (section 3.2).

    Attributes:
        mel: the front end whose mels the model understands; ``group`` divides its hop_length.
        flows: how many.
        group: samples of a column.
        early_every, early_size: before every ``early_every``-th flow but the first, ``early_size`` channels leave.
        layers, channels, kernel_size: of each coupling's gated stack, with dilations 1, 2, 4, ...
        upsample_kernel: samples that a frame is spread over.
        sigma: of the latent, in the loss; drawn noise is standard normal, so generate with ``temperature=sigma`` or
            less.
    """

    mel: MelSpec
    flows: int = 12
    group: int = 8
    early_every: int = 4
    early_size: int = 2
    layers: int = 8
    channels: int = 256
    kernel_size: int = 3
    upsample_kernel: int = 1024
    sigma: float = 1.0

    def __post_init__(self) -> None:
        for name in ("flows", "group", "early_every", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        hop = self.mel.hop_length
        if hop % self.group:
            raise ValueError(f"group must divide hop_length {hop}, got {self.group}")
        if self.upsample_kernel < hop:
            raise ValueError(f"upsample_kernel must be at least hop_length {hop}, got {self.upsample_kernel}")
        if not self.sigma > 0:
            raise ValueError(f"sigma must be above 0, got {self.sigma}")
        widths = self.widths()
        if widths[-1] < 2 or any(width % 2 for width in widths) or self.early_size < 0:
            raise ValueError(f"group and early_size must leave every flow an even number of channels, got {widths}")
        self.stack_specs()

    def widths(self) -> list[int]:
        """Channels of each flow."""
        return [self.group - self.early_size * (flow // self.early_every) for flow in range(self.flows)]

    def stack_specs(self) -> list[GatedStackSpec]:
        """The gated stack of each flow's coupling, as generation uses it."""
        return [
            GatedStackSpec(
                in_channels=width // 2,
                residual_channels=self.channels,
                gate_channels=self.channels,
                skip_channels=self.channels,
                kernel_size=self.kernel_size,
                dilations=[2**i for i in range(self.layers)],
                causal=False,
                residual_scale=1.0,
                cond_channels=self.mel.n_mels * self.group,
                head_channels=(width,),
                head_relu=(False,),
                epilogue="inverse",
            )
            for width in self.widths()
        ]


class TransposedUpsampler(nn.ConvTranspose1d):
    """A transposed convolution over all bands, cut off at the last frame's end: no column sees a later frame."""

    def __init__(self, n_mels: int, kernel_size: int, hop_length: int):
        super().__init__(n_mels, n_mels, kernel_size, hop_length)

    def forward(self, mel: Tensor) -> Tensor:
        """(batch, n_mels, frames) -> (batch, n_mels, frames * hop_length)."""
        return super().forward(mel)[..., : mel.shape[2] * self.stride[0]]


class WaveGlow(ParallelModel):
    """The flow; its noise is z, (batch, group, columns), what left early first. See WaveGlowConfig.

    The upsampler, and the 1x1 convolutions between the stages, are plain PyTorch in generation too.
    """

    config_class = WaveGlowConfig
    context = 0

    def __init__(self, config: WaveGlowConfig):
        super().__init__(config)
        self.noise_kinds = ("normal",) * config.group
        self.upsampler = TransposedUpsampler(config.mel.n_mels, config.upsample_kernel, config.mel.hop_length)
        self.flow = Glow(config.stack_specs())

    @property
    def noise_rate(self) -> int:
        return self.config.mel.hop_length // self.config.group

    def grouped(self, x: Tensor) -> Tensor:
        """(batch, channels, samples) -> (batch, channels * group, columns)."""
        return squeeze(x, self.config.group)

    def stages(self) -> list[Stage]:
        return [
            Stage(stack=coupling, group=self.config.group, condition=self.grouped)
            for coupling in reversed(self.flow.couplings)
        ]

    def synthesize(self, noise: Tensor, run: Run) -> Tensor:
        return unsqueeze(self.flow.inverse(noise, run), self.config.group)

    def forward(self, wave: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        """wave (batch, frames * hop_length), mel (batch, n_mels, frames) -> z (batch, group, columns), and
        log |det dz/dwave|, (batch,)."""
        z, log_sigmas, logdets = self.transform(wave, self.condition(mel))
        return z, sum(log_sigma.sum((1, 2)) for log_sigma in log_sigmas) + sum(logdets)

    def transform(self, wave: Tensor, conditioning: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """z, and each flow's log sigma and log-determinant of W (fastwave.flows.Glow)."""
        return self.flow(self.grouped(wave[:, None]), self.grouped(conditioning))

    def inverse(self, z: Tensor, mel: Tensor) -> Tensor:
        """The wave whose ``forward`` is z."""
        return self.synthesize(z, self.reference_run(self.condition(mel)))[:, 0]

    def loss(self, wave: Tensor, mel: Tensor) -> Tensor:
        """Negative log-likelihood in nats per sample, without its constant."""
        return flow_nll(*self(wave, mel), self.config.sigma)


class Denoiser(nn.Module):
    """Takes out of a waveform the hum that the model makes of nothing: zero noise and an all-zero mel.

    The magnitude of that hum's first STFT frame is subtracted from every frame's; the phase stays (NVIDIA/waveglow).

    Args:
        model: a model or a Vocoder.
        n_fft: samples of an STFT frame, 4 of which overlap.
    """

    def __init__(self, model, n_fft: int = 1024):
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft))
        nothing = torch.zeros(1, model.config.mel.n_mels, 88)
        self.register_buffer("bias", self.spectrum(model.generate(nothing, temperature=0.0).float())[..., :1].abs())

    def spectrum(self, wave: Tensor) -> Tensor:
        """(batch, samples) -> (batch, n_fft / 2 + 1, frames), complex."""
        window = self.window.to(wave.dtype)
        return torch.stft(wave, self.n_fft, self.n_fft // 4, window=window, return_complex=True)

    def forward(self, wave: Tensor, strength: float = 0.1) -> Tensor:
        """wave (batch, samples), more than n_fft / 2 of them, without ``strength`` times the hum."""
        spectrum = self.spectrum(wave)
        magnitude = (spectrum.abs() - strength * self.bias).clamp(min=0)
        spectrum = torch.polar(magnitude, spectrum.angle())
        window = self.window.to(wave.dtype)
        return torch.istft(spectrum, self.n_fft, self.n_fft // 4, window=window, length=wave.shape[1])
