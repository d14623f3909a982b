"""WG-WaveNet: what its peer computed, its flow and post-filter, its checkpoints, and that it learns."""

import dataclasses

import pytest
import torch
from golden import Golden, assert_same, edited, everywhere, run_model
from refusals import assert_refused
from torch.nn import functional as F
from trainings import assert_resumes, losses_on_speech, needs_speech

import fastwave
from fastwave.audio import MelSpec
from fastwave.losses import SpectralMelLoss
from fastwave.models import WGWaveNet, WGWaveNetConfig
from fastwave.train import TRAININGS

SOURCE, NAME = "BogiHsu/WG-WaveNet", "BogiHsu_WG-WaveNet__wgwavenet"
MEL = MelSpec(sample_rate=8000, n_fft=64, hop_length=20, win_length=64, n_mels=3, fmax=3000.0)
SMALL = WGWaveNetConfig(
    mel=MEL, flows=3, group=4, layers=2, channels=5, post_layers=3, post_channels=4, upsample_scales=(4, 5)
)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(dtype=torch.float64, **changes):
    """A tiny model with random weights, of the coupling's last product too."""
    torch.manual_seed(0)
    model = WGWaveNet(dataclasses.replace(SMALL, **changes)).to(dtype).requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.1 * normal(*parameter.shape).to(dtype)
    return model


def converted(dtype=torch.float32):
    golden = Golden(NAME, dtype)
    model = fastwave.convert(golden.state_dict(), SOURCE, golden.hparams).to(dtype).requires_grad_(False)
    return golden, model


def peers_columns(golden, model):
    """The peer's upsampler eats the last frame, ours one on either side."""
    return model.upsampler(F.pad(golden["in.mel"], (1, 0)))


# golden --------------------------------------------------------------------------------------------------------------


@both_dtypes
def test_forward(dtype):
    golden, model = converted(dtype)
    wave, c = golden["in.wav"], peers_columns(golden, model)
    golden.check(c, "upsampled")
    z, log_sigmas, logdets = model.transform(wave, c)
    golden.check(z, "z")
    for k, (log_sigma, logdet) in enumerate(zip(log_sigmas, logdets, strict=True)):
        golden.check(log_sigma, f"log_s.{k}")
        golden.check(len(wave) * logdet, f"log_det_W.{k}")
    golden.check(model.flow_loss(wave, F.pad(golden["in.mel"], (1, 0))), "loss_z")


@everywhere
def test_inference(dtype, kernels):
    golden, model = converted(dtype)
    run = run_model(model, peers_columns(golden, model), kernels)
    golden.check(model.flow_inverse(model.config.sigma * golden["in.z"], run), "wg_audio")
    golden.check(model.synthesize(golden["in.z"], run)[:, 0], "infer")
    golden.check(model.synthesize(0 * golden["in.z"], run)[:, 0], "infer_mean")


@both_dtypes
def test_losses(dtype):
    golden, model = converted(dtype)
    mel, wave = F.pad(golden["in.mel"], (1, 0)), golden["in.wav"]
    sample = model.synthesize(golden["in.z"], model.reference_run(model.upsampler(mel)))[:, 0]
    for i in range(5):
        convergence, magnitude = model.spectral_loss.terms(sample, wave, i)
        golden.check(convergence, f"stft.{i}.sc")
        golden.check(magnitude, f"stft.{i}.spec")
    spectral = model.spectral_loss(sample, wave)
    golden.check(spectral, "loss_s")
    golden.check(model.flow_loss(wave, mel) + spectral, "loss_total")


# the model -----------------------------------------------------------------------------------------------------------


def parameters(config):
    return sum(parameter.numel() for parameter in WGWaveNet(config).parameters())


def test_the_papers_models():
    assert parameters(WGWaveNetConfig.g_8()) == pytest.approx(2.5e6, rel=0.02)  # Table 2
    g_20 = WGWaveNetConfig.g_20(44_100)
    assert (g_20.group, g_20.mel.sample_rate, g_20.mel.hop_length) == (20, 44_100, 200)
    assert g_20.coupling_spec().in_channels == 10
    assert parameters(WGWaveNetConfig.g_20()) == parameters(g_20) > parameters(WGWaveNetConfig.g_8(44_100))


def test_the_flows_share_one_coupling():
    stages = small().stages()
    assert [stage.group for stage in stages] == [4] * 6 + [1]
    assert len({id(stage.stack) for stage in stages[:6:2]}) == 1


def test_inverse():
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        model, wave, mel = small(dtype), 0.3 * normal(2, 7 * 20).to(dtype), normal(2, 3, 9, seed=1).to(dtype)
        z, _ = model(wave, mel)
        assert z.shape == (2, 4, 35)
        torch.testing.assert_close(model.inverse(z, mel), wave, rtol=0, atol=tolerance)


def test_log_determinant():
    model, wave, mel = small(), normal(1, 20), normal(1, 3, 3, seed=1)
    jacobian = torch.autograd.functional.jacobian(lambda wave: model(wave, mel)[0], wave).reshape(20, 20)
    torch.testing.assert_close(model(wave, mel)[1], torch.linalg.slogdet(jacobian)[1][None])


def test_bounds():
    model, mel = small(), normal(1, 3, 3, seed=1)
    model.coupling.head[0].weight *= 1e3
    z, log_sigmas, _ = model.transform(normal(1, 20), model.upsampler(mel))
    assert z.abs().max() == 10 and max(log_sigma.abs().max() for log_sigma in log_sigmas) == 10


def test_generate():
    """The noise is scaled to sigma; frames are replicated at the edges, of which the first is not used."""
    model, mel, noise = small(), normal(2, 3, 5), normal(2, 4, 25, seed=1)
    wave = model.generate(mel, noise=noise)
    assert wave.shape == (2, 100)
    run = model.reference_run(model.upsampler(torch.cat([0 * mel[..., :1], mel, mel[..., -1:]], 2)))
    torch.testing.assert_close(model.synthesize(noise, run)[:, 0], wave)
    after = model.post_filter(model.flow_inverse(0.6 * noise, run), model.condition(mel))
    torch.testing.assert_close(after[:, 0], wave)


def test_reach_of_the_conditioning():
    model, mel = small(), normal(1, 3, 12)
    changed = mel.clone()
    changed[..., 6] += 10
    differs = (model.condition(changed) != model.condition(mel)).any(1)[0]
    frames = differs.unflatten(0, (12, model.condition_rate)).any(1).nonzero()[:, 0]
    before, after = model.condition_reach
    assert frames.tolist() == list(range(6 - after, 7 + before))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(flows=0), "flows must be at least 1, got 0"),
        (dict(group=5), "group must be even and divide hop_length 20, got 5"),
        (dict(group=8), "group must be even and divide hop_length 20, got 8"),
        (dict(upsample_scales=(4, 4)), "upsample_scales must multiply to hop_length 20, got (4, 4)"),
        (dict(upsample_scales=(-4, -5)), "upsample_scales must multiply to hop_length 20, got (-4, -5)"),
        (dict(sigma=-1.0), "sigma must be above 0, got -1.0"),
        (dict(kernel_size=2), "kernel_size of a centred stack must be odd, got 2"),
    ],
)
def test_bad_configurations(changes, message):
    assert_refused(lambda: dataclasses.replace(SMALL, **changes), message)


# the spectral loss ---------------------------------------------------------------------------------------------------


def test_only_the_mean_over_time_counts_above_the_bands():
    time = torch.arange(8000, dtype=torch.float64) / 8000
    loss = SpectralMelLoss(MEL)
    low, high = (torch.sin(2 * torch.pi * frequency * time)[None] for frequency in (1000, 3600))
    early = torch.cat([torch.ones(1, 4000), torch.zeros(1, 4000)], 1)
    base = 0.01 * normal(1, 8000)
    for tone, differs in ((low, True), (high, False)):
        distance = loss(base + tone * early, base + tone * early.flip(1))
        assert (distance > 1) == differs
    assert loss(base, base) == 0


def test_without_bins_above_the_bands():
    mel = dataclasses.replace(MEL, fmax=4000.0)
    a, b = normal(2, 4000).requires_grad_(), normal(2, 4000, seed=1)
    loss = SpectralMelLoss(mel, ((256, 64, 128, 1.0),))(a, b)
    loss.backward()
    assert loss > 0 and a.grad.isfinite().all()


# checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        dict,
        lambda tensors: {"model": tensors, "optimizer": {"state": {}, "param_groups": []}, "iteration": 1000},
        lambda tensors: {"model": {f"module.{key}": value for key, value in tensors.items()}},
    ],
    ids=["bare", "model", "data-parallel"],
)
def test_forms_of_a_checkpoint(form, tmp_path):
    golden, model = converted()
    torch.save(form(golden.state_dict()), tmp_path / "ckpt_1000")
    assert_same(fastwave.convert(tmp_path / "ckpt_1000", SOURCE), model)  # all hparams are the peer's own


def test_hparams():
    golden, model = converted()
    assert model.config == WGWaveNetConfig.g_8(
        flows=3,
        layers=3,
        channels=8,
        post_layers=4,
        post_channels=6,
        mel=dataclasses.replace(MelSpec.preset(SOURCE), n_mels=8),
    )
    given = dict(sample_rate=44_100, num_freq=1025, frame_length=1600, fmin=40, fmax=16_000, preemphasis=0.9)
    given |= dict(min_level_db=-80, ref_level_db=10, sigma=1.0, up_scale=[2, 5, 4, 5, 2], frame_shift=400)
    config = fastwave.convert(golden.state_dict(), SOURCE, given).config
    mel = dict(sample_rate=44_100, n_fft=2048, win_length=1600, hop_length=400, fmin=40.0, fmax=16_000.0)
    mel |= dict(preemphasis=0.9, log_range=(-70.0, 10.0))
    assert config.mel == dataclasses.replace(model.config.mel, **mel)
    assert (config.sigma, config.upsample_scales) == (1.0, (2, 5, 4, 5, 2))


@pytest.mark.parametrize(
    ("tensors", "hparams", "message"),
    [
        (dict(PF__cond_layers__1__bias=None), {}, "keys of its source: missing PF.cond_layers.1.bias"),
        (dict(WN__end__weight=None, step=torch.ones(1)), {}, "missing WN.end.weight; unexpected step"),
        (dict(upsample__layers__0__bias=torch.ones(9)), {}, "upsample.layers.0.bias must be (8,), got (9,)"),
        (dict(PF__end__weight=torch.ones(2, 6, 1)), {}, "PF.end.weight must be (1, 6, 1), got (2, 6, 1)"),
        ({}, {"n_flows": 4}, "hparams n_flows must be 3, as in the tensors, got 4"),
        ({}, {"PF_n_layers": 7}, "hparams PF_n_layers must be 4, as in the tensors, got 7"),
        ({}, {"num_mels": 80}, "hparams num_mels must be 8, as in the tensors, got 80"),
        ({}, {"up_scale": [2, 100]}, "hparams up_scale must be 5 integers, as in the tensors, got [2, 100]"),
        ({}, {"frame_shift": 256}, "hparams frame_shift must be 200, the product of up_scale, got 256"),
        ({}, {"up_scale": [2, 5, 2, 5, 3]}, "group must be even and divide hop_length 300, got 8"),
    ],
)
def test_refused(tensors, hparams, message):
    state_dict = Golden(NAME, torch.float32).state_dict()
    assert_refused(lambda: fastwave.convert(edited(state_dict, **tensors), SOURCE, hparams), message)


# training ------------------------------------------------------------------------------------------------------------


def test_a_sample_is_compared_every_third_step():
    model = small(torch.float32)
    training = TRAININGS["wg-wavenet"](data=None, out=None)
    objective = training.objective(model, training)
    wave, mel = torch.randn(1, 4000), torch.randn(1, 3, 202)
    likelihood = model.flow_loss(wave, mel)
    differs = [dict(objective.losses(wave, mel, step))["model"] != likelihood for step in range(6)]
    assert differs == [False, False, True] * 2
    torch.manual_seed(0)
    third = dict(objective.losses(wave, mel, 2))["model"]
    torch.manual_seed(0)
    assert model.loss(wave, mel) == third


def test_bad_options(tmp_path):
    training = TRAININGS["wg-wavenet"](data=tmp_path, out=tmp_path, sample_every=0)
    assert_refused(training.check, "sample_every must be at least 1, got 0")


def test_a_resumed_run_ends_like_another(tmp_path):
    assert_resumes(TRAININGS["wg-wavenet"], SMALL, tmp_path, batch=2, frames=80)


@needs_speech
def test_it_learns_speech(tmp_path):
    mel = dataclasses.replace(MelSpec.preset(SOURCE), n_mels=20)
    config = WGWaveNetConfig(mel=mel, flows=3, layers=4, channels=16, post_layers=4, post_channels=16)
    options = dict(batch=1, frames=16, learning_rate=4e-3)
    losses = losses_on_speech(TRAININGS["wg-wavenet"], config, tmp_path, **options)
    assert losses[-1] < losses[0] - 1
