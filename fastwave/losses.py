"""Losses on waveforms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["MultiResolutionSTFTLoss"]


class MultiResolutionSTFTLoss(nn.Module):
    """Spectral convergence plus log-magnitude distance, averaged over resolutions (Parallel WaveGAN, Eq. 6 to 9).

    Each resolution is (fft_size, hop_length, win_length).
    """

    def __init__(self, resolutions=((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)), eps: float = 1e-7):
        super().__init__()
        self.resolutions, self.eps = resolutions, eps
        for i, (_, _, win_length) in enumerate(resolutions):
            self.register_buffer(f"window_{i}", torch.hann_window(win_length), persistent=False)

    def _magnitude(self, wave: Tensor, i: int) -> Tensor:
        fft_size, hop_length, win_length = self.resolutions[i]
        window = getattr(self, f"window_{i}").to(wave.dtype)
        spectrum = torch.stft(wave, fft_size, hop_length, win_length, window, return_complex=True)
        return (spectrum.real.square() + spectrum.imag.square()).clamp(min=self.eps).sqrt()

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """(batch, samples) each -> scalar."""
        total = 0.0
        for i in range(len(self.resolutions)):
            p, t = self._magnitude(predicted, i), self._magnitude(target, i)
            convergence = torch.linalg.norm(t - p) / torch.linalg.norm(t)
            total = total + convergence + (t.log() - p.log()).abs().mean()
        return total / len(self.resolutions)
