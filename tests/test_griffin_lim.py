"""Griffin-Lim from the mels of every project, and the inversion of a mel before it."""

import dataclasses
import math

import pytest
import torch
from refusals import assert_refused
from speech import speech_like
from trainings import LJ, needs_speech

from fastwave import audio, evaluate
from fastwave.audio import PRESETS, MelSpec
from fastwave.griffin_lim import GriffinLim, GriffinLimConfig
from fastwave.train.data import find_clips, select

STATISTICS = {"mean": tuple(-4 + 0.01 * band for band in range(80)), "std": tuple(1 + 0.01 * b for b in range(80))}
SPECS = PRESETS | {
    "standardised": dataclasses.replace(PRESETS["kan-bayashi/ParallelWaveGAN"], **STATISTICS),
    "narrow bands": MelSpec(n_fft=512, win_length=512, hop_length=128, n_mels=160),  # some hold no bin
}


def transform(wave: torch.Tensor, spec: MelSpec) -> torch.Tensor:
    """Magnitudes of (batch, samples) under a Hann window."""
    window = torch.hann_window(spec.win_length, dtype=wave.dtype)
    return torch.stft(
        wave, spec.n_fft, spec.hop_length, spec.win_length, window, pad_mode=spec.padding, return_complex=True
    ).abs()


@pytest.mark.parametrize("name", SPECS)
def test_a_spectrum_at_its_scale(name):
    """As much magnitude, or power, as there was; not exactly, for the pitch glides in at the lowest band's edge."""
    spec, wave = dataclasses.replace(SPECS[name], log_range=None), speech_like()[None]  # some ranges clip loud bands
    spectrum = audio.linear_spectrum(audio.log_mel(wave, spec), spec)
    if spec.peak is not None:
        wave = wave * (spec.peak / wave.abs().max())
    expected = transform(wave, spec)
    assert spectrum.shape == expected.shape and spectrum.min() >= 0
    spectrum, expected = spectrum.pow(spec.power), expected.pow(spec.power)
    hz = torch.linspace(0, spec.sample_rate / 2, spec.n_fft // 2 + 1)
    inside = (hz > max(spec.fmin, 100)) & (hz < spec.fmax - 200)
    assert (spectrum[:, inside].sum() / expected[:, inside].sum()).item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", SPECS)
def test_the_mel_of_a_spectrum(name):
    """Magnitudes that a mel was made of are found again as far as the mel tells."""
    spec = dataclasses.replace(SPECS[name], peak=None, preemphasis=0.0)
    mel = audio.log_mel(speech_like()[None].double(), spec)
    spectrum = audio.linear_spectrum(mel, spec)
    if spec.normalized:
        spectrum = spectrum / math.sqrt(0.375 * spec.win_length)  # the norm of a periodic Hann window
    filterbank = audio.mel_filterbank(spec)
    again = (filterbank @ spectrum.pow(spec.power)).clamp(min=spec.floor).log()
    again = again * {"ln": 1, "log10": 1 / math.log(10), "db": 20 / math.log(10)}[spec.log]
    if spec.log_range:
        low, high = spec.log_range
        again = ((again - low) / (high - low)).clamp(0, 1)
    if spec.mean:
        again = (again - torch.tensor(spec.mean)[:, None]) / torch.tensor(spec.std)[:, None]
    filled = filterbank.sum(dim=1) > 0
    assert (again - mel)[:, filled].abs().mean() < 0.02 * mel.std()


@pytest.mark.parametrize("name", SPECS)
def test_round_trip(name):
    """STOI was 0.979 to 0.998 when this was written; 0.834, at half the level, where the range clips loud bands."""
    spec, wave = SPECS[name], speech_like()
    mel = audio.log_mel(wave[None], spec)
    generated = GriffinLim(GriffinLimConfig(mel=spec)).generate(mel)
    assert generated.shape == (1, mel.shape[-1] * spec.hop_length)
    stoi = evaluate.stoi(wave, generated[0, : len(wave)], spec.sample_rate)
    clips = name in ("ksw0306/ClariNet", "ksw0306/FloWaveNet")
    assert stoi > (0.8 if clips else 0.96)
    scale = 1 if spec.peak is None else spec.peak / wave.abs().max()
    assert generated.std() / (scale * wave.std()) == pytest.approx(0.47 if clips else 1, abs=0.05)


@needs_speech
def test_real_speech():
    clips, _ = select(find_clips(LJ), ["LJ001-0030"])
    (row,) = evaluate.evaluate_voice(GriffinLim(GriffinLimConfig(mel=MelSpec())), clips)
    assert row["stoi"] > 0.97
    assert row["pesq"] > 3.3
    assert row["mcd"] < 2
    assert row["f0_rmse"] < 40 and row["voicing_error"] < 0.1


def inconsistency(wave: torch.Tensor, magnitudes: torch.Tensor, spec: MelSpec) -> float:
    """How far the magnitudes of a waveform are from those that were wanted, as a share of these."""
    found = transform(wave, dataclasses.replace(spec, padding="constant"))[..., : magnitudes.shape[-1]]
    return ((found - magnitudes).norm() / magnitudes.norm()).item()


def test_iterations_come_closer():
    """The original algorithm never goes back; the fast one gets further in as many iterations."""
    spec = MelSpec()
    mel = audio.log_mel(speech_like()[None], spec)
    magnitudes = audio.linear_spectrum(mel, spec)

    def after(iterations: int, momentum: float) -> float:
        config = GriffinLimConfig(mel=spec, iterations=iterations, momentum=momentum)
        return inconsistency(GriffinLim(config).generate(mel), magnitudes, spec)

    original = [after(iterations, 0.0) for iterations in (0, 1, 5, 30)]
    assert original == sorted(original, reverse=True)
    assert original[-1] < 0.5 * original[0]
    assert after(30, 0.99) < 0.9 * original[-1]


def test_seeds_and_batches():
    spec = MelSpec()
    mel = audio.log_mel(torch.stack([speech_like(), speech_like().flip(0)])[:, :8000], spec)
    griffin_lim = GriffinLim(GriffinLimConfig(mel=spec, iterations=2))
    both = griffin_lim.generate(mel, seed=3)
    assert torch.equal(both, griffin_lim.generate(mel, seed=3))
    assert not torch.equal(both, griffin_lim.generate(mel, seed=4))
    assert torch.allclose(both[:1], griffin_lim.generate(mel[:1], seed=3), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("hop_length", [100, 512])
def test_short_mels(dtype, frames, hop_length):
    config = GriffinLimConfig(mel=MelSpec(hop_length=hop_length))
    wave = GriffinLim(config).generate(torch.full((1, 80, frames), 0.5, dtype=dtype))
    assert wave.shape == (1, frames * hop_length) and wave.dtype == dtype
    assert wave.isfinite().all() and wave.std() > 0


@pytest.mark.parametrize("name", SPECS)
def test_silence(name):
    spec = SPECS[name]
    wave = GriffinLim(GriffinLimConfig(mel=spec)).generate(audio.log_mel(torch.zeros(1, 8000), spec))
    assert wave.isfinite().all() and wave.abs().max() < 0.02


def test_errors():
    spec = MelSpec()
    griffin_lim = GriffinLim(GriffinLimConfig(mel=spec))
    assert_refused(
        lambda: griffin_lim.generate(torch.zeros(2, 64, 9)), "mel must be (batch, 80, frames), got (2, 64, 9)"
    )
    assert_refused(lambda: griffin_lim.generate(torch.full((1, 80, 9), math.nan)), "mel must be finite, got nan")
    assert_refused(lambda: griffin_lim.generate(torch.zeros(1, 80, 9), seed=-1), "seed must be in [0, 2**64), got -1")
    level = GriffinLim(GriffinLimConfig(mel=dataclasses.replace(spec, preemphasis=1.0)))
    message = "preemphasis must be other than 1 and -1, which cannot be undone, got 1.0"
    assert_refused(lambda: level.generate(torch.zeros(1, 80, 9)), message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": -1}, "iterations must be at least 0, got -1"),
        ({"momentum": -0.1}, "momentum must be finite and at least 0, got -0.1"),
        ({"momentum": math.inf}, "momentum must be finite and at least 0, got inf"),
        ({"mel": MelSpec(hop_length=513)}, "hop_length must be at most win_length / 2 = 512, got 513"),
    ],
)
def test_config_errors(changes, message):
    assert_refused(lambda: GriffinLimConfig(**{"mel": MelSpec()} | changes), message)
