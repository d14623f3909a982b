"""Free-running training: the gradient that goes through a teacher's sampling is what autograd makes of it."""

import dataclasses

import pytest
import torch
from trainings import assert_resumes, log_lines, options

from fastwave import audio
from fastwave.audio import MelSpec
from fastwave.emphasis import Emphasis
from fastwave.losses import LoudnessLoss
from fastwave.models import WaveNet, WaveNetConfig
from fastwave.train import free_running, loop
from fastwave.train.teacher import TeacherTraining

SPEC = MelSpec(sample_rate=8000, n_fft=64, hop_length=16, win_length=64, n_mels=6, fmax=4000.0)
CONFIG = WaveNetConfig(
    mel=SPEC,
    emphasis=Emphasis(coefficient=0.85, gain=4.0),
    clamp=100.0,
    front_width=5,
    front_relu=True,
    residual_channels=6,
    gate_channels=5,
    skip_channels=7,
    kernel_size=2,
    dilations=(1, 2, 4),
    upsample_scales=(4,),
    cond_repeat=4,
)
SHAPES = {
    "built-in": {},
    "three taps": dict(kernel_size=3, front_width=1, front_relu=False),
    "one layer": dict(dilations=(3,)),
}


def make_model(seed: int = 0, **changes) -> WaveNet:
    torch.manual_seed(seed)
    return WaveNet(dataclasses.replace(CONFIG, **changes))


def sampled(model, start, mel, noise):
    """``start``, and what the model samples after it, one teacher-forced pass for each sample; differentiable."""
    x = start
    while x.shape[1] < noise.shape[1]:
        read = torch.nn.functional.pad(x, (0, noise.shape[1] - x.shape[1]))
        mean, log_sigma = model(read, mel)[..., x.shape[1]].unbind(1)
        x = torch.cat([x, (mean + log_sigma.exp() * noise[:, x.shape[1]])[:, None]], 1)
    return x


def gradients(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("shape", SHAPES)
def test_adjoint_is_the_whole_derivative(shape):
    model = make_model(**SHAPES[shape]).double()
    mel = torch.randn(2, 6, 3, dtype=torch.float64)
    noise, goal = torch.randn(2, 2, 48, dtype=torch.float64)
    first = 7
    x = sampled(model, goal[:, :first], mel, noise)
    expected = gradients((x - goal).pow(4).sum(), model)

    x = x.detach()
    trace = []
    mean, log_sigma = model(x, mel, trace=trace).unbind(1)
    derivatives = torch.stack([torch.ones_like(noise), log_sigma.detach().exp() * noise], 1)
    total = free_running.adjoint(model.stack, trace, 4 * (x - goal).pow(3), derivatives, first)
    again = (mean + log_sigma.exp() * noise)[:, first:]
    torch.testing.assert_close(again, x[:, first:])
    torch.testing.assert_close(gradients((total * again).sum(), model), expected, rtol=1e-9, atol=1e-9)


def test_loss_and_gradient_are_those_of_free_running(monkeypatch):
    monkeypatch.setattr(free_running, "HORIZON", 48)
    monkeypatch.setattr(free_running, "GROWTH", 1e9)
    model = make_model()
    assert free_running.least_frames(model.config) == 4  # a receptive field of 12 samples, and 48; the hop is 16
    wave, mel = 0.3 * torch.randn(2, 64), torch.randn(2, 6, 4)
    distance = lambda a, b: (a - b).square().sum()  # noqa: E731
    torch.manual_seed(5)
    noise = torch.randn_like(wave)
    x = sampled(model, wave[:, :16], mel, noise)
    expected = distance(model.emphasis.undo(x), model.emphasis.undo(wave))
    torch.manual_seed(5)
    loss = free_running.free_running_loss(model, wave, mel, distance)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, model), gradients(expected, model), rtol=1e-3, atol=1e-3)


def test_a_row_that_grows_is_scaled_down(monkeypatch):
    monkeypatch.setattr(free_running, "HORIZON", 48)
    model = make_model()
    wave, mel = 0.3 * torch.randn(2, 64), torch.randn(2, 6, 4)
    lengths = []
    for growth in (1e9, 1e-3):
        monkeypatch.setattr(free_running, "GROWTH", growth)
        torch.manual_seed(5)
        loss = free_running.free_running_loss(model, wave, mel, lambda a, b: (a - b).square().sum())
        lengths.append(gradients(loss, model).norm())
    assert 0 < lengths[1] < 2e-3 * lengths[0]


def test_loudness_is_zero_of_itself_and_grows_with_the_difference():
    loudness = LoudnessLoss(dataclasses.replace(SPEC, sample_rate=22050, n_fft=1024, fmax=11025.0, n_mels=40))
    wave = torch.randn(2, 4096)
    assert loudness(wave, wave) == 0
    for quieter in (0.5, 0.25):
        assert loudness(quieter * wave, wave).item() == pytest.approx(1 - quieter**0.5, rel=1e-3)


def test_a_run_resumes(tmp_path):
    assert_resumes(TeacherTraining, CONFIG, tmp_path, free_running=1.0, frames=132)


def test_a_run_lessens_the_distance_and_logs_what_its_loss_is_of(tmp_path):
    """Of noise, which the mel says is as loud throughout, where the model begins with a sigma of about 1."""
    audio.write(tmp_path / "noise.wav", 0.01 * torch.randn(6000, generator=torch.Generator().manual_seed(0)), 8000)
    changes = dict(free_running=10.0, frames=132, steps=20, interval=10, warmup=2, learning_rate=1e-2)
    training = options(TeacherTraining, CONFIG, tmp_path, **changes)
    loop.run(training, quiet=True)
    early, late = log_lines(training)
    assert late["loss"] == pytest.approx(late["likelihood"] + late["loudness"])
    assert late["loudness"] < 0.95 * early["loudness"]
