"""Griffin-Lim: speech from a mel without a model, the baseline of every voice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastwave import audio, noise
from fastwave.audio import MelSpec

__all__ = ["GriffinLim", "GriffinLimConfig"]


@dataclass(frozen=True, kw_only=True)
class GriffinLimConfig:
    """Which mels :class:`GriffinLim` takes, and how long it looks for their phases.

    Raises:
        ValueError: a field is out of its range, or windows of the mel overlap by less than half; the message names it.
    """

    mel: MelSpec
    iterations: int = 60
    momentum: float = 0.99  # alpha of the fast algorithm; 0 is the original one

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise ValueError(f"iterations must be at least 0, got {self.iterations}")
        if not 0 <= self.momentum < math.inf:
            raise ValueError(f"momentum must be finite and at least 0, got {self.momentum}")
        if self.mel.hop_length > self.mel.win_length // 2:
            raise ValueError(
                f"hop_length must be at most win_length / 2 = {self.mel.win_length // 2}, got {self.mel.hop_length}"
            )


class GriffinLim:
    """Phase reconstruction (Griffin and Lim, 1984), by the fast algorithm (Perraudin, Balazs and Sondergaard, 2013).

    The mel is inverted to magnitudes, :func:`fastwave.audio.linear_spectrum`. Random phases are then improved by
    projecting in turn onto the spectra that have these magnitudes and onto those that a waveform can have.
    """

    def __init__(self, config: GriffinLimConfig):
        self.config = config

    @torch.inference_mode()
    def generate(self, mel: Tensor, *, seed: int = 0) -> Tensor:
        """A waveform from a log-mel.

        Args:
            mel: (batch, n_mels, frames), in the scale of ``config.mel``.
            seed: of the first phases, for each row whatever its batch.

        Returns:
            (batch, frames * hop_length), in the dtype of ``mel``; at the scale of ``config.mel.peak`` where it has one.

        Raises:
            ValueError: not a mel of ``config.mel``, or one that cannot be inverted; a negative seed.
        """
        spec = self.config.mel
        magnitudes = audio.linear_spectrum(mel, spec)
        # The frames of a waveform of frames * hop_length samples are one more: the last repeats.
        magnitudes = torch.cat((magnitudes, magnitudes[..., -1:]), dim=-1)
        batch, bins, frames = magnitudes.shape
        phases = 2 * math.pi * noise.draw(("uniform",) * bins, seed, batch, 0, frames).to(magnitudes)

        window = torch.hann_window(spec.win_length, dtype=mel.dtype, device=mel.device)
        transform = dict(n_fft=spec.n_fft, hop_length=spec.hop_length, win_length=spec.win_length, window=window)
        samples = (frames - 1) * spec.hop_length

        spectrum, before = torch.polar(magnitudes, phases), 0.0
        for _ in range(self.config.iterations):
            wave = torch.istft(spectrum, **transform, length=samples)
            consistent = torch.stft(wave, **transform, pad_mode="constant", return_complex=True)
            accelerated = consistent + self.config.momentum * (consistent - before)
            spectrum, before = magnitudes * accelerated.sgn(), consistent
        return torch.istft(spectrum, **transform, length=samples)
