"""How close generated speech is to the recordings its mels came from: STOI, PESQ, spectral distance, likelihood."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fastwave import audio
from fastwave.models import Model, WaveNet
from fastwave.train.data import Clip
from fastwave.vocoder import Vocoder

__all__ = ["evaluate_voice", "log_likelihood", "log_spectral_distance", "means", "pesq", "stoi"]

PESQ_RATE = 16_000  # Hz, of wide-band PESQ


def stoi(recording: Tensor, generated: Tensor, sample_rate: int) -> float:
    """Short-time objective intelligibility (Taal et al., 2011), up to 1; from bands below 4.3 kHz, (samples,) each.

    Raises:
        ModuleNotFoundError: pystoi is not installed.
    """
    import pystoi

    return float(pystoi.stoi(recording.double().numpy(), generated.double().numpy(), sample_rate))


def pesq(recording: Tensor, generated: Tensor, sample_rate: int) -> float:
    """Wide-band PESQ (ITU-T P.862.2), 1 to 4.6, at 16 kHz; NaN where it finds no speech. (samples,) each.

    Raises:
        ModuleNotFoundError: pesq is not installed.
    """
    import pesq

    at_16_khz = [audio.resample(wave, sample_rate, PESQ_RATE).numpy() for wave in (recording, generated)]
    score = pesq.pesq(PESQ_RATE, *at_16_khz, mode="wb", on_error=pesq.PesqError.RETURN_VALUES)
    return float(score) if score >= 0 else math.nan


def log_spectral_distance(
    recording: Tensor, generated: Tensor, sample_rate: int, max_frequency: float = 8000.0
) -> float:
    """Root mean square over frequency of the difference of magnitudes in dB, averaged over time; (samples,) each.

    Magnitudes are of 1,024-sample Hann windows, of bins up to ``max_frequency`` (Hz), raised to -80 dB of a full-scale
    sine.
    """
    window = torch.hann_window(1024)
    spectra = torch.stft(torch.stack([recording, generated]), 1024, 256, window=window, return_complex=True).abs()
    spectra = spectra[:, : int(max_frequency / sample_rate * 1024) + 1]  # (2, bins, frames)
    decibels = 20 * spectra.clamp(min=1e-4 * window.sum() / 2).log10()
    return (decibels[0] - decibels[1]).square().mean(0).sqrt().mean().item()


@torch.inference_mode()
def log_likelihood(model: WaveNet, wave: Tensor) -> float:
    """Nats per sample that an autoregressive model gives a recording, (samples,) at its sample rate."""
    mel = audio.log_mel(wave[None], model.config.mel)
    frames = len(wave) // model.config.mel.hop_length
    wave = wave[None, : frames * model.config.mel.hop_length]
    parameters = model(wave, model.with_context(mel[..., :frames]))
    return model.distribution.log_prob(parameters, wave).mean().item()


def evaluate_voice(voice: Vocoder | Model, clips: Iterable[Clip], seed: int = 0) -> list[dict]:
    """Vocodes clips from their own mels and compares.

    Args:
        voice: what generates.
        clips: the recordings.
        seed: of the noise.

    Returns:
        One row per clip: clip, source_rate (Hz, of the file), seconds, stoi, pesq, lsd (dB), and log_likelihood (nats
        per sample) where the model is autoregressive.

    Raises:
        OSError, ValueError: a clip that cannot be read.
        ModuleNotFoundError: pystoi or pesq is not installed.
    """
    _require_metrics()
    spec = voice.config.mel
    model = getattr(voice, "model", voice)
    rows = []
    for clip in clips:
        wave = audio.read(clip.path, spec.sample_rate)
        generated = voice.generate(audio.log_mel(wave[None], spec), seed=seed)[0].float().cpu()
        samples = min(len(wave), len(generated))
        pair = wave[:samples], generated[:samples]
        row = {"clip": clip.name, "source_rate": clip.sample_rate, "seconds": len(wave) / spec.sample_rate}
        for name, metric in (("stoi", stoi), ("pesq", pesq), ("lsd", log_spectral_distance)):
            row[name] = metric(*pair, spec.sample_rate)
        if hasattr(model, "distribution"):
            row["log_likelihood"] = log_likelihood(model, wave)
        rows.append(row)
    return rows


def means(rows: Sequence[dict]) -> list[dict]:
    """The mean over the clips of each source rate, highest rate first: source_rate, clips, and the metrics."""
    groups = []
    for rate in sorted({row["source_rate"] for row in rows}, reverse=True):
        group = [row for row in rows if row["source_rate"] == rate]
        metrics = [name for name in group[0] if name not in ("clip", "source_rate", "seconds")]
        mean = {name: sum(row[name] for row in group) / len(group) for name in metrics}
        groups.append({"source_rate": rate, "clips": len(group)} | mean)
    return groups


def _require_metrics() -> None:
    for name in ("pystoi", "pesq"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            raise ModuleNotFoundError(f"{name} is not installed; pip install 'fastwave[metrics]' installs it") from None
