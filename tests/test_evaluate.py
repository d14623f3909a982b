"""Metrics of generated speech, and the tables that they make."""

import dataclasses
import math
import sys
import types
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from refusals import assert_refused
from speech import RATE, noise, speech_like

from fastwave import audio, evaluate, models
from fastwave.audio import MelSpec
from fastwave.emphasis import Emphasis
from fastwave.models import WaveNetConfig
from fastwave.train.data import Clip, find_clips, select

LJ = Path(__file__).parents[2] / "shared" / "data" / "lj"


def test_a_perfect_copy():
    wave = speech_like()
    assert evaluate.stoi(wave, wave, RATE) == pytest.approx(1.0, abs=1e-4)
    assert evaluate.pesq(wave, wave, RATE) == pytest.approx(4.64, abs=0.01)
    assert evaluate.log_spectral_distance(wave, wave, RATE) == 0
    assert evaluate.mel_cepstral_distortion(wave, wave, RATE) == 0


def test_noise_makes_it_worse():
    wave = speech_like()
    scores = [
        [metric(wave, wave + level * noise(len(wave), 1), RATE) for level in (0.003, 0.03, 0.3)]
        for metric in (
            evaluate.stoi,
            evaluate.pesq,
            evaluate.log_spectral_distance,
            evaluate.mel_cepstral_distortion,
        )
    ]
    stoi, pesq, distance, distortion = scores
    assert stoi == sorted(stoi, reverse=True)
    assert pesq == sorted(pesq, reverse=True)
    assert distance == sorted(distance)
    assert distortion == sorted(distortion)


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


@pytest.mark.parametrize(
    ("k", "expected", "tolerance"), [(0, 0.0, 0.01), (1, 4.0, 0.1), (2, 4.0, 0.1), (5, 4.0, 0.1), (20, 0.0, 0.6)]
)
def test_mel_cepstral_distortion_of_a_known_envelope(k, expected, tolerance):
    """ln magnitudes that differ by a cos(pi k x), x from 0 to 1 along the mel axis, are 10 / ln 10 sqrt(2) a dB apart.

    Not so k = 0, the level, and k above 13. A band averages noise under a gain that varies within it: k = 20, half of
    whose period is two bands, leaks a little into the lower cepstra.
    """
    rate, a = 16_000, 4.0 * math.log(10) / (10 * math.sqrt(2))
    wave = 0.1 * noise(4 * rate).double()
    hz = torch.fft.rfftfreq(len(wave), 1 / rate).numpy()
    low, high = librosa.hz_to_mel(np.array([40.0, 8000.0]))
    step = (high - low) / 41  # the centres of 40 triangles stand between 42 edges
    position = ((librosa.hz_to_mel(hz) - low) / step - 0.5) / 40
    gain = np.exp(a * np.cos(np.pi * k * position.clip(0, 1)))
    filtered = torch.fft.irfft(torch.fft.rfft(wave) * torch.from_numpy(gain), n=len(wave))
    distortion = evaluate.mel_cepstral_distortion(wave, filtered, rate)
    assert distortion == pytest.approx(expected, abs=tolerance)


def test_mel_cepstral_distortion_is_that_of_librosas_cepstra():
    recording = speech_like().double()
    generated = recording + 0.01 * noise(len(recording), 2)
    cepstra = []
    for wave in (recording, generated):
        mel = librosa.feature.melspectrogram(
            y=audio.resample(wave, RATE, 16_000).numpy(),
            sr=16_000,
            n_fft=512,
            win_length=400,
            hop_length=80,
            power=1.0,
            n_mels=40,
            fmin=40.0,
            fmax=8000.0,
            norm=None,
        )
        logarithm = np.log(np.maximum(mel, 1e-2))
        cepstra.append(librosa.feature.mfcc(S=logarithm, n_mfcc=14, norm=None)[1:] / 40)
    difference = cepstra[0] - cepstra[1]
    expected = (10 / math.log(10) * np.sqrt(2 * (difference**2).sum(0))).mean()
    assert expected > 1
    assert evaluate.mel_cepstral_distortion(recording, generated, RATE) == pytest.approx(expected, rel=1e-5)


def test_mel_cepstral_distortion_has_a_floor():
    silence = torch.zeros(RATE)
    assert evaluate.mel_cepstral_distortion(silence, 1e-5 * noise(RATE), RATE) == 0


def glide(start: float, end: float, seconds: float = 1.5) -> torch.Tensor:
    """Ten harmonics of a frequency that rises evenly, Hz."""
    time = torch.arange(int(seconds * RATE), dtype=torch.float64) / RATE
    phase = 2 * math.pi * (start * time + (end - start) / (2 * seconds) * time.square())
    return (0.2 * sum((k * phase).sin() / k for k in range(1, 11))).float()


def test_f0_of_a_glide():
    wave = glide(120.0, 240.0)
    track = evaluate.f0(wave, RATE)
    true = 120 + 120 / 1.5 * 0.01 * torch.arange(len(track))
    assert len(track) == 151
    inside = slice(4, -4)  # windows that end within the wave
    assert (1200 * (track / true).log2())[inside].abs().max() < 10  # the step of its grid

    semitone = 2 ** (1 / 12)
    other = evaluate.f0(glide(120.0 * semitone, 240.0 * semitone), RATE)
    assert evaluate.f0_rmse(track, other) == pytest.approx(100, abs=1)
    assert evaluate.voicing_error(track, other) < 0.02


def test_f0_where_there_is_none():
    silence = evaluate.f0(torch.zeros(RATE), RATE)
    assert silence.isnan().all()
    wave = glide(150.0, 150.0)
    half = wave.clone()
    half[len(half) // 2 :] = 0
    tracks = evaluate.f0(wave, RATE), evaluate.f0(half, RATE)
    assert evaluate.voicing_error(*tracks) == pytest.approx(0.5, abs=0.04)
    assert evaluate.f0_rmse(*tracks) < 10
    assert evaluate.voicing_error(silence, silence) == 0
    assert math.isnan(evaluate.f0_rmse(silence, evaluate.f0(glide(150.0, 150.0, 1.0), RATE)))


def test_f0_errors_of_known_tracks():
    recording = torch.tensor([100.0, 200.0, math.nan, 300.0, math.nan])
    generated = torch.tensor([200.0, 200.0, 100.0, math.nan, math.nan])
    assert evaluate.f0_rmse(recording, generated) == pytest.approx(1200 / math.sqrt(2))  # an octave, and nothing
    assert evaluate.voicing_error(recording, generated) == pytest.approx(2 / 5)


WAVES = {"stoi", "pesq", "log_spectral_distance", "mel_cepstral_distortion"}
BAD_WAVES = [
    (torch.zeros(1, 9), torch.zeros(9), "recording must be (samples,), got (1, 9)"),
    (torch.zeros(0), torch.zeros(0), "recording must be (samples,), got (0,)"),
    (torch.tensor(0.0), torch.zeros(9), "recording must be (samples,), got ()"),
    (torch.zeros(9), torch.zeros(9, 1), "generated must be (samples,), got (9, 1)"),
    (torch.zeros(9), torch.zeros(8), "generated must have 9 samples as recording has, got 8"),
    (torch.tensor([0.0, math.inf]), torch.zeros(2), "recording must be finite, got inf"),
    (torch.zeros(2), torch.tensor([math.nan, 0.0]), "generated must be finite, got nan"),
]


@pytest.mark.parametrize("name", sorted(WAVES))
@pytest.mark.parametrize(("recording", "generated", "message"), BAD_WAVES)
def test_waves_that_do_not_compare(name, recording, generated, message):
    assert_refused(lambda: getattr(evaluate, name)(recording, generated, RATE), message)


@pytest.mark.parametrize("metric", [evaluate.f0_rmse, evaluate.voicing_error])
@pytest.mark.parametrize(
    ("recording", "generated", "message"),
    [
        (torch.zeros(1, 9), torch.zeros(9), "recording must be (frames,), got (1, 9)"),
        (torch.zeros(9), torch.zeros(8), "generated must have 9 frames as recording has, got 8"),
    ],
)
def test_tracks_that_do_not_compare(metric, recording, generated, message):
    assert_refused(lambda: metric(recording, generated), message)


def test_more_waves_that_are_refused():
    assert_refused(lambda: evaluate.f0(torch.zeros(2, 9), RATE), "wave must be (samples,), got (2, 9)")
    assert_refused(lambda: evaluate.f0(torch.tensor([math.nan]), RATE), "wave must be finite, got nan")
    short = torch.zeros(512)
    message = "recording must be longer than 512 samples, got 512"
    assert_refused(lambda: evaluate.log_spectral_distance(short, short, RATE), message)


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

    # a model of speech four times as loud that foretells the same is as likely
    louder = models.WaveNet(dataclasses.replace(config, emphasis=Emphasis(gain=4.0))).eval()
    louder.load_state_dict(model.state_dict())
    with torch.no_grad():
        louder.stack.front.weight /= 4
        louder.stack.head[-1].weight[0] *= 4
        louder.stack.head[-1].bias += louder.stack.head[-1].bias.new_tensor([0, math.log(4)])
        louder.stack.head[-1].bias[0] *= 4
    assert evaluate.log_likelihood(louder, wave) == pytest.approx(expected, rel=1e-5)


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
    metrics = {"stoi", "pesq", "lsd", "mcd", "f0_rmse", "voicing_error", "samples_per_second", "real_time_factor"}
    assert all(set(row) == {"clip", "source_rate", "seconds"} | metrics for row in rows)
    assert rows[0]["mcd"] < 0.01 and rows[0]["f0_rmse"] == rows[0]["voicing_error"] == 0
    assert rows[2]["mcd"] > 1
    assert rows[0]["stoi"] > 0.999 and rows[1]["stoi"] > 0.999 and rows[2]["stoi"] < 0.99
    assert rows[0]["seconds"] == pytest.approx(1.5, abs=1e-3)

    means = evaluate.means(rows)
    assert [(mean["source_rate"], mean["clips"]) for mean in means] == [(RATE, 2), (16_000, 1)]
    assert means[0]["pesq"] == pytest.approx((rows[0]["pesq"] + rows[2]["pesq"]) / 2)


class Clock:
    """A clock that a voice sets forward."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_speed_is_of_generation_alone(tmp_path, monkeypatch):
    """In a mean it is all speech over all time, not the mean of speeds."""
    clock = Clock()
    monkeypatch.setattr(evaluate, "time", clock)
    clips, waves = [], [speech_like(1.0), speech_like(3.0)]
    for i, wave in enumerate(waves):
        audio.write(tmp_path / f"{i}.wav", wave, RATE)
        clips.append(Clip(name=str(i), path=tmp_path / f"{i}.wav", sample_rate=RATE, samples=len(wave)))

    class Slow(Copy):
        def generate(self, mel: torch.Tensor, seed: int) -> torch.Tensor:
            clock.now += {2: 0.5, 1: 6.0}[len(self.waves)]
            return super().generate(mel, seed)

    rows = evaluate.evaluate_voice(Slow(*waves), clips)
    assert [row["real_time_factor"] for row in rows] == pytest.approx([2.0, 0.5])
    assert [row["samples_per_second"] for row in rows] == pytest.approx([2 * RATE, RATE / 2])
    (mean,) = evaluate.means(rows)
    assert mean["real_time_factor"] == pytest.approx(4 / 6.5)
    assert mean["samples_per_second"] == pytest.approx(4 / 6.5 * RATE)


def test_a_voice_that_diverged(tmp_path):
    audio.write(tmp_path / "a.wav", speech_like(), RATE)
    clips = find_clips(tmp_path)
    assert_refused(
        lambda: evaluate.evaluate_voice(Copy(torch.full((RATE,), math.nan)), clips),
        "generated must be finite, got nan",
    )


@pytest.mark.parametrize("missing", ["pesq", "pystoi", "librosa"])
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
    assert 2 < row["mcd"] < 10
    assert row["f0_rmse"] < 100 and row["voicing_error"] < 0.3
    assert row["source_rate"] == 16_000
