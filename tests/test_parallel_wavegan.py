"""Parallel WaveGAN: its goldens, what it promises, and its training."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import soundfile
import torch
from golden import Golden, everywhere, run_stack, run_upsampler, stft_distances
from refusals import assert_refused

import fastwave
from fastwave import audio, checkpoint
from fastwave.audio import MelSpec
from fastwave.converters.kan_bayashi_parallel_wavegan import TABLE, UP_LAYERS
from fastwave.converters.state_dict import expand
from fastwave.discriminators import ParallelWaveGANDiscriminator, ResidualParallelWaveGANDiscriminator
from fastwave.losses import (
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
)
from fastwave.models import ParallelWaveGAN, ParallelWaveGANConfig
from fastwave.train import loop
from fastwave.train.data import find_clips
from fastwave.train.parallel_wavegan import ParallelWaveGANTraining

NAME = "kan-bayashi/ParallelWaveGAN"
GENERATOR, CAUSAL = "kan-bayashi__pwg_generator", "kan-bayashi__pwg_generator_causal"
LJ = Path(__file__).parents[2] / "shared" / "data" / "lj"

both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
generators = pytest.mark.parametrize("name", [GENERATOR, CAUSAL], ids=["centred", "causal"])


def load(name, dtype=torch.float32):
    golden = Golden(name, dtype)
    if dtype == torch.float64:  # what a converter folds is rounded to float32 once more
        golden.rounding = {key: 2 * value for key, value in golden.rounding.items()}
    return golden


def converted(name, dtype=torch.float32):
    golden = load(name, dtype)
    stats = {"mean": golden["in.mean"], "scale": golden["in.scale"]}
    container = {"model": {"generator": golden.state_dict(), "discriminator": {}}, "steps": 400_000}
    model = fastwave.convert({"generator": container, "stats": stats}, NAME, {"generator_params": golden.hparams})
    return golden, model.to(dtype).requires_grad_(False)


# goldens -------------------------------------------------------------------------------------------------------------


@everywhere
@generators
def test_generator(name, dtype, kernels):
    golden, model = converted(name, dtype)
    golden.check(model.upsampler(golden["in.c"]), "upsampled")
    c = run_upsampler(model.upsampler, golden["in.c"], kernels)
    golden.check(c, "upsampled")
    y = run_stack(model.stack, golden["in.z"], kernels, c=c)
    golden.check(y, "y")
    golden.check(y, "y_wn_removed")  # theirs with its weights folded, as ours are
    golden.check(model(golden["in.z"][:, 0], golden["in.c"])[:, None], "y")


@pytest.mark.parametrize("kernels", [False, True], ids=["float32", "kernels"])
@generators
def test_inference(name, kernels):
    """Edge frames are replicated; mels that are not normalised yet are, by what the MelSpec holds."""
    golden, model = converted(name)
    generate = fastwave.Vocoder(model).generate if kernels else model.generate
    mel, z = golden["in.c_inference"].T[None], golden["in.z_inference"].T
    golden.check(generate(mel, noise=z).T, "y_inference")
    mean, std = (torch.tensor(column)[:, None] for column in (model.config.mel.mean, model.config.mel.std))
    golden.check(generate((mel - mean) / std, noise=z).T, "y_inference_normalized")


def full_size(name):
    """A golden of a full configuration: its tensors, state dict and configuration."""
    golden = Golden(f"full/{name}", torch.float32)
    return golden.tensors, golden.state_dict(), golden.hparams["config"]


def assert_close(result, expected):
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_full_size_generator():
    tensors, state_dict, params = full_size("pwg_v1_generator")
    with pytest.warns(UserWarning, match="stats are not given: mels must be normalised by the statistics of the data"):
        model = fastwave.convert(state_dict, NAME, {"generator_params": params})
    assert model.config == ParallelWaveGANConfig(mel=MelSpec.preset(NAME), upsample_scales=(4, 4, 4, 4))
    for generate in (model.generate, fastwave.Vocoder(model).generate):
        assert_close(generate(tensors["in.c"].T[None], noise=tensors["in.z"].T).T, tensors["out.y"])


def test_full_size_discriminator():
    tensors, state_dict, _ = full_size("pwg_v1_discriminator")
    discriminator = ParallelWaveGANDiscriminator().requires_grad_(False)
    discriminator.load_state_dict(state_dict)
    assert_close(discriminator(tensors["in.x"][:, 0])[:, None], tensors["out.p"])


@both_dtypes
@pytest.mark.parametrize(
    "name, kind, sizes",
    [
        ("kan-bayashi__pwg_discriminator", ParallelWaveGANDiscriminator, dict(layers=6, channels=11)),
        (
            "kan-bayashi__pwg_resdisc",
            ResidualParallelWaveGANDiscriminator,
            dict(layers=6, stacks=2, residual_channels=10, gate_channels=8, skip_channels=12),
        ),
    ],
    ids=["dilated", "residual"],
)
def test_discriminators(name, kind, sizes, dtype):
    golden = load(name, dtype)
    discriminator = kind(**sizes).to(dtype).requires_grad_(False)
    discriminator.load_state_dict(golden.state_dict())
    golden.check(discriminator(golden["in.x"][:, 0])[:, None], "p")


def gradients_of_weight_norm(golden, model):
    """What the peer's parameters would get of the gradients of ours, by its names."""
    hparams = golden.hparams["generator"]
    table = expand(TABLE, hparams["layers"])
    for stage, _ in enumerate(hparams["upsample_params"]["upsample_scales"]):
        table[f"upsampler.stages.{stage}.weight"] = f"{UP_LAYERS}{2 * stage + 1}.weight"
    gradients = {}
    for ours, theirs in table.items():
        if not ours.startswith(f"stack.residual.{hparams['layers'] - 1}."):  # the last layer has no residual
            gradient = model.get_parameter(ours).grad
            if ours == "stack.head.0.weight":
                gradient = gradient * math.sqrt(1 / hparams["layers"])
            if theirs.endswith("bias"):
                gradients[theirs] = gradient
            else:
                g, v = (golden[f"sd.g.{theirs}_{part}"].clone().requires_grad_() for part in "gv")
                folded = torch._weight_norm(v, g, 0)
                of_g, of_v = torch.autograd.grad(folded, (g, v), gradient)
                gradients |= {f"{theirs}_g": of_g, f"{theirs}_v": of_v}
    return gradients


@both_dtypes
def test_training_step(dtype):
    """Both losses and their gradients."""
    golden = load("kan-bayashi__pwg_train_step", dtype)
    with pytest.warns(UserWarning, match="stats are not given"):
        model = fastwave.convert(
            golden.state_dict("sd.g."), NAME, {"generator_params": golden.hparams["generator"]}
        ).to(dtype)
    discriminator = ParallelWaveGANDiscriminator(layers=6, channels=11).to(dtype)
    discriminator.load_state_dict(golden.state_dict("sd.d."))

    wave = golden["in.y"][:, 0]
    fake = model(golden["in.z"][:, 0], golden["in.c"])
    golden.check(fake.detach()[:, None], "y_hat")
    scores = discriminator(fake)
    golden.check(scores.detach()[:, None], "p_fake")
    adversarial = least_squares_generator_loss(scores)
    golden.check(adversarial.detach(), "adv_loss")
    for distance, name in zip(stft_distances(fake.detach(), wave), ("sc_loss", "mag_loss"), strict=True):
        golden.check(distance.mean(), name)
    loss = model.stft_loss(fake, wave) + 4 * adversarial
    golden.check(loss.detach(), "gen_loss")
    loss.backward()
    gradients = gradients_of_weight_norm(golden, model)
    golden.check(torch.stack([gradient.norm() for gradient in gradients.values()]).norm(), "gen_grad_norm")

    discriminator.zero_grad()
    real, fake = discriminator(wave), discriminator(fake.detach())
    golden.check(real.detach()[:, None], "p_real")
    loss = least_squares_discriminator_loss(real, fake)
    golden.check(loss.detach(), "dis_loss")
    golden.check(least_squares_discriminator_loss(real.detach(), torch.zeros(())), "real_loss")
    golden.check(least_squares_discriminator_loss(torch.ones(()), fake.detach()), "fake_loss")
    loss.backward()

    for key, gradient in gradients.items():
        golden.check(gradient, f"grad.g.{key}")
    names = {"original0": "weight_g", "original1": "weight_v"}
    for key, parameter in discriminator.named_parameters():
        module, _, part = key.replace(".parametrizations.weight", "").rpartition(".")
        golden.check(parameter.grad, f"grad.d.{module}.{names.get(part, part)}")
    checked = len(gradients) + len(list(discriminator.parameters()))
    assert checked == sum(key.startswith("out.grad.") for key in golden.tensors)


@both_dtypes
def test_losses_of_several_discriminators(dtype):
    """The peer's are means over discriminators, or sums."""
    golden = load("kan-bayashi__pwg_train_step", dtype)
    p_real, p_fake = golden["out.p_real"], golden["out.p_fake"]
    fake = [[p_fake, 0.5 * p_fake], [0.3 * p_fake, 1.1 * p_fake, p_fake]]  # features, and the score last
    real = [[p_real, 0.7 * p_real], [0.2 * p_real, p_real, 0.9 * p_real]]

    def total(loss, *scores):
        return torch.stack([loss(*(features[-1] for features in each)) for each in zip(*scores, strict=True)]).sum()

    for name in ("list_dis_hinge", "list_dis_mse", "list_dis_mse_sum"):  # of speech, and of samples
        golden.tensors[f"out.{name}"] = golden[f"out.{name}"].sum()
    golden.check(total(hinge_generator_loss, fake) / 2, "list_gen_hinge")
    golden.check(total(hinge_discriminator_loss, real, fake) / 2, "list_dis_hinge")
    golden.check(total(least_squares_generator_loss, fake) / 2, "list_gen_mse")
    golden.check(total(least_squares_discriminator_loss, real, fake) / 2, "list_dis_mse")
    golden.check(total(least_squares_generator_loss, fake), "list_gen_mse_sum")
    golden.check(total(least_squares_discriminator_loss, real, fake), "list_dis_mse_sum")
    matching = [feature_matching_loss(r[:-1], f[:-1]) for r, f in zip(real, fake, strict=True)]
    golden.check(sum(matching) / 2, "list_featmatch_avg")
    golden.check(matching[0] + 2 * matching[1], "list_featmatch_sum")


# the model -----------------------------------------------------------------------------------------------------------

SPEC = MelSpec(sample_rate=8000, n_fft=64, hop_length=16, win_length=64, n_mels=6, fmax=4000.0)
TINY = ParallelWaveGANConfig(
    mel=SPEC,
    upsample_scales=(4, 4),
    upsample_context=1,
    residual_channels=6,
    gate_channels=6,
    skip_channels=6,
    dilations=(1, 2, 4, 1, 2, 4),
)
configs = pytest.mark.parametrize("config", [TINY, dataclasses.replace(TINY, causal=True)], ids=["centred", "causal"])


def build(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ParallelWaveGAN(config).double().requires_grad_(False)


def normal(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@configs
def test_what_a_frame_and_its_noise_reach(config):
    """Of a causal model nothing before them."""
    model, mel, z = build(config), normal(1, 6, 9), normal(1, 144, seed=1)
    later_mel, later_z = mel.clone(), z.clone()
    later_mel[..., 5:] += 1
    later_z[..., 80:] += 1
    wave = model.generate(mel, noise=z)
    for changed in (model.generate(later_mel, noise=z), model.generate(mel, noise=later_z)):
        assert (changed != wave)[0, 80:].any()
        assert (changed != wave)[0, :80].any() != config.causal


def test_loss_is_the_stft_distance_of_a_sample():
    model, wave, mel = build(TINY), normal(2, 1600) / 10, normal(2, 6, 102)
    torch.manual_seed(0)
    loss = model.loss(wave, mel)
    torch.manual_seed(0)
    assert loss == model.stft_loss(model(torch.randn_like(wave), mel), wave)


def test_a_causal_model_is_stretched():
    message = "upsampler must be 'stretched' where it is causal, got 'nearest'"
    assert_refused(lambda: ParallelWaveGAN(dataclasses.replace(TINY, causal=True, upsampler="nearest")), message)


# training ------------------------------------------------------------------------------------------------------------


def tone(samples, seed):
    """Harmonics of a pitch that rises, in noise."""
    generator = torch.Generator().manual_seed(seed)
    phase = 2 * math.pi * torch.cumsum(torch.linspace(0.02, 0.04, samples), 0)
    return 0.2 * sum(torch.sin(k * phase) / k for k in (1, 2, 3)) + 0.01 * torch.randn(samples, generator=generator)


@pytest.fixture
def options(tmp_path):
    """Makes the options of a tiny run; the discriminator learns from its third step on."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for seed in range(2):
        audio.write(clips / f"{seed}.wav", tone(4000 + 777 * seed, seed), 8000)
    (tmp_path / "config.json").write_text(json.dumps(checkpoint.config_to_dict(TINY)))

    def make(**changes):
        values = dict(data=clips, out=tmp_path / "run", config=tmp_path / "config.json", steps=6, batch=2, frames=80)
        values |= dict(discriminator_channels=4, discriminator_start=2)
        return ParallelWaveGANTraining(**(values | changes))

    return make


def state(training):
    return torch.load(training.out / "checkpoint.pt", weights_only=True)


@pytest.mark.parametrize("discriminator", ["dilated", "residual"])
def test_a_run_in_pieces_ends_like_another(options, tmp_path, discriminator):
    whole = options(discriminator=discriminator, out=tmp_path / "whole")
    pieces = options(discriminator=discriminator)
    loop.run(whole, quiet=True)
    for _ in range(6):  # one step each
        loop.run(dataclasses.replace(pieces, minutes=1e-9), quiet=True)
    ends = [state(whole), state(pieces)]
    assert [end["step"] for end in ends] == [6, 6]
    assert set(ends[0]["modules"]) == {"model", "discriminator"}
    for part in ("modules", "optimizers"):
        torch.testing.assert_close(ends[0][part], ends[1][part], rtol=0, atol=0)
    lines = [json.loads(line) for line in (pieces.out / "log.jsonl").read_text().splitlines()]
    assert ["discriminator_loss" in line for line in lines] == [False] * 2 + [True] * 4


def test_a_checkpoint_with_another_discriminator(options):
    loop.run(options(steps=1), quiet=True)
    message = "out must hold a checkpoint with the same discriminator, got another in "
    for changes in (dict(discriminator="residual"), dict(discriminator_channels=5)):
        assert_refused(lambda changes=changes: loop.run(options(**changes), quiet=True), message)


def test_the_discriminator_starts_when_it_should(options):
    training = options(steps=3)
    torch.manual_seed(training.seed)
    ParallelWaveGAN(TINY)
    untrained = training.make_discriminator().state_dict()
    for same in (True, True, False):
        loop.run(dataclasses.replace(training, minutes=1e-9), quiet=True)
        trained = state(training)["modules"]["discriminator"]
        assert all(torch.equal(trained[key], untrained[key]) for key in untrained) == same


def test_the_discriminator_sees_what_the_updated_generator_makes(options, monkeypatch):
    """And the generator's loss has none of the discriminator's, and the reverse."""
    training = options()
    model = build(TINY).float().requires_grad_()
    objective = training.objective(model, training)
    seen = []
    objective.discriminator.register_forward_hook(lambda module, inputs, _: seen.append(inputs[0]))
    wave, mel = 0.1 * normal(2, 1280).float(), normal(2, 6, 82).float()
    losses = objective.losses(wave, mel, step=2)
    name, _ = next(losses)
    assert name == "model" and seen[0].requires_grad
    with torch.no_grad():
        model.stack.head[-1].bias += 1
    name, _ = next(losses)
    assert name == "discriminator" and torch.equal(seen[1], wave)
    assert not seen[2].requires_grad
    torch.testing.assert_close(seen[2], seen[0].detach() + 1)
    assert [name for name, _ in objective.losses(wave, mel, step=1)] == ["model"]


def test_schedule(options):
    training = options(halve_every=100)
    objective = training.objective(build(TINY), training)
    for step, factor in ((0, 1), (99, 1), (100, 0.5), (399, 0.125)):
        assert objective.learning_rate("model", step) == pytest.approx(1e-4 * factor)
        assert objective.learning_rate("discriminator", step) == pytest.approx(5e-5 * factor)
    learners = objective.learners
    assert {name: learner.clip_norm for name, learner in learners.items()} == {"model": 10.0, "discriminator": 1.0}
    for learner in learners.values():
        assert isinstance(learner.optimizer, torch.optim.RAdam)
        assert learner.optimizer.param_groups[0]["eps"] == 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(halve_every=0), "halve_every must be at least 1, got 0"),
        (dict(discriminator_channels=0), "discriminator_channels must be at least 1, got 0"),
        (dict(discriminator_start=-1), "discriminator_start must be at least 0, got -1"),
        (dict(lambda_adv=0.0), "lambda_adv must be above 0, got 0.0"),
        (dict(discriminator_learning_rate=math.nan), "discriminator_learning_rate must be above 0, got nan"),
        (dict(discriminator_clip_norm=-1.0), "discriminator_clip_norm must be above 0, got -1.0"),
    ],
)
def test_bad_options(options, changes, message):
    assert_refused(lambda: loop.run(options(**changes), quiet=True), message)


@pytest.mark.skipif(not LJ.is_dir(), reason="needs the clips of LJ Speech beside the repository")
def test_it_learns_speech(tmp_path):
    """Two hundred steps, the last half of them adversarial."""
    clip = min(find_clips(LJ), key=lambda clip: clip.samples)
    (tmp_path / "clips").mkdir()
    wave, rate = soundfile.read(clip.path)
    soundfile.write(tmp_path / "clips" / "speech.wav", wave, rate)
    config = dataclasses.replace(
        ParallelWaveGANTraining.preset,
        residual_channels=16,
        gate_channels=16,
        skip_channels=16,
        dilations=[2**i for i in range(6)],
        upsample_scales=(4, 4),
        cond_repeat=16,
    )
    (tmp_path / "config.json").write_text(json.dumps(checkpoint.config_to_dict(config)))
    training = ParallelWaveGANTraining(
        data=tmp_path / "clips",
        out=tmp_path / "run",
        config=tmp_path / "config.json",
        steps=200,
        interval=20,
        batch=2,
        frames=8,
        learning_rate=3e-3,
        discriminator_channels=8,
        discriminator_start=100,
    )
    loop.run(training, quiet=True)
    lines = [json.loads(line) for line in (training.out / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert losses[4] < losses[0] - 0.5
    assert sum(losses[-2:]) < sum(losses[5:7])
    assert lines[-1]["discriminator_loss"] < lines[5]["discriminator_loss"]
