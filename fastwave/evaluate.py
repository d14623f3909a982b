"""How close generated speech is to the recordings its mels came from, and how fast it is made.

A recording and what was generated from its mel are aligned, so no metric warps time.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fastwave import audio
from fastwave.audio import MelSpec
from fastwave.griffin_lim import GriffinLim
from fastwave.models import Model, WaveNet
from fastwave.train.data import Clip
from fastwave.vocoder import Vocoder

__all__ = [
    "evaluate_voice",
    "f0",
    "f0_rmse",
    "log_likelihood",
    "log_spectral_distance",
    "means",
    "mel_cepstral_distortion",
    "pesq",
    "require_metrics",
    "stoi",
    "voicing_error",
]

SPEECH_RATE = 16_000  # Hz, of wide-band PESQ; cepstra and F0 are taken there too, so that voices of any rate compare

# Of mel cepstra: windows of 25 ms every 5 ms, and a floor 80 dB below a full-scale sine, which reaches 100 in its bin.
CEPSTRAL_MEL = MelSpec(
    sample_rate=SPEECH_RATE,
    n_fft=512,
    hop_length=80,
    win_length=400,
    n_mels=40,
    mel_norm="peak",
    padding="constant",
    log="ln",
    floor=1e-2,
    log_range=None,
)
CEPSTRA = 13

SPEEDS = ("samples_per_second", "real_time_factor")


def stoi(recording: Tensor, generated: Tensor, sample_rate: int) -> float:
    """Short-time objective intelligibility (Taal et al., 2011), up to 1; from bands below 4.3 kHz, (samples,) each.

    Raises:
        ValueError: waves of different shapes, or not finite.
        ModuleNotFoundError: pystoi is not installed.
    """
    import pystoi

    _check_waves(recording=recording, generated=generated)
    return float(pystoi.stoi(recording.double().numpy(), generated.double().numpy(), sample_rate))


def pesq(recording: Tensor, generated: Tensor, sample_rate: int) -> float:
    """Wide-band PESQ (ITU-T P.862.2), 1 to 4.6, at 16 kHz; NaN where it finds no speech. (samples,) each.

    Raises:
        ValueError: waves of different shapes, or not finite.
        ModuleNotFoundError: pesq is not installed.
    """
    import pesq

    _check_waves(recording=recording, generated=generated)
    waves = [audio.resample(wave, sample_rate, SPEECH_RATE).numpy() for wave in (recording, generated)]
    score = pesq.pesq(SPEECH_RATE, *waves, mode="wb", on_error=pesq.PesqError.RETURN_VALUES)
    return float(score) if score >= 0 else math.nan


def log_spectral_distance(
    recording: Tensor, generated: Tensor, sample_rate: int, max_frequency: float = 8000.0
) -> float:
    """Root mean square over frequency of the difference of magnitudes in dB, averaged over time; (samples,) each.

    Magnitudes are of 1,024-sample Hann windows, of bins up to ``max_frequency`` (Hz), raised to -80 dB of a full-scale
    sine.

    Raises:
        ValueError: waves of different shapes, not finite, or of 512 samples or fewer.
    """
    _check_waves(recording=recording, generated=generated)
    if len(recording) <= 512:
        raise ValueError(f"recording must be longer than 512 samples, got {len(recording)}")
    window = torch.hann_window(1024)
    spectra = torch.stft(torch.stack([recording, generated]), 1024, 256, window=window, return_complex=True).abs()
    spectra = spectra[:, : int(max_frequency / sample_rate * 1024) + 1]  # (2, bins, frames)
    decibels = 20 * spectra.clamp(min=1e-4 * window.sum() / 2).log10()
    return (decibels[0] - decibels[1]).square().mean(0).sqrt().mean().item()


def mel_cepstral_distortion(recording: Tensor, generated: Tensor, sample_rate: int) -> float:
    """Mel-cepstral distortion (Kubichek, 1993), dB, 0 for a copy; (samples,) each.

    Mean over frames of ``10 / ln 10 sqrt(2 sum_k (c_k - c'_k)^2)``, k = 1 to 13, of the cepstra of 40 mel magnitudes:
    ``ln M_n = c_0 / 2 + sum_k c_k cos(pi k (n + 1/2) / 40)``. So it is the root mean square over the mel axis of the
    difference in dB of the smoothed envelopes; ``c_0``, the level, is left out. Figures taken with other cepstra
    (WORLD's, orthonormal ones, other orders) are on another scale.

    Raises:
        ValueError: waves of different shapes, or not finite.
    """
    _check_waves(recording=recording, generated=generated)
    waves = torch.stack([audio.resample(wave.double(), sample_rate, SPEECH_RATE) for wave in (recording, generated)])
    mels = audio.log_mel(waves, CEPSTRAL_MEL)  # (2, bands, frames)
    bands = CEPSTRAL_MEL.n_mels
    axis = (torch.arange(bands, dtype=torch.float64) + 0.5) * (math.pi / bands)
    cosines = (torch.arange(1, CEPSTRA + 1)[:, None] * axis).cos()
    differences = 2 / bands * cosines @ (mels[0] - mels[1])  # (cepstra, frames)
    return 10 / math.log(10) * (2 * differences.square().sum(0)).sqrt().mean().item()


def f0(wave: Tensor, sample_rate: int) -> Tensor:
    """Fundamental frequency by probabilistic YIN (Mauch and Dixon, 2014), Hz, every 10 ms, NaN where unvoiced.

    librosa's, at 16 kHz: 65 to 500 Hz in steps of 10 cents, windows of 64 ms, its default prior.

    Args:
        wave: (samples,).
        sample_rate: Hz, of ``wave``.

    Returns:
        (frames,) float64, frames = 1 + samples at 16 kHz // 160.

    Raises:
        ValueError: a wave of another shape, or not finite.
        ModuleNotFoundError: librosa is not installed.
    """
    import librosa

    _check_waves(wave=wave)
    wave = audio.resample(wave, sample_rate, SPEECH_RATE).numpy()
    track, *_ = librosa.pyin(wave, sr=SPEECH_RATE, fmin=65, fmax=500, frame_length=1024, hop_length=160)
    return torch.from_numpy(track)


def f0_rmse(recording: Tensor, generated: Tensor) -> float:
    """Root mean square difference of two tracks of :func:`f0`, cents, over frames voiced in both; NaN without any.

    Raises:
        ValueError: tracks of different shapes.
    """
    _check_shapes("frames", recording=recording, generated=generated)
    cents = 1200 * (generated / recording).log2()
    return cents[~cents.isnan()].square().mean().sqrt().item()


def voicing_error(recording: Tensor, generated: Tensor) -> float:
    """Share of frames, 0 to 1, that are voiced in one of two tracks of :func:`f0` and unvoiced in the other.

    Raises:
        ValueError: tracks of different shapes.
    """
    _check_shapes("frames", recording=recording, generated=generated)
    return (recording.isnan() != generated.isnan()).double().mean().item()


@torch.inference_mode()
def log_likelihood(model: WaveNet, wave: Tensor) -> float:
    """Nats per sample that an autoregressive model gives a recording, (samples,) at its sample rate."""
    mel = audio.log_mel(wave[None], model.config.mel)
    frames = len(wave) // model.config.mel.hop_length
    wave = model.emphasis(wave[None, : frames * model.config.mel.hop_length])
    parameters = model(wave, model.with_context(mel[..., :frames]))
    return model.distribution.log_prob(parameters, wave).mean().item() + math.log(model.emphasis.gain)


def evaluate_voice(voice: Vocoder | Model | GriffinLim, clips: Iterable[Clip], seed: int = 0) -> list[dict]:
    """Vocodes clips from their own mels and compares.

    Args:
        voice: what generates.
        clips: the recordings.
        seed: of the noise.

    Returns:
        One row per clip: clip, source_rate (Hz, of the file), seconds, stoi, pesq, lsd and mcd (dB), f0_rmse (cents),
        voicing_error, log_likelihood (nats per sample) where the model is autoregressive, and of generation alone
        samples_per_second and real_time_factor (seconds of speech per second; above 1 is faster).

    Raises:
        OSError, ValueError: a clip that cannot be read; generated speech that is not finite.
        ModuleNotFoundError: pystoi, pesq or librosa is not installed.
    """
    require_metrics("pystoi", "pesq", "librosa")
    spec, model = voice.config.mel, getattr(voice, "model", voice)
    rate = spec.sample_rate
    rows = []
    for clip in clips:
        wave = audio.read(clip.path, rate)
        mel = audio.log_mel(wave[None], spec)
        started = time.perf_counter()
        generated = voice.generate(mel, seed=seed)[0].float().cpu()
        elapsed = time.perf_counter() - started
        samples = min(len(wave), len(generated))
        pair = wave[:samples], generated[:samples]
        row = {"clip": clip.name, "source_rate": clip.sample_rate, "seconds": len(wave) / rate}
        row |= {"stoi": stoi(*pair, rate), "pesq": pesq(*pair, rate)}
        row |= {"lsd": log_spectral_distance(*pair, rate), "mcd": mel_cepstral_distortion(*pair, rate)}
        tracks = [f0(wave, rate) for wave in pair]
        row |= {"f0_rmse": f0_rmse(*tracks), "voicing_error": voicing_error(*tracks)}
        if hasattr(model, "distribution"):
            row["log_likelihood"] = log_likelihood(model, wave)
        row |= {"samples_per_second": len(wave) / elapsed, "real_time_factor": row["seconds"] / elapsed}
        rows.append(row)
    return rows


def means(rows: Sequence[dict]) -> list[dict]:
    """The mean over the clips of each source rate, highest rate first: source_rate, clips, and the metrics.

    Speeds are those of all clips together: everything generated over the time that it took.
    """
    groups = []
    for rate in sorted({row["source_rate"] for row in rows}, reverse=True):
        group = [row for row in rows if row["source_rate"] == rate]
        metrics = [name for name in group[0] if name not in ("clip", "source_rate", "seconds", *SPEEDS)]
        mean = {name: sum(row[name] for row in group) / len(group) for name in metrics}
        seconds = sum(row["seconds"] for row in group)
        mean |= {name: seconds / sum(row["seconds"] / row[name] for row in group) for name in SPEEDS}
        groups.append({"source_rate": rate, "clips": len(group)} | mean)
    return groups


def _check_shapes(axis: str, **tracks: Tensor) -> None:
    first, length = next((name, track.numel()) for name, track in tracks.items())
    for name, track in tracks.items():
        if track.ndim != 1 or not len(track):
            raise ValueError(f"{name} must be ({axis},), got {tuple(track.shape)}")
        if len(track) != length:
            raise ValueError(f"{name} must have {length} {axis} as {first} has, got {len(track)}")


def _check_waves(**waves: Tensor) -> None:
    _check_shapes("samples", **waves)
    for name, wave in waves.items():
        if not wave.isfinite().all():
            raise ValueError(f"{name} must be finite, got {wave[~wave.isfinite()][0].item()}")


def require_metrics(*names: str) -> None:
    """ModuleNotFoundError where one of the metrics' libraries of these names is missing."""
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            raise ModuleNotFoundError(f"{name} is not installed; pip install 'fastwave[metrics]' installs it") from None
