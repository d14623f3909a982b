"""A flow that hums: its loss against sines, the fundamental that it follows, and a run."""

import math

import pytest
import torch
from trainings import assert_resumes, log_lines

from fastwave import audio, cli
from fastwave.audio import MelSpec
from fastwave.emphasis import Emphasis
from fastwave.models import ClariNetStudent, ClariNetStudentConfig
from fastwave.train import loop
from fastwave.train.oscillator import DILATIONS, WINDOWS, Oscillator, OscillatorTraining, fundamental, unsteadiness

RATE = 8000
MEL = MelSpec(sample_rate=RATE, n_fft=256, hop_length=64, win_length=256, n_mels=16, fmax=4000.0)
STUDENT = ClariNetStudentConfig(
    mel=MEL,
    emphasis=Emphasis(coefficient=0.85, gain=4.0),
    flows=((1, 2), (1, 2)),
    front_width=32,
    residual_channels=8,
    gate_channels=8,
    skip_channels=8,
    upsample_scales=(8,),
    cond_repeat=8,
)


def voice(seconds: float, pitch: float = 150.0, seed: int = 0) -> torch.Tensor:
    """(samples,): harmonics whose pitch glides by a tenth, then as much noise, far weaker."""
    time = torch.arange(int(seconds / 2 * RATE)) / RATE
    phase = 2 * math.pi * pitch * (time + 0.1 * time.square() / seconds)
    tone = sum((k * phase).sin() / k for k in range(1, 8))
    noise = torch.randn(2 * len(tone), generator=torch.Generator().manual_seed(seed))
    return 0.1 * torch.cat([tone, torch.zeros_like(tone)]) + 0.001 * noise


@pytest.fixture
def start(tmp_path):
    torch.manual_seed(1)
    ClariNetStudent(STUDENT).save(tmp_path / "student")
    return str(tmp_path / "student")


@pytest.fixture
def clips(tmp_path):
    (tmp_path / "clips").mkdir()
    audio.write(tmp_path / "clips" / "voice.wav", voice(8)[: 4 * RATE], RATE)
    return tmp_path / "clips"


def test_a_steady_sine_has_no_loss():
    phase = 2 * math.pi * 0.02 * torch.arange(12000.0)[None]
    voiced = torch.ones_like(phase)
    for constant in (0.0, 1.0, 3.0):
        assert unsteadiness((phase + constant).sin(), phase, voiced) < 1e-3
    assert abs(unsteadiness(torch.zeros_like(phase), phase, voiced) - len(WINDOWS)) < 1e-2
    assert unsteadiness((1.05 * phase).sin(), phase, voiced) > 2
    one_slip = phase + math.pi * (torch.arange(12000) > 6000)
    assert 0.1 < unsteadiness(one_slip.sin(), phase, voiced) < 1
    halved = unsteadiness(0.5 * phase.sin(), phase, voiced)
    assert abs(halved - len(WINDOWS) / 4) < 1e-2


def test_silence_is_steady_where_there_is_no_voice():
    phase = 2 * math.pi * 0.02 * torch.arange(12000.0)[None]
    voiced = (torch.arange(12000.0)[None] < 6000).float()
    assert unsteadiness(phase.sin() * voiced, phase, voiced) < 0.1
    silent = torch.zeros_like(phase)
    assert unsteadiness(silent, silent, silent) < 1e-2


def test_the_fundamental_of_a_glide():
    wave = voice(4, 150.0)
    phase, voiced = fundamental(torch.stack([wave, 0.001 * torch.randn(len(wave))]), RATE)
    assert phase.shape == voiced.shape == (2, len(wave)) and phase.dtype == wave.dtype
    half = len(wave) // 2
    assert voiced[0, :half].mean() > 0.9 and voiced[0, half:].mean() < 0.2 and voiced[1].mean() < 0.2
    time = torch.arange(half) / RATE
    sine = (2 * math.pi * 150 * (time + 0.1 * time.square() / 4)).sin()[None]
    inner = slice(2000, half - 2000)
    assert unsteadiness(sine[:, inner], phase[:1, inner], torch.ones_like(sine[:, inner])) < 0.2


def make(start, folder, **changes) -> OscillatorTraining:
    return OscillatorTraining(start=start, data=folder, out=folder / "run", **changes)


def test_a_flow_more(start, tmp_path):
    """Before those of the student, which stay, as the conditioner does; at first it passes nearly all the noise."""
    training = make(start, tmp_path)
    model, student = training.make_model([]), training.first_model()
    assert model.config.flows == (tuple(DILATIONS), *STUDENT.flows)
    torch.testing.assert_close(model.flows[1:].state_dict(), student.flows.state_dict(), rtol=0, atol=0)
    objective = Oscillator(model, training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wave, mel = voice(2)[None, :12800], torch.randn(1, 16, 200)
    _, log_sigma = model.flow_parameters(model.flows[0], torch.randn_like(wave), model.upsampler(mel), False)
    assert log_sigma.abs().max() < 1
    for _ in range(2):  # SOAP's first step only looks
        ((name, loss),) = objective.losses(wave, mel, 0)
        assert name == "model" and loss.isfinite()
        torch.testing.assert_close(sum(objective.terms.values()), loss)
        loss.backward()
        objective.learners["model"].optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("flows.0.") for name in changed)


def test_learns_to_hum(start, clips):
    training = make(start, clips, frames=100, steps=80, interval=20, warmup=10, learning_rate=1e-2)
    loop.run(training, quiet=True)
    lines = log_lines(training)
    assert lines[-1]["unsteadiness"] < 0.6 * lines[0]["unsteadiness"]
    assert lines[-1]["sigma"] < 0.05


def test_resumes(tmp_path, start):
    assert_resumes(OscillatorTraining, STUDENT, tmp_path, start=start, config=None, frames=100)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"start": "lj-teacher"}, "start must be a ClariNetStudent, got 'lj-teacher'"),
        ({"start": None}, "start must be the student whose flows the oscillator goes before, got none"),
        ({"config": "config.json"}, "config must be absent, for start has one, got 'config.json'"),
        ({"frames": 96}, "frames must be above 96, got 96"),
    ],
)
def test_errors(tmp_path, start, clips, changes, message, capsys):
    values = {"start": start, "data": clips, "out": tmp_path / "run"} | changes
    words = [w for name, value in values.items() if value is not None for w in (f"--{name}", str(value))]
    assert cli.main(["train", "oscillator", *words, "-q"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
