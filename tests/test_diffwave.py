"""DiffWave: what its peer computed, its schedules, its checkpoints, and that it learns."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from golden import Golden, edited, everywhere, run_model, run_stack, run_upsampler
from refusals import assert_refused
from trainings import assert_resumes, losses_on_speech, needs_speech

import fastwave
from fastwave.audio import MelSpec
from fastwave.converters.lmnt_diffwave import keys
from fastwave.converters.state_dict import _part
from fastwave.models import DiffWave, DiffWaveConfig
from fastwave.train.diffwave import DiffWaveTraining

SOURCE = "lmnt-com/diffwave"
MEL = MelSpec(sample_rate=8000, n_fft=64, hop_length=16, win_length=64, n_mels=6, fmax=4000.0)
SMALL = DiffWaveConfig(
    mel=MEL, dilations=(1, 2, 1), residual_channels=6, step_channels=8, upsample_scales=(4,), cond_repeat=4
)
FEW = dict(noise_schedule=(0.1, 0.2, 0.4, 0.5), fast_schedule=(0.2, 0.6))
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(dtype=torch.float64, **changes):
    """A tiny model with random weights, of its last product too."""
    torch.manual_seed(0)
    model = DiffWave(dataclasses.replace(SMALL, **changes)).to(dtype).requires_grad_(False)
    model.stack.head[1].weight += 0.5 * normal(1, 6, 1).to(dtype)
    return model


def params(golden):
    """The golden's hyper-parameters by the names of params.py."""
    names = ("n_mels", "residual_layers", "residual_channels", "dilation_cycle_length", "inference_noise_schedule")
    return {name: golden.hparams[name] for name in names} | {"noise_schedule": golden.hparams["noise_schedule_"]}


def converted(dtype=torch.float32):
    golden = Golden("lmnt__diffwave", dtype)
    model = fastwave.convert(golden.state_dict(), SOURCE, params(golden))
    return golden, model.to(dtype).requires_grad_(False)


def diffusion_noise(golden, name):
    """x_T and the later noises, which the peer drew as (steps, batch, samples)."""
    return golden[name].transpose(0, 1)


def check_network(golden, model, kernels, wave, step, name):
    c = run_upsampler(model.upsampler, golden["in.mel"], kernels)
    u = model.step_vectors(golden[step].expand(len(c)))
    golden.check(run_stack(model.stack, golden[wave][:, None], kernels, c=c, u=u), name)
    if not kernels:
        golden.check(model(golden[wave], golden[step], golden["in.mel"])[:, None], name)


def check_synthesis(golden, model, kernels, mel, noise, name):
    noise = diffusion_noise(golden, noise)
    run = run_model(model, model.condition(golden[mel]), kernels)
    golden.check(model.synthesize(noise, run)[:, 0], name)
    generate = fastwave.Vocoder(model).generate if kernels else model.generate
    golden.check(generate(golden[mel], noise=noise), name)


# goldens -------------------------------------------------------------------------------------------------------------


@everywhere
def test_network(dtype, kernels):
    golden, model = converted(dtype)
    golden.check(run_upsampler(model.upsampler, golden["in.mel"], kernels), "upsampled")
    golden.check(model.step_embedding.table, "embedding_table")
    for kind in ("int", "frac"):
        golden.check(model.step_embedding(golden[f"in.step_{kind}"]), f"step_embedding_{kind}")
        check_network(golden, model, kernels, "in.audio", f"in.step_{kind}", f"eps_{kind}_step")


@everywhere
@pytest.mark.parametrize("schedule", ["full", "fast"])
def test_reverse_process(schedule, dtype, kernels):
    golden, model = converted(dtype)
    model = model.with_schedule(schedule)
    check_synthesis(golden, model, kernels, "in.mel_predict", f"in.noise_{schedule}", f"audio_{schedule}")


@both_dtypes
def test_training_target(dtype, monkeypatch):
    golden, model = converted(dtype)
    model.requires_grad_(True)
    wave, noise, step, mel = (golden[f"in.train_{name}"] for name in ("audio", "noise", "t", "mel"))
    golden.check(model.levels, "train_noise_level")
    golden.check(model.diffuse(wave, noise, step), "train_noisy")
    golden.check(model(model.diffuse(wave, noise, step), step, mel)[:, None], "train_predicted")
    monkeypatch.setattr(torch, "randint", lambda steps, shape, device: step)
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    loss = model.loss(wave, mel)
    golden.check(loss, "train_loss")
    loss.backward()
    gradients = peers_gradients(model, golden.hparams["residual_layers"])
    for key, gradient in gradients.items():
        golden.check(gradient, f"grad.{key}")
    assert len(gradients) == sum(key.startswith("out.grad.") for key in golden.tensors)
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    golden.check(norm, "train_grad_norm")


def peers_gradients(model, layers):
    """The gradients of the peer's parameters, of which ours are made."""
    parts, table = {}, keys(layers, unconditional=False)
    for ours, parameter in model.named_parameters():
        rows = table[ours].split(" | ")
        for row, gradient in zip(rows, parameter.grad.chunk(len(rows)), strict=True):
            for key, index, count in map(_part, row.split(" + ")):
                parts.setdefault(key, [torch.zeros_like(gradient)] * count)[index] = gradient
    parts["skip_projection.weight"][0] = parts["skip_projection.weight"][0] / math.sqrt(layers)
    return {key: torch.cat(gradients) for key, gradients in parts.items()}


@everywhere
def test_full_size(dtype, kernels):
    golden = Golden("full/diffwave", dtype)
    model = fastwave.convert(golden.state_dict(), SOURCE).to(dtype).requires_grad_(False)
    assert model.config == dataclasses.replace(DiffWaveConfig.base(), mel=MelSpec.preset(SOURCE))
    check_network(golden, model, kernels, "in.audio", "in.step", "eps")
    check_synthesis(golden, model.with_schedule("fast"), kernels, "in.mel", "in.noise_fast", "audio_fast")


# the model -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "millions"), [(DiffWaveConfig.base(), 2.64), (DiffWaveConfig.large(fast=True), 6.91)]
)
def test_the_papers_models_have_the_papers_sizes(config, millions):
    parameters = sum(parameter.numel() for parameter in DiffWave(config).parameters())
    assert parameters == pytest.approx(millions * 1e6, rel=0.015)


def test_untrained_it_takes_all_for_signal():
    torch.manual_seed(0)
    model = DiffWave(SMALL)
    assert not model(normal(2, 32).float(), torch.tensor([0, 3]), normal(2, 6, 2).float()).any()


def test_aligned_steps():
    assert small().aligned_steps().tolist() == list(range(50))
    model = small(**FEW, fast=True)
    trained, own = (np.sqrt(model.config.noise_levels(betas)) for betas in FEW.values())
    aligned = model.aligned_steps()
    assert aligned.dtype == torch.float32 and aligned[1] > aligned[0]
    for step, level in zip(aligned.tolist(), own, strict=True):
        low = int(step)
        assert level == pytest.approx(trained[low] + (step - low) * (trained[low + 1] - trained[low]), rel=1e-6)


def test_schedules_share_weights():
    model = small(**FEW)
    fast, full, own = (model.with_schedule(schedule) for schedule in ("fast", "full", (0.3, 0.3, 0.3)))
    assert [len(m.noise_kinds) for m in (model, fast, full, own)] == [4, 2, 4, 3]
    assert model.config == full.config and fast.config == dataclasses.replace(model.config, fast=True)
    assert all(m.stack is model.stack for m in (fast, full, own))
    assert len({id(stage.stack) for stage in model.stages()}) == 1
    mel = normal(1, 6, 3)
    waves = [m.generate(mel) for m in (model, full, fast, own)]
    assert torch.equal(waves[0], waves[1])
    assert not torch.equal(waves[2], waves[0]) and not torch.equal(waves[3], waves[0])
    assert_refused(lambda: model.with_schedule("slow"), "schedule must be 'full', 'fast' or betas, got 'slow'")


def test_noise_is_used_from_the_first_channel_on():
    model, mel = small(**FEW), normal(1, 6, 3)
    noise = normal(1, 4, 48)
    wave = model.generate(mel, noise=noise)
    assert wave.shape == (1, 48) and wave.abs().max() <= 1
    for channel in range(4):
        assert not torch.equal(model.generate(mel, noise=noise.index_fill(1, torch.tensor(channel), 0)), wave)
    assert torch.equal(model.generate(mel, temperature=0.0), model.generate(mel, noise=torch.zeros(1, 4, 48)))
    assert_refused(lambda: model.generate(mel, noise=noise[:, 1:]), "noise must be (1, 4, 48), got (1, 3, 48)")


def test_ragged_rows_of_an_unconditional_model():
    model, mel, noise = small(**FEW, unconditional=True), normal(3, 6, 5), normal(3, 4, 80)
    lengths = torch.tensor([5, 1, 3])
    wave = model.generate(mel, noise=noise, lengths=lengths)
    for row, frames in enumerate(lengths.tolist()):
        own = slice(row, row + 1)
        alone = model.generate(mel[own, :, :frames], noise=noise[own, :, : 16 * frames])
        torch.testing.assert_close(wave[own, : 16 * frames], alone, rtol=1e-11, atol=1e-11)
        assert not wave[row, 16 * frames :].any()


def test_streams_of_an_unconditional_model():
    vocoder = fastwave.Vocoder(small(torch.float32, **FEW, unconditional=True), threads=1)
    mel = normal(2, 6, 50).float()
    whole = vocoder.generate(mel, seed=3)
    torch.testing.assert_close(whole, vocoder.model.generate(mel, seed=3), rtol=0, atol=1e-5)
    for cut in (1, 7):
        assert torch.equal(torch.cat(list(vocoder.stream(mel.split(cut, 2), seed=3)), 1), whole)


def test_an_unconditional_model_reads_of_the_mel_its_shape():
    model = small(**FEW, unconditional=True)
    assert not hasattr(model.stack, "cond") and not list(model.upsampler.parameters())
    mel = normal(2, 6, 3)
    assert torch.equal(model.generate(mel, seed=1), model.generate(torch.zeros(2, 6, 3).double(), seed=1))
    wave = 0.1 * normal(2, 48)
    torch.manual_seed(0)
    loss = model.loss(wave, mel)
    torch.manual_seed(0)
    assert torch.equal(model.loss(wave, mel + 1), loss)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(noise_schedule=()), "noise_schedule must be one number between 0 and 1 or more, got ()"),
        (dict(fast_schedule=(0.1, 1.0)), "fast_schedule must be one number between 0 and 1 or more, got (0.1, 1.0)"),
        (dict(step_channels=0), "step_channels must be at least 1, got 0"),
        (dict(dilations=()), "skip_channels must be 0 in a stack without layers, got"),
        (
            FEW | dict(fast=True, fast_schedule=(0.2, 0.8)),
            "fast_schedule must have noise levels from 0.9 to 0.216, as noise_schedule, got 0.8 to 0.16",
        ),
        (
            FEW | dict(fast=True, fast_schedule=(0.01, 0.4)),
            "fast_schedule must have noise levels from 0.9 to 0.216, as noise_schedule, got 0.99 to 0.594",
        ),
    ],
)
def test_bad_configurations(changes, message):
    assert_refused(lambda: dataclasses.replace(SMALL, **changes), message)


@pytest.mark.parametrize(
    "step", [[50, 0], [-1, 0], [-0.5, 3.0], [49.5, 3.0], [math.nan, 3.0], [50], [[0], [3]], [1, 2, 3], 3]
)
def test_bad_steps(step):
    model, x, mel = small(), normal(2, 32), normal(2, 6, 2)
    message = f"step must be 2 numbers between 0 and 49, got {step}"
    assert_refused(lambda: model(x, torch.tensor(step), mel), message)


def test_steps():
    """Up to the last, and between two; one for all rows."""
    model, x, mel = small(), normal(2, 32), normal(2, 6, 2)
    for step in (0, 48.5, 49):
        one, each = (model(x, torch.tensor([step] * rows), mel) for rows in (1, 2))
        torch.testing.assert_close(one, each, rtol=0, atol=1e-12)
    assert_refused(lambda: model(x, 49, mel), "step must be a tensor, got int")


# checkpoints ---------------------------------------------------------------------------------------------------------


def test_the_checkpoints_own_parameters(tmp_path):
    """As the peer writes them; hparams come before them, and the defaults of params.py after."""
    golden, model = converted()
    own = params(golden) | dict(unconditional=False, max_grad_norm=None, hop_samples=256, sample_rate=16_000)
    saved = {"step": 3, "model": golden.state_dict(), "optimizer": {"state": {}}, "params": own, "scaler": {}}
    torch.save(saved, tmp_path / "weights.pt")
    converted_model = fastwave.convert(tmp_path / "weights.pt", SOURCE)
    assert converted_model.config.dilations == model.config.dilations == (1, 2, 4, 1, 2, 4)
    assert converted_model.config.noise_schedule == tuple(golden.hparams["noise_schedule_"])
    assert converted_model.config.mel.sample_rate == 16_000 and converted_model.config.mel.fmax == 8000.0
    for key, value in converted_model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])
    shorter = fastwave.convert(tmp_path / "weights.pt", SOURCE, {"dilation_cycle_length": 2})
    assert shorter.config.dilations == (1, 2) * 3
    assert fastwave.convert(golden.state_dict(), SOURCE).config.dilations == (1, 2, 4, 8, 16, 32)


def test_unconditional_checkpoint():
    """The golden without its conditioner equals the golden with one whose weights are 0."""
    golden = Golden("lmnt__diffwave", torch.float32)
    conditional = {k: v * ("conditioner_projection" not in k) for k, v in golden.state_dict().items()}
    tensors = {k: v for k, v in conditional.items() if "conditioner" not in k and "upsampler" not in k}
    hparams = params(golden) | {"unconditional": True, "audio_len": 110_250}
    model = fastwave.convert({"model": tensors, "params": hparams}, SOURCE).with_schedule("fast")
    assert model.config.unconditional and model.config.mel.n_mels == 12 and model.config.mel.hop_length == 256
    expected = fastwave.convert(conditional, SOURCE, params(golden)).with_schedule("fast")
    noise = diffusion_noise(golden, "in.noise_fast")
    wave = model.generate(golden["in.mel_predict"], noise=noise)
    torch.testing.assert_close(wave, expected.generate(golden["in.mel_predict"], noise=noise))


CONV = "residual_layers__0__dilated_conv__weight"


@pytest.mark.parametrize(
    ("changes", "hparams", "message"),
    [
        ({"skip_projection__bias": None, "ema": torch.ones(1)}, {}, "missing skip_projection.bias; unexpected ema"),
        ({CONV: torch.ones(18, 10, 3)}, {}, "residual_layers.0.dilated_conv.weight must be (20, 10, 3), got (18, 10,"),
        ({CONV: torch.ones(20, 10)}, {}, "residual_layers.0.dilated_conv.weight must be a tensor of 3 dimensions, got"),
        ({CONV: torch.full((20, 10, 3), math.nan)}, {}, "dilated_conv.weight must be finite, got NaN or infinity"),
        ({}, {"residual_layers": 30}, "hparams residual_layers must be 6, as in the tensors, got 30"),
        ({}, {"residual_channels": 64}, "hparams residual_channels must be 10, as in the tensors, got 64"),
        ({}, {"n_mels": 80}, "hparams n_mels must be 12, as in the tensors, got 80"),
        ({}, {"hop_samples": 300}, "hparams hop_samples must be 256, as in the tensors, got 300"),
        ({}, {"unconditional": True}, "hparams unconditional must be False, as in the tensors, got True"),
        ({}, {"dilation_cycle_length": 0}, "hparams dilation_cycle_length must be at least 1, got 0"),
        ({}, {"noise_schedule": 50}, "hparams noise_schedule must be of type list, got 50"),
        ({}, {"noise_schedule": ["0.1"]}, "noise_schedule must be one number between 0 and 1 or more, got ('0.1',)"),
        ({}, {"noise_schedule": [2.0]}, "noise_schedule must be one number between 0 and 1 or more, got (2.0,)"),
    ],
)
def test_refused(changes, hparams, message):
    tensors = Golden("lmnt__diffwave", torch.float32).state_dict()
    assert_refused(lambda: fastwave.convert(edited(tensors, **changes), SOURCE, hparams), message)


# training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unconditional", [False, True])
def test_a_run_in_two_pieces_ends_like_one(tmp_path, unconditional):
    config = dataclasses.replace(SMALL, unconditional=unconditional)
    assert_resumes(DiffWaveTraining, config, tmp_path, batch=2, frames=20)


def test_the_papers_learning_rate():
    training = DiffWaveTraining(data="data", out="run")
    assert {training.rate(step) for step in (0, 1, 50_000, 100_000)} == {2e-4}


@needs_speech
def test_it_learns_speech(tmp_path):
    shape = dict(residual_channels=16, step_channels=64, upsample_scales=(16,), cond_repeat=16)
    config = DiffWaveConfig.base(dilations=[1, 2, 4, 8] * 2, **shape)
    options = dict(batch=2, frames=16, learning_rate=2e-3, precision="float32")
    losses = losses_on_speech(DiffWaveTraining, config, tmp_path, **options)
    assert losses[-1] < 0.6 * losses[0]
