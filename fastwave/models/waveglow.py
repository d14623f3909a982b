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

from fastwave.flows import phases
from fastwave.models.glow import GlowConfig, GlowVocoder
from fastwave.ops.gated_stack import GatedStackSpec

__all__ = ["Denoiser", "TransposedUpsampler", "WaveGlow", "WaveGlowConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WaveGlowConfig(GlowConfig):
    """The shape of a WaveGlow; the defaults are NVIDIA/waveglow's, the paper's but for ``channels`` and ``sigma``.

    GlowConfig has most fields. Dilations are 1, 2, 4, ...

    Attributes:
        upsample_kernel: samples that a frame is spread over.
    """

    upsample_kernel: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        hop = self.mel.hop_length
        if self.upsample_kernel < hop:
            raise ValueError(f"upsample_kernel must be at least hop_length {hop}, got {self.upsample_kernel}")

    def stack_specs(self) -> list[GatedStackSpec]:
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


class WaveGlow(GlowVocoder):
    """WaveGlow (GlowVocoder); its upsampler is plain PyTorch in generation too. See WaveGlowConfig."""

    config_class = WaveGlowConfig
    context = 0

    def __init__(self, config: WaveGlowConfig):
        mel = config.mel
        super().__init__(config, TransposedUpsampler(mel.n_mels, config.upsample_kernel, mel.hop_length))

    @property
    def condition_rate(self) -> int:
        return self.config.mel.hop_length

    @property
    def condition_reach(self) -> tuple[int, int]:
        return -(-self.config.upsample_kernel // self.config.mel.hop_length) - 1, 0

    def stage_condition(self, conditioning: Tensor) -> Tensor:
        return phases(conditioning, self.config.group)


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
        """wave (batch, samples) without ``strength`` times the hum; ValueError unless it has more than n_fft / 2."""
        if wave.ndim != 2 or wave.shape[1] <= self.n_fft // 2:
            raise ValueError(f"wave must be (batch, over {self.n_fft // 2} samples), got {tuple(wave.shape)}")
        spectrum = self.spectrum(wave)
        magnitude = (spectrum.abs() - strength * self.bias).clamp(min=0)
        spectrum = torch.polar(magnitude, spectrum.angle())
        window = self.window.to(wave.dtype)
        return torch.istft(spectrum, self.n_fft, self.n_fft // 4, window=window, length=wave.shape[1])
