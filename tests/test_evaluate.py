"""Metrics of generated speech, and the tables that they make."""

import math
import sys
import types
from pathlib import Path

import pytest
import torch

from fastwave import audio, evaluate, models
from fastwave.audio import MelSpec
from fastwave.models import WaveNetConfig
from fastwave.train.data import Clip, find_clips, select

LJ = Path(__file__).parents[2] / "shared" / "data" / "lj"
RATE = 22_050


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def speech_like(seconds: float = 1.5) -> torch.Tensor:
    """Harmonics of a gliding pitch under syllables."""
    time = torch.arange(int(seconds * RATE)) / RATE
    phase = 2 * math.pi * (120 * time + 20 * time.square())
    harmonics = sum(torch.sin(k * phase) / k for k in range(1, 30))
    return 0.2 * harmonics * torch.sin(2 * math.pi * 3 * time).clamp(min=0) + 0.001 * noise(len(time))


def test_a_perfect_copy():
    wave = speech_like()
    assert evaluate.stoi(wave, wave, RATE) == pytest.approx(1.0, abs=1e-4)
    assert evaluate.pesq(wave, wave, RATE) == pytest.approx(4.64, abs=0.01)
    assert evaluate.log_spectral_distance(wave, wave, RATE) == 0


def test_noise_makes_it_worse():
    wave = speech_like()
    scores = [
        [metric(wave, wave + level * noise(len(wave), 1), RATE) for level in (0.003, 0.03, 0.3)]
        for metric in (evaluate.stoi, evaluate.pesq, evaluate.log_spectral_distance)
    ]
    stoi, pesq, distance = scores
    assert stoi == sorted(stoi, reverse=True)
    assert pesq == sorted(pesq, reverse=True)
    assert distance == sorted(distance)


def test_log_spectral_distance_is_in_decibels():
    loud = 0.5 * noise(20_000)
    assert evaluate.log_spectral_distance(loud, loud / 10, RATE) == pytest.approx(20, abs=0.01)
    silence = torch.zeros(20_000)
    assert evaluate.log_spectral_distance(silence, 1e-6 * loud, RATE) == 0  # both are below its floor
    wave, above = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0)), torch.arange(20_000) / RATE
    hiss = 0.5 * torch.sin(2 * math.pi * 10_000 * above)
    assert evaluate.log_spectral_distance(wave[0], wave[0] + hiss, RATE) < 0.1  # above its band


def test_pesq_without_speech():
    assert math.isnan(evaluate.pesq(torch.zeros(RATE), 0.1 * noise(RATE), RATE))


def test_log_likelihood_is_that_of_the_loss():
    """Of whole frames, under the loss's density without its floor."""
    config = WaveNetConfig(
        mel=MelSpec(sample_rate=8000, n_fft=64, hop_length=16, win_length=64, n_mels=6, fmax=4000.0),
        train_log_scale_min=-math.inf,
        residual_channels=4,
        gate_channels=4,
        skip_channels=4,
        kernel_size=2,
        dilations=(1, 2),
        upsample_scales=(4, 4),
    )
    torch.manual_seed(0)
    model = models.WaveNet(config).eval()
    wave = 0.1 * noise(333)
    mel = audio.log_mel(wave[None], config.mel)[..., :20]
    with torch.no_grad():
        expected = -model.loss(wave[None, :320], mel).item()
    assert evaluate.log_likelihood(model, wave) == pytest.approx(expected, rel=1e-5)


class Copy:
    """A voice that plays back: its k-th call gives its k-th wave, in whole frames."""

    def __init__(self, *waves: torch.Tensor):
        self.config = types.SimpleNamespace(mel=MelSpec.preset("fastwave"))
        self.waves = list(waves)

    def generate(self, mel: torch.Tensor, seed: int) -> torch.Tensor:
        wave = self.waves.pop(0)
        samples = mel.shape[-1] * self.config.mel.hop_length
        return torch.nn.functional.pad(wave, (0, samples - len(wave)))[None]


def test_evaluate_voice(tmp_path):
    rates = (RATE, 16_000, RATE)
    clips = []
    for i, rate in enumerate(rates):
        path = tmp_path / f"{i}.flac"
        wave = audio.resample(0.5 * speech_like(), RATE, rate)
        audio.write(path, wave, rate)
        clips.append(Clip(name=str(i), path=path, sample_rate=rate, samples=len(wave)))
    waves = [audio.read(clip.path, RATE) for clip in clips]
    waves[2] = waves[2] + 0.05 * noise(len(waves[2]))
    rows = evaluate.evaluate_voice(Copy(*waves), clips)
    assert [row["clip"] for row in rows] == ["0", "1", "2"]
    assert all(set(row) == {"clip", "source_rate", "seconds", "stoi", "pesq", "lsd"} for row in rows)
    assert rows[0]["stoi"] > 0.999 and rows[1]["stoi"] > 0.999 and rows[2]["stoi"] < 0.99
    assert rows[0]["seconds"] == pytest.approx(1.5, abs=1e-3)

    means = evaluate.means(rows)
    assert [(mean["source_rate"], mean["clips"]) for mean in means] == [(RATE, 2), (16_000, 1)]
    assert means[0]["pesq"] == pytest.approx((rows[0]["pesq"] + rows[2]["pesq"]) / 2)


@pytest.mark.parametrize("missing", ["pesq", "pystoi"])
def test_metrics_that_are_not_installed(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"{missing} is not installed; pip install 'fastwave\[metrics\]' installs it"
    ):
        evaluate.evaluate_voice(Copy(), [])


@pytest.mark.skipif(not LJ.is_dir(), reason="needs the clips of LJ Speech beside the repository")
def test_real_speech_through_noise():
    """The figures of speech in noise at 20 dB lie where they lie for everybody's."""
    clips, _ = select(find_clips(LJ), ["LJ050-0269"])
    wave = audio.read(clips[0].path, RATE)
    (row,) = evaluate.evaluate_voice(Copy(wave + 0.1 * wave.std() * noise(len(wave))), clips)
    assert 0.9 < row["stoi"] < 1
    assert 1.1 < row["pesq"] < 3
    assert row["source_rate"] == 16_000
