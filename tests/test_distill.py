"""Distillation: its losses against what they mean, and a student that learns from its teacher (ClariNet, 3.3)."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import scipy.signal
import torch
from torch.autograd import gradcheck
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from trainings import assert_resumes, losses_on_speech, needs_speech

from fastwave import audio, checkpoint, cli
from fastwave.audio import MelSpec
from fastwave.emphasis import PLAIN, Emphasis
from fastwave.losses import LoudnessLoss, STFTMagnitudeLoss, gaussian_kl, regularized_kl
from fastwave.models import ClariNetStudent, ClariNetStudentConfig, WaveNet, WaveNetConfig
from fastwave.train.distill import Distillation, DistillationTraining

MEL = MelSpec(sample_rate=8000, n_fft=64, hop_length=16, win_length=64, n_mels=6, fmax=4000.0)
CHANNELS = dict(residual_channels=6, gate_channels=6, skip_channels=6, upsample_scales=(4,), cond_repeat=4)
TEACHER = WaveNetConfig(mel=MEL, kernel_size=2, dilations=(1, 2, 4), **CHANNELS)
STUDENT = ClariNetStudentConfig(mel=MEL, flows=((1, 2), (1, 2)), front_width=4, **CHANNELS)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussians(count=1000):
    """mu_q, log_sigma_q, mu_p, log_sigma_p above the bounds."""
    values = randn(4, count)
    return values[0], 0.5 * values[1] - 2, values[2], 0.5 * values[3] - 2


# losses --------------------------------------------------------------------------------------------------------------


def test_kl_is_that_of_torch_distributions():
    mu_q, log_sigma_q, mu_p, log_sigma_p = gaussians()
    expected = kl_divergence(Normal(mu_q, log_sigma_q.exp()), Normal(mu_p, log_sigma_p.exp()))
    torch.testing.assert_close(gaussian_kl(mu_q, log_sigma_q, mu_p, log_sigma_p), expected)


def test_kl_is_a_mean_of_log_ratios():
    """E_q[log q - log p], within five standard errors of a Monte-Carlo estimate."""
    mu_q, log_sigma_q, mu_p, log_sigma_p = gaussians(8)
    q, p = Normal(mu_q, log_sigma_q.exp()), Normal(mu_p, log_sigma_p.exp())
    x = mu_q + log_sigma_q.exp() * randn(200_000, 8, seed=1)
    ratios = q.log_prob(x) - p.log_prob(x)
    error = (ratios.mean(0) - gaussian_kl(mu_q, log_sigma_q, mu_p, log_sigma_p)).abs()
    assert (error < 5 * ratios.std(0) / math.sqrt(len(x))).all()


def test_log_sigmas_are_bounded_in_the_kl_alone():
    one, low = torch.tensor([0.3]), torch.tensor([-9.0])
    assert gaussian_kl(one, low, one, low + 2) == 0
    assert regularized_kl(one, low, one, low + 2) == 4 * 2**2
    assert gaussian_kl(one, low, one, low + 2, log_sigma_min=-8.0) > 0


def test_regularized_kl_vanishes_where_the_distributions_are_one():
    """Proposition 3.1, both ways."""
    mu, log_sigma, other_mu, other_log_sigma = gaussians()
    assert regularized_kl(mu, log_sigma, mu, log_sigma) == 0
    for q in ((other_mu, log_sigma), (mu, other_log_sigma), (other_mu, other_log_sigma)):
        each = [regularized_kl(*(v[i : i + 1] for v in (*q, mu, log_sigma))) for i in range(len(mu))]
        assert min(each) > 0


def test_steps_add_up_to_the_sequence():
    """Appendix C: the KL of two linear autoregressive Gaussians is the mean over x ~ q of the sum of the steps' KLs."""
    steps = 4
    q, p = (0.4 * randn(steps, steps, seed=seed).tril(-1) for seed in (1, 2))  # x_t ~ N(sum_s w_ts x_s, sigma_t^2)
    log_sigma_q, log_sigma_p = 0.3 * randn(2, steps, seed=3) - 1

    def sequence(weights, log_sigma):
        factor = torch.linalg.solve(torch.eye(steps, dtype=torch.float64) - weights, torch.diag(log_sigma.exp()))
        return factor, MultivariateNormal(torch.zeros(steps, dtype=torch.float64), scale_tril=factor)

    factor, joint_q = sequence(q, log_sigma_q)
    _, joint_p = sequence(p, log_sigma_p)
    x = randn(100_000, steps, seed=4) @ factor.T
    sums = gaussian_kl(x @ q.T, log_sigma_q, x @ p.T, log_sigma_p).sum(1)
    assert abs(sums.mean() - kl_divergence(joint_q, joint_p)) < 5 * sums.std() / math.sqrt(len(x))


def test_gradients():
    values = [value[:5].clone().requires_grad_() for value in gaussians()]
    assert gradcheck(gaussian_kl, values) and gradcheck(regularized_kl, values)
    loss = STFTMagnitudeLoss(torch.hann_window(16), 4)
    waves = randn(1, 40).requires_grad_(), randn(1, 40, seed=1)
    assert gradcheck(loss, waves) and gradcheck(loss.power, waves)


def test_gradient_of_the_distillation(tmp_path):
    """Through the teacher and all flows, in float64."""
    torch.manual_seed(0)
    objective = make_objective(tmp_path)
    objective.model.double(), objective.teacher.double()
    objective.stft_loss = STFTMagnitudeLoss(torch.hann_window(16, dtype=torch.float64), 4)
    wave, mel, z = 0.1 * randn(1, 32), randn(1, 6, 2), randn(1, 32, seed=1)
    parameter = objective.model.flows[0].front.weight

    def of(weight):
        x, *q = torch.func.functional_call(objective.model, {"flows.0.front.weight": weight}, (z, mel))
        p = objective.teacher(x, mel).unbind(1)
        return regularized_kl(*q, *p) + objective.stft_loss(x, wave)

    assert gradcheck(of, (parameter.detach().clone().requires_grad_(),), fast_mode=True)


def test_the_papers_stft_loss():
    """FFT 2048, windows of 50 ms every 12.5 ms (section 3.3.2)."""
    loss, wave = STFTMagnitudeLoss.clarinet(24_000), randn(2, 6000)
    window = scipy.signal.get_window("hann", 1200)
    magnitudes = []
    for signal in wave.numpy():
        centred = torch.nn.functional.pad(torch.from_numpy(signal)[None], (1024, 1024), "reflect")[0].numpy()
        starts = range(424, len(centred) - 2048 + 425, 300)
        magnitudes.append(abs(scipy.fft.rfft([centred[i : i + 1200] * window for i in starts], 2048)))
    expected = ((magnitudes[0] - magnitudes[1]) ** 2).sum(1).mean() / 1025
    assert loss(wave[:1], wave[1:]).item() == pytest.approx(expected, rel=1e-6)
    power = ((magnitudes[0] ** 2).mean(0) - (magnitudes[1] ** 2).mean(0)) ** 2
    assert loss.power(wave[:1], wave[1:]).item() == pytest.approx(power.mean(), rel=1e-6)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_the_papers_window_is_whole(rate):
    window = STFTMagnitudeLoss.clarinet(rate).window
    assert len(window) == (4096 if rate > 40_960 else 2048)
    assert window.sum().item() == pytest.approx(torch.hann_window(round(0.05 * rate)).sum().item())


# distillation --------------------------------------------------------------------------------------------------------


@pytest.fixture
def teacher(tmp_path):
    torch.manual_seed(1)
    WaveNet(TEACHER).save(tmp_path / "teacher")
    return str(tmp_path / "teacher")


def make_objective(folder, config=STUDENT, **changes) -> Distillation:
    WaveNet(TEACHER).save(folder / "teacher")
    training = DistillationTraining(teacher=str(folder / "teacher"), data=folder, out=folder / "run", **changes)
    return Distillation(ClariNetStudent(config), training)


def test_the_loss_of_a_step(tmp_path):
    """KL_reg(q || p), or the other way round, plus the weighted losses of speech, of one sample z."""
    wave, mel = 0.1 * randn(2, 1600).float(), randn(2, 6, 100).float()
    for kl, emphasis in (("reverse", PLAIN), ("forward", Emphasis(coefficient=0.9, gain=4.0))):
        weights = dict(stft_weight=0.5, power_weight=0.25, loudness_weight=0.125, regularizer=2.0)
        config = dataclasses.replace(STUDENT, emphasis=emphasis)
        objective = make_objective(tmp_path, config, kl=kl, stft="ksw0306", **weights)
        torch.manual_seed(3)
        ((name, loss),) = objective.losses(wave, mel, 0)
        torch.manual_seed(3)
        x, *q = objective.model(torch.randn_like(wave), mel)
        p = objective.teacher(x, mel).unbind(1)
        stft, speech = STFTMagnitudeLoss.ksw0306(), (emphasis.undo(x), emphasis.undo(wave))
        expected = regularized_kl(*(q + list(p) if kl == "reverse" else list(p) + q), weight=2.0)
        loudness = LoudnessLoss(STUDENT.mel)(*speech)
        expected = expected + 0.5 * stft(*speech) + 0.25 * stft.power(*speech) + 0.125 * loudness
        assert name == "model"
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(sum(objective.terms.values()), loss)
        first, second = (q, p) if kl == "reverse" else (p, q)
        torch.testing.assert_close(objective.terms["kl"], gaussian_kl(*first, *second).mean())
        gap = (q[1] - p[1]).square().mean()
        torch.testing.assert_close(objective.terms["regularizer"], 2 * gap, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(objective.terms["stft"], 0.5 * stft(*speech))
        torch.testing.assert_close(objective.terms["power"], 0.25 * stft.power(*speech))
        torch.testing.assert_close(objective.terms["loudness"], 0.125 * loudness)


def test_losses_are_of_float32_under_autocast(tmp_path, monkeypatch):
    wave, mel = 0.1 * randn(2, 1600).float(), randn(2, 6, 100).float()
    objective = make_objective(tmp_path, stft="multi_resolution", loudness_weight=1.0)
    densities = objective.densities(wave, mel)
    monkeypatch.setattr(objective, "densities", lambda wave, mel: densities)
    ((_, expected),) = objective.losses(wave, mel, 0)
    with torch.autocast("cpu", torch.bfloat16):
        ((_, loss),) = objective.losses(wave, mel, 0)
    assert torch.equal(loss, expected)


def test_the_students_own_stft_loss(tmp_path):
    wave, mel = 0.1 * randn(2, 1600).float(), randn(2, 6, 100).float()
    objective = make_objective(tmp_path, stft="multi_resolution", stft_weight=3.0)
    torch.manual_seed(3)
    list(objective.losses(wave, mel, 0))
    torch.manual_seed(3)
    torch.testing.assert_close(objective.terms["stft"], 3 * objective.model.loss(wave, mel))


def test_a_first_sample_that_is_given_has_no_divergence(tmp_path):
    """Its sigma is 0."""
    wave, mel = 0.1 * randn(2, 1600).float(), randn(2, 6, 100).float()
    objective = make_objective(tmp_path, dataclasses.replace(STUDENT, first_sample="zero"))
    torch.manual_seed(3)
    ((_, loss),) = objective.losses(wave, mel, 0)
    torch.manual_seed(3)
    x, mu_q, log_sigma_q = objective.model(torch.randn_like(wave), mel)
    mu_p, log_sigma_p = objective.teacher(x, mel).unbind(1)
    assert (x[:, 0] == 0).all() and (log_sigma_q[:, 0] == -math.inf).all()
    of_the_others = regularized_kl(mu_q[:, 1:], log_sigma_q[:, 1:], mu_p[:, 1:], log_sigma_p[:, 1:])
    torch.testing.assert_close(loss, of_the_others + objective.stft_loss(x, wave))
    assert all(values.isfinite().all() for values in objective.histograms(wave, mel).values())


def test_log_sigmas_are_bounded_where_the_options_say(tmp_path):
    wave, mel = 0.1 * randn(2, 1600).float(), randn(2, 6, 100).float()
    terms = []
    for log_sigma_min in (-6.0, 1.0):
        torch.manual_seed(3)
        objective = make_objective(tmp_path, log_sigma_min=log_sigma_min)
        list(objective.losses(wave, mel, 0))
        terms.append(objective.terms)
    assert terms[0]["kl"] > 1.1 * terms[1]["kl"]
    torch.testing.assert_close(terms[0]["regularizer"], terms[1]["regularizer"], rtol=1e-4, atol=1e-5)


def test_the_teacher_and_its_conditioner_stay(tmp_path):
    objective = make_objective(tmp_path)
    before = {name: value.clone() for name, value in objective.model.state_dict().items()}
    teacher = {name: value.clone() for name, value in objective.teacher.state_dict().items()}
    ((_, loss),) = objective.losses(0.1 * randn(2, 1600).float(), randn(2, 6, 100).float(), 0)
    loss.backward()
    objective.learners["model"].optimizer.step()
    for name, value in objective.model.state_dict().items():
        shared = name.startswith("upsampler.")
        assert torch.equal(value, before[name]) == shared, name
        assert not shared or torch.equal(value, teacher[name])
    torch.testing.assert_close(dict(objective.teacher.state_dict()), teacher, rtol=0, atol=0)


def test_histograms_of_both(tmp_path):
    wave, mel = 0.1 * randn(2, 1600).float(), randn(2, 6, 100).float()
    histograms = make_objective(tmp_path).histograms(wave, mel)
    assert {name: values.shape for name, values in histograms.items()} == {
        "log_sigma_q": wave.shape,
        "log_sigma_p": wave.shape,
    }


def test_a_student_to_start_with(tmp_path, teacher):
    """Its flows come over; the conditioner is the teacher's, whatever its own."""
    torch.manual_seed(2)
    first = ClariNetStudent(dataclasses.replace(STUDENT, upsampler="nearest"))
    first.save(tmp_path / "student")
    training = DistillationTraining(teacher=teacher, start=str(tmp_path / "student"), data=tmp_path, out=tmp_path)
    assert training.model_config([]) == STUDENT
    objective = Distillation(training.make_model([]), training)
    assert objective.model.config == STUDENT
    torch.testing.assert_close(objective.model.flows.state_dict(), first.flows.state_dict(), rtol=0, atol=0)


def test_the_built_in_shape_fits_any_teacher(teacher, tmp_path):
    config = DistillationTraining(teacher=teacher, data=tmp_path, out=tmp_path).model_config([])
    assert config.mel == MEL and config.upsample_scales == (4,) and len(config.flows) == 2


def test_resumes(tmp_path, teacher):
    assert_resumes(DistillationTraining, STUDENT, tmp_path, teacher=teacher, frames=100)


def test_a_run_keeps_its_teacher(tmp_path, teacher, capsys):
    audio.write(tmp_path / "clip.wav", 0.1 * randn(6000).float(), 8000)
    torch.manual_seed(2)
    WaveNet(TEACHER).save(tmp_path / "other")
    options = ["--data", str(tmp_path), "--out", str(tmp_path / "run"), "--frames", "100", "-q"]
    assert cli.main(["distill", "--teacher", teacher, "--steps", "1", *options]) == 0
    before = (tmp_path / "run/checkpoint.pt").read_bytes()
    capsys.readouterr()
    assert cli.main(["distill", "--teacher", str(tmp_path / "other"), "--steps", "2", *options]) == 2
    error = capsys.readouterr().err
    assert "out must hold a checkpoint with the same teacher, got another in" in error and error.count("\n") == 1
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == before
    assert cli.main(["distill", "--teacher", teacher, "--steps", "2", *options]) == 0


@needs_speech
@pytest.mark.parametrize("kl", ["reverse", "forward"])
def test_learns_from_speech(tmp_path, teacher, kl):
    losses = losses_on_speech(DistillationTraining, STUDENT, tmp_path, teacher=teacher, frames=100, kl=kl, warmup=10)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"teacher": "nobody"}, "no voice 'nobody'"),
        ({"teacher": "lj-stft"}, "teacher must be a Gaussian WaveNet, got 'lj-stft'"),
        ({"start": "lj-teacher"}, "start must be a ClariNetStudent, got 'lj-teacher'"),
        ({"config": "student-1.json"}, "config must have the teacher's mel"),
        ({"config": "student-1.json", "start": "lj-stft"}, "config must be absent where there is a start"),
        ({"stft_weight": -1.0}, "stft_weight must be at least 0, got -1.0"),
        ({"loudness_weight": -1.0}, "loudness_weight must be at least 0, got -1.0"),
        (
            {"stft": "multi_resolution", "power_weight": 1.0},
            "power_weight must be 0 where stft is multi_resolution, got 1.0",
        ),
        ({"log_sigma_min": "-inf"}, "log_sigma_min must be finite, got -inf"),
        ({"frames": 64}, "segments of speech must have more than 1024 samples, for frames of 2048, got 1024"),
    ],
)
def test_errors(tmp_path, teacher, changes, message, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = checkpoint.config_to_dict(ClariNetStudentConfig.student_1())
    Path("student-1.json").write_text(json.dumps(config))
    audio.write("clip.wav", 0.1 * randn(6000).float(), 8000)
    values = {"teacher": teacher, "data": ".", "out": "run"} | changes
    arguments = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert cli.main(["distill", *arguments, "-q"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
