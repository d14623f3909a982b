"""Losses on waveforms, on distributions, and on what a discriminator says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastwave.audio import MelSpec, mel_filterbank

__all__ = [
    "LoudnessLoss",
    "MultiResolutionSTFTLoss",
    "STFTMagnitudeLoss",
    "SpectralMelLoss",
    "feature_matching_loss",
    "gaussian_kl",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "least_squares_discriminator_loss",
    "least_squares_generator_loss",
    "regularized_kl",
]


def gaussian_kl(
    mu_q: Tensor, log_sigma_q: Tensor, mu_p: Tensor, log_sigma_p: Tensor, log_sigma_min: float = -6.0
) -> Tensor:
    """KL(q || p) of Gaussians, in nats, each element; both log-sigmas are bounded below (ClariNet, Eq. 9)."""
    log_sigma_q, log_sigma_p = log_sigma_q.clamp(min=log_sigma_min), log_sigma_p.clamp(min=log_sigma_min)
    variance_q, variance_p = (2 * log_sigma_q).exp(), (2 * log_sigma_p).exp()
    return log_sigma_p - log_sigma_q + (variance_q - variance_p + (mu_p - mu_q).square()) / (2 * variance_p)


def regularized_kl(
    mu_q: Tensor,
    log_sigma_q: Tensor,
    mu_p: Tensor,
    log_sigma_p: Tensor,
    weight: float = 4.0,
    log_sigma_min: float = -6.0,
) -> Tensor:
    """The mean of KL(q || p) + weight |log sigma_p - log sigma_q|^2, the latter not bounded (ClariNet, Eq. 10)."""
    kl = gaussian_kl(mu_q, log_sigma_q, mu_p, log_sigma_p, log_sigma_min)
    return (kl + weight * (log_sigma_p - log_sigma_q).square()).mean()


class STFTMagnitudeLoss(nn.Module):
    """1/B || |STFT(x)| - |STFT(x_n)| ||^2 of B linear magnitudes, averaged over frames (ClariNet, section 3.3.2).

    Args:
        window: (fft_size,), over the frames.
        hop_length: samples from one frame to the next.
    """

    def __init__(self, window: Tensor, hop_length: int):
        super().__init__()
        self.hop_length = hop_length
        self.register_buffer("window", window, persistent=False)

    @classmethod
    def clarinet(cls, sample_rate: int) -> STFTMagnitudeLoss:
        """The paper's: FFT 2048, or the next power of two that has room, Hann windows of 50 ms every 12.5 ms."""
        width = round(0.05 * sample_rate)
        fft_size = max(2048, 2 ** math.ceil(math.log2(width)))
        before = (fft_size - width) // 2
        window = nn.functional.pad(torch.hann_window(width), (before, fft_size - width - before))
        return cls(window, round(0.0125 * sample_rate))

    @classmethod
    def ksw0306(cls) -> STFTMagnitudeLoss:
        """That of ksw0306/ClariNet: frames of 1,024 samples, every 256, with no window."""
        return cls(torch.ones(1024), 256)

    def magnitude(self, wave: Tensor) -> Tensor:
        """(batch, samples) -> (batch, fft_size / 2 + 1, frames)."""
        return (_power(wave, len(self.window), self.hop_length, self.window) + 1e-10).sqrt()

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """(batch, samples) each -> scalar."""
        return (self.magnitude(predicted) - self.magnitude(target)).square().mean()

    def power(self, predicted: Tensor, target: Tensor) -> Tensor:
        """The distance of powers averaged over time (Parallel WaveNet's power loss, van den Oord et al., 2018)."""
        p, t = (self.magnitude(wave).square().mean(2) for wave in (predicted, target))
        return (p - t).square().mean()


class MultiResolutionSTFTLoss(nn.Module):
    """Spectral convergence plus log-magnitude distance, averaged over resolutions (Parallel WaveGAN, Eq. 6 to 9).

    Each resolution is (fft_size, hop_length, win_length). With ``mel`` the distance of log-mel magnitudes is added
    (WG-WaveNet, Hsu and Lee, 2020, Eq. 1 to 4): most linear bins lie above 4 kHz, where speech is not understood.
    """

    def __init__(
        self,
        resolutions=((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)),
        eps: float = 1e-7,
        mel: MelSpec | None = None,
    ):
        super().__init__()
        self.resolutions, self.eps, self.mel = resolutions, eps, mel
        for i, (fft_size, _, win_length) in enumerate(resolutions):
            self.register_buffer(f"window_{i}", torch.hann_window(win_length), persistent=False)
            if mel is not None:  # as many bands per bin as the model's own front end has; each averages its bins
                n_mels = max(1, mel.n_mels * fft_size // mel.n_fft)
                spec = dataclasses.replace(mel, n_fft=fft_size, win_length=1, n_mels=n_mels, mean=None, std=None)
                bands = mel_filterbank(spec)
                bands = bands / bands.sum(1, keepdim=True).clamp(min=1e-12)
                self.register_buffer(f"bands_{i}", bands.float(), persistent=False)

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """(batch, samples) each -> scalar."""
        total = 0.0
        for i, (fft_size, hop_length, _) in enumerate(self.resolutions):
            window = getattr(self, f"window_{i}")
            p, t = (stft_magnitude(wave, fft_size, hop_length, window, self.eps) for wave in (predicted, target))
            total = total + sum(magnitude_distances(p, t))
            if self.mel is not None:
                bands = getattr(self, f"bands_{i}").to(p.dtype)
                p, t = (bands @ p).clamp(min=self.eps**0.5), (bands @ t).clamp(min=self.eps**0.5)
                total = total + (t.log() - p.log()).abs().mean()
        return total / len(self.resolutions)


class LoudnessLoss(MultiResolutionSTFTLoss):
    """Mean |N(x) - N(x_n)|, as a part of the mean N(x_n), of the loudness N of mel bands, averaged over resolutions.

    N is the square root of a band's magnitude: Zwicker's exponent of 0.23, of intensity (Zwicker and Fastl, 1999,
    section 8.1), to which PESQ too compresses its bands (ITU-T P.862, 10.2.7). Where a logarithm, as in
    MultiResolutionSTFTLoss, counts a band in a pause as much as one of a vowel, this counts what is heard.
    """

    def __init__(self, mel: MelSpec):
        super().__init__(mel=mel)

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """(batch, samples) each -> scalar."""
        total = 0.0
        for i, (fft_size, hop_length, _) in enumerate(self.resolutions):
            window, bands = getattr(self, f"window_{i}"), getattr(self, f"bands_{i}").to(predicted.dtype)
            p, t = (
                (bands @ stft_magnitude(wave, fft_size, hop_length, window, self.eps)).sqrt()
                for wave in (predicted, target)
            )
            total = total + (p - t).abs().mean() / t.mean()
        return total / len(self.resolutions)


class SpectralMelLoss(nn.Module):
    """L_s of WG-WaveNet (Hsu and Lee, 2020, Eq. 1 to 4), as BogiHsu/WG-WaveNet computes it.

    Spectral convergence and log-magnitude distance, averaged over resolutions; of each, half of three terms: the
    bins below mel.fmax; those above, whose magnitudes are first averaged over time; and the mel bands.

    Args:
        mel: the front end whose bands these are, but for their number.
        resolutions: (fft_size, hop_length, win_length, bands per band of ``mel``) each.
    """

    def __init__(
        self,
        mel: MelSpec,
        resolutions=(
            (2048, 400, 2000, 4.0),
            (1024, 200, 1000, 2.0),
            (512, 100, 500, 1.0),
            (256, 50, 200, 0.5),
            (128, 25, 100, 0.25),
        ),
        eps: float = 1e-7,
    ):
        super().__init__()
        self.mel, self.resolutions, self.eps = mel, resolutions, eps
        for i, (fft_size, _, win_length, scale) in enumerate(resolutions):
            n_mels = max(1, int(mel.n_mels * scale))
            spec = dataclasses.replace(mel, n_fft=fft_size, win_length=1, n_mels=n_mels, mean=None, std=None)
            self.register_buffer(f"window_{i}", torch.hann_window(win_length), persistent=False)
            self.register_buffer(f"bands_{i}", mel_filterbank(spec).float(), persistent=False)

    def terms(self, predicted: Tensor, target: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Spectral convergence and log-magnitude distance at resolution i."""
        window, bands = getattr(self, f"window_{i}"), getattr(self, f"bands_{i}").to(predicted.dtype)
        fft_size, hop_length, _, _ = self.resolutions[i]
        p, t = (stft_magnitude(wave, fft_size, hop_length, window, self.eps) for wave in (predicted, target))
        bins = p.shape[1]
        cut = int(bins * 2 * self.mel.fmax // self.mel.sample_rate)
        parts = [magnitude_distances(p[:, :cut], t[:, :cut])]
        if cut < bins:
            parts.append(magnitude_distances(p[:, cut:].mean(2), t[:, cut:].mean(2)))
        floor = self.eps**0.5
        parts.append(magnitude_distances((bands @ p).clamp(min=floor), (bands @ t).clamp(min=floor)))
        convergence, magnitude = (sum(part) / 2 for part in zip(*parts, strict=True))
        return convergence, magnitude

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """(batch, samples) each -> scalar."""
        total = sum(sum(self.terms(predicted, target, i)) for i in range(len(self.resolutions)))
        return total / len(self.resolutions)


def stft_magnitude(wave: Tensor, fft_size: int, hop_length: int, window: Tensor, eps: float) -> Tensor:
    """(batch, samples) -> (batch, fft_size / 2 + 1, frames), at least sqrt(eps)."""
    return _power(wave, fft_size, hop_length, window).clamp(min=eps).sqrt()


def _power(wave: Tensor, fft_size: int, hop_length: int, window: Tensor) -> Tensor:
    """Squared magnitudes; ValueError where there are too few samples to mirror half a frame at either end."""
    if wave.shape[-1] <= fft_size // 2:
        least = f"more than {fft_size // 2} samples, for frames of {fft_size}"
        raise ValueError(f"segments of speech must have {least}, got {wave.shape[-1]}")
    spectrum = torch.stft(wave, fft_size, hop_length, len(window), window.to(wave.dtype), return_complex=True)
    return spectrum.real.square() + spectrum.imag.square()


def magnitude_distances(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Spectral convergence, and mean distance of the logarithms, of magnitudes (Parallel WaveGAN, Eq. 7 and 8)."""
    convergence = torch.linalg.norm(target - predicted) / torch.linalg.norm(target)
    return convergence, (target.log() - predicted.log()).abs().mean()


def least_squares_generator_loss(fake: Tensor) -> Tensor:
    """E[(D(G(z)) - 1)^2] of the discriminator's scores, of any shape (Parallel WaveGAN, section 2.1)."""
    return (fake - 1).square().mean()


def least_squares_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E[(D(x) - 1)^2] + E[D(G(z))^2] of its scores, of any shape (Parallel WaveGAN, section 2.1)."""
    return (real - 1).square().mean() + fake.square().mean()


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """-E[D(G(z))] (MelGAN, Kumar et al., 2019, section 2.2)."""
    return -fake.mean()


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))] (MelGAN, Kumar et al., 2019, section 2.2)."""
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


def feature_matching_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean over a discriminator's layers of the mean |real - fake| of their outputs (MelGAN, section 2.2)."""
    distances = [(r.detach() - f).abs().mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(distances).mean()
