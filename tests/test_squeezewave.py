"""SqueezeWave: what its peer computed, its normalisation folded in or not, its checkpoints, and that it learns."""

import dataclasses
import math

import pytest
import torch
from golden import Golden, assert_same, edited, everywhere, run_model
from refusals import assert_refused
from trainings import assert_resumes, losses_on_speech, needs_speech

import fastwave
from fastwave.audio import MelSpec
from fastwave.flows import flow_nll
from fastwave.models import SqueezeWave, SqueezeWaveConfig
from fastwave.train import TRAININGS

SOURCE, NAME = "tianrengao/SqueezeWave", "tianrengao_SqueezeWave__a128"
MEL = MelSpec(sample_rate=8000, n_fft=64, hop_length=16, win_length=64, n_mels=3, fmax=4000.0)
SMALL = SqueezeWaveConfig(mel=MEL, flows=3, group=8, early_size=2, layers=2, channels=4, sigma=0.8)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(dtype=torch.float64, **changes):
    """A tiny model with random weights and statistics."""
    torch.manual_seed(0)
    model = SqueezeWave(dataclasses.replace(SMALL, **changes)).to(dtype).requires_grad_(False).eval()
    for name, tensor in model.flow.state_dict().items():
        if tensor.is_floating_point():
            tensor += (0.1 * normal(*tensor.shape)).abs() if name.endswith("var") else 0.1 * normal(*tensor.shape)
    return model


def converted(dtype=torch.float32):
    golden = Golden(NAME, dtype)
    return golden, fastwave.convert(golden.state_dict(), SOURCE, golden.hparams).to(dtype).requires_grad_(False)


def latent(golden, sigma):
    """The peer scales the early latents only."""
    return torch.cat([sigma * golden["in.z_early.2"], golden["in.z_last"]], 1)


# goldens -------------------------------------------------------------------------------------------------------------


@both_dtypes
def test_forward(dtype):
    golden, model = converted(dtype)
    wave, mel = golden["in.audio"], golden["in.mel"]
    z, log_sigmas, logdets = model.transform(wave, model.condition(mel))
    golden.check(z, "z")
    for k, (log_sigma, logdet) in enumerate(zip(log_sigmas, logdets, strict=True)):
        golden.check(log_sigma, f"log_s.{k}")
        golden.check(len(wave) * logdet, f"log_det_W.{k}")
    for sigma in (1.0, 0.6):
        golden.check(flow_nll(*model(wave, mel), sigma), f"loss_sigma{sigma:g}")
        golden.check(model.inverse(latent(golden, sigma), mel), f"infer_sigma{sigma:g}")


@both_dtypes
def test_forward_with_the_batchs_statistics(dtype):
    golden, model = converted(dtype)
    wave, mel = golden["in.audio"], golden["in.mel"]
    golden.check(model.train()(wave, mel)[0], "train.z")
    golden.check(model.loss(wave, mel), "train.loss_sigma1")


@everywhere
@pytest.mark.parametrize("sigma", [0.6, 1])
def test_inference(sigma, dtype, kernels):
    golden, model = converted(dtype)
    mel, z = golden["in.mel"], latent(golden, sigma)
    run = run_model(model, model.condition(mel), kernels)
    golden.check(model.synthesize(z, run)[:, 0], f"infer_fused_sigma{sigma}")
    generate = fastwave.Vocoder(model).generate if kernels else model.generate
    golden.check(generate(mel, noise=z), f"infer_fused_sigma{sigma}")


# the model -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [128, 256])
@pytest.mark.parametrize("channels", [128, 256])
def test_the_papers_models(group, channels):
    """They take the multiply-adds per second of speech that table 1 gives them, in thousand millions."""
    config = SqueezeWaveConfig(mel=MelSpec.preset(SOURCE), group=group, channels=channels)
    assert config.widths() == [group - 16 * (flow // 2) for flow in range(12)]
    products = 0
    for spec, width in zip(config.stack_specs(), config.widths(), strict=True):
        layer = (3 + 2 * channels + channels) * channels  # depthwise, W, R
        column = spec.layers * layer + width // 2 * channels + channels * width + width**2
        products += column * spec.cond_repeat + spec.layers * 80 * 2 * channels
    paper = {(128, 256): 3.78, (256, 256): 2.16, (128, 128): 1.06, (256, 128): 0.68}[group, channels]
    assert products * 22_050 / 256 / 1e9 == pytest.approx(paper, rel=0.03)


def test_inverse_with_the_batchs_statistics():
    model, wave, mel = small().train(), 0.3 * normal(2, 7 * 16), normal(2, 3, 7, seed=1)
    z, _ = model(wave, mel)
    torch.testing.assert_close(model.inverse(z, mel), wave, rtol=0, atol=1e-10)


def test_folded_only_the_outer_columns_differ():
    """By one a layer; and not at all where the normalisation maps 0 to 0."""
    model = small(layers=2)
    stack, x, c = model.flow.couplings[0], normal(1, 4, 12), normal(1, 3, 6, seed=1)
    spec = dataclasses.replace(stack.spec, epilogue="none")
    stack.spec = spec
    trained, folded = stack.before_epilogue(x, c), stack(x, c)
    torch.testing.assert_close(folded[..., 2:-2], trained[..., 2:-2])
    assert not torch.isclose(folded[..., [0, 1, -2, -1]], trained[..., [0, 1, -2, -1]]).all(1).any()
    for norm in stack.norm:
        norm.bias.copy_(norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt())
    torch.testing.assert_close(stack(x, c), stack.before_epilogue(x, c))


def test_training_moves_the_statistics_and_validating_does_not():
    model, wave, mel = small(), normal(2, 48), normal(2, 3, 3, seed=1)
    before = [norm.running_mean.clone() for norm in model.flow.couplings[1].norm]
    model.loss(wave, mel)
    for norm, mean in zip(model.flow.couplings[1].norm, before, strict=True):
        assert torch.equal(norm.running_mean, mean)
    model.train().loss(wave, mel)
    for norm, mean in zip(model.flow.couplings[1].norm, before, strict=True):
        assert not torch.equal(norm.running_mean, mean)


def test_streams_where_a_coupling_looks_half_a_frame_ahead():
    vocoder, mel = fastwave.Vocoder(small(torch.float32, layers=1), threads=1), normal(2, 3, 50).float()
    whole = vocoder.generate(mel, seed=3)
    torch.testing.assert_close(whole, vocoder.model.generate(mel, seed=3), rtol=0, atol=1e-5)
    for cut in (1, 7):
        assert torch.equal(torch.cat(list(vocoder.stream(mel.split(cut, 2), seed=3)), 1), whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(group=6), "group must divide hop_length 16, got 6"),
        (dict(early_size=4, early_every=1), "must leave every flow an even number of channels, got [8, 4, 0]"),
        (dict(kernel_size=2), "kernel_size of a centred stack must be odd, got 2"),
        (dict(channels=0), "residual_channels must be at least 1, got 0"),
    ],
)
def test_bad_configurations(changes, message):
    assert_refused(lambda: dataclasses.replace(SMALL, **changes), message)


# checkpoints ---------------------------------------------------------------------------------------------------------

# configs/config_a128_c128.json of the peer, at the golden's sizes
CONFIG = {
    "train_config": {"fp16_run": True, "learning_rate": 4e-4, "sigma": 0.7, "batch_size": 96},
    "data_config": {"segment_length": 16384, "sampling_rate": 16000, "filter_length": 2048, "hop_length": 256}
    | {"win_length": 800, "mel_fmin": 50.0, "mel_fmax": 7000.0},
    "squeezewave_config": {"n_mel_channels": 8, "n_flows": 3, "n_audio_channel": 128, "n_early_every": 2}
    | {"n_early_size": 16, "WN_config": {"n_layers": 3, "n_channels": 8, "kernel_size": 3}},
}


@pytest.mark.parametrize(
    "form",
    [
        dict,
        lambda tensors: {"model": tensors, "optimizer": {"state": {}}, "iteration": 3, "learning_rate": 4e-4},
        lambda tensors: {"state_dict": {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}},
    ],
    ids=["bare", "model", "without counters"],
)
def test_forms_of_a_checkpoint(form, tmp_path):
    golden, model = converted()
    torch.save(form(golden.state_dict()), tmp_path / "squeezewave.pt")
    assert_same(fastwave.convert(tmp_path / "squeezewave.pt", SOURCE), model)


def test_the_tensors_tell_the_sizes():
    golden, model = converted()
    mel = dataclasses.replace(MelSpec.preset(SOURCE), n_mels=8)
    assert model.config == SqueezeWaveConfig(mel=mel, flows=3, layers=3, channels=8)
    mel = dataclasses.replace(mel, sample_rate=16000, n_fft=2048, win_length=800, fmin=50.0, fmax=7000.0)
    changed = dataclasses.replace(model.config, mel=mel, sigma=0.7)
    assert fastwave.convert(golden.state_dict(), SOURCE, CONFIG).config == changed


@pytest.mark.parametrize("group", [128, 256])
def test_both_groups(group):
    """The models of 256 have a column to a frame."""
    torch.manual_seed(0)
    config = SqueezeWaveConfig(mel=MelSpec.preset(SOURCE), flows=3, group=group, layers=1, channels=4)
    model = SqueezeWave(config)
    assert model.noise_rate == 256 // group
    assert model.generate(torch.zeros(1, 80, 3)).shape == (1, 768)


def test_a_pickled_module_is_refused(tmp_path):
    torch.save({"model": small(), "iteration": 3}, tmp_path / "SqueezeWave.pt")
    export = 'where it was made, torch.save({"state_dict": model.state_dict()}, path)'
    assert_refused(lambda: fastwave.convert(tmp_path / "SqueezeWave.pt", SOURCE), export)


NORM = "WN__1__in_layers__0__0__"


@pytest.mark.parametrize(
    ("tensors", "hparams", "message"),
    [
        ({f"{NORM}running_var": None, "step": torch.ones(1)}, {}, "missing WN.1.in_layers.0.0.running_var; unexpected"),
        ({f"{NORM}bias": torch.ones(7)}, {}, "WN.1.in_layers.0.0.bias must be (8,), got (7,)"),
        ({f"{NORM}running_var": torch.full((8,), math.inf)}, {}, "running_var must be finite, got NaN or infinity"),
        (dict(WN__0__cond_layer__bias=torch.ones(47)), {}, "WN.0.cond_layer.bias must be (48,), got (47,)"),
        (dict(convinv__0__conv__weight=torch.ones(96, 96, 1)), {}, "group must divide hop_length 256, got 96"),
        ({}, {"n_audio_channel": 256}, "hparams n_audio_channel must be 128, as in the tensors, got 256"),
        ({}, {"n_flows": 12}, "hparams n_flows must be 3, as in the tensors, got 12"),
        ({}, {"WN_config": {"n_channels": 256}}, "hparams n_channels must be 8, as in the tensors, got 256"),
        ({}, {"WN_config": {"kernel_size": 5}}, "hparams kernel_size must be 3, as in the tensors, got 5"),
        ({}, {"data_config": {"hop_length": 200}}, "hparams hop_length must be 256, as in the tensors, got 200"),
    ],
)
def test_refused(tensors, hparams, message):
    state_dict = Golden(NAME, torch.float32).state_dict()
    assert_refused(lambda: fastwave.convert(edited(state_dict, **tensors), SOURCE, hparams), message)


# training ------------------------------------------------------------------------------------------------------------


def test_a_stopped_run_ends_like_another(tmp_path):
    assert_resumes(TRAININGS["squeezewave"], SMALL, tmp_path, batch=2, frames=20)


@needs_speech
def test_it_learns_speech(tmp_path):
    config = SqueezeWaveConfig(mel=MelSpec(n_mels=20), flows=4, early_size=8, layers=4, channels=32)
    options = dict(batch=4, frames=16, learning_rate=2e-3, warmup=20)
    losses = losses_on_speech(TRAININGS["squeezewave"], config, tmp_path, **options)
    assert losses[-1] < losses[0] - 0.5
