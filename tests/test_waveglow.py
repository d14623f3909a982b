"""WaveGlow: what its peer computed, its latents and log-determinants, its checkpoints, and that it learns."""

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
from fastwave.models import Denoiser, WaveGlow, WaveGlowConfig
from fastwave.train import TRAININGS

SOURCE, NAME = "NVIDIA/waveglow", "NVIDIA_waveglow__glow"
MEL = MelSpec(sample_rate=8000, n_fft=64, hop_length=16, win_length=64, n_mels=3, fmax=4000.0)
SMALL = WaveGlowConfig(
    mel=MEL, flows=4, group=8, early_every=2, early_size=2, layers=2, channels=4, upsample_kernel=40, sigma=0.8
)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(dtype=torch.float64, **changes):
    """A tiny model with random weights, of the couplings' last products too."""
    torch.manual_seed(0)
    model = WaveGlow(dataclasses.replace(SMALL, **changes)).to(dtype).requires_grad_(False)
    for parameter in model.flow.parameters():
        parameter += 0.1 * normal(*parameter.shape).to(dtype)
    return model


def converted(dtype=torch.float32):
    golden = Golden(NAME, dtype)
    return golden, fastwave.convert(golden.state_dict(), SOURCE, golden.hparams).to(dtype).requires_grad_(False)


# golden --------------------------------------------------------------------------------------------------------------


@both_dtypes
def test_forward(dtype):
    golden, model = converted(dtype)
    wave, mel = golden["in.audio"], golden["in.mel"]
    conditioning = model.condition(mel)
    golden.check(conditioning, "upsampled")
    z, log_sigmas, logdets = model.transform(wave, conditioning)
    golden.check(z, "z")
    for k, (log_sigma, logdet) in enumerate(zip(log_sigmas, logdets, strict=True)):
        golden.check(log_sigma, f"log_s.{k}")
        golden.check(len(wave) * logdet, f"log_det_W.{k}")
    for sigma in (1.0, 0.6):
        golden.check(flow_nll(*model(wave, mel), sigma), f"loss_sigma{sigma:g}")
    golden.check(model.loss(wave, mel), "loss_sigma1")


@everywhere
@pytest.mark.parametrize("sigma", [0, 0.6, 1])
def test_inference(sigma, dtype, kernels):
    golden, model = converted(dtype)
    early = sorted((key for key in golden.tensors if key.startswith("in.z_early.")), key=lambda key: int(key[11:]))
    z = torch.cat([golden[key] for key in (*early, "in.z_last")], 1)
    run = run_model(model, model.condition(golden["in.mel"]), kernels)
    golden.check(model.synthesize(sigma * z, run)[:, 0], f"infer_sigma{sigma}")
    generate = (fastwave.Vocoder(model) if kernels else model).generate
    golden.check(generate(golden["in.mel"], noise=z, temperature=sigma), f"infer_sigma{sigma}")


# the model -----------------------------------------------------------------------------------------------------------


def test_the_papers_model_has_the_papers_size():
    with torch.device("meta"):
        model = WaveGlow(WaveGlowConfig(mel=MelSpec.preset(SOURCE)))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(87.9e6, rel=0.01)
    assert model.config.widths() == [8] * 4 + [6] * 4 + [4] * 4
    assert len(model.noise_kinds) == 8 and model.noise_rate == 32


def test_loss_is_the_likelihood_of_a_gaussian():
    model, wave, mel = small(), normal(2, 48), normal(2, 3, 3, seed=1)
    z, logdet = model(wave, mel)
    log_prob = torch.distributions.Normal(0, 0.8).log_prob(z).sum() + logdet.sum()
    constant = math.log(0.8) + 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(model.loss(wave, mel), -log_prob / wave.numel() - constant)


def test_reach_of_the_conditioning():
    model, mel = small(), normal(1, 3, 12)
    changed = mel.clone()
    changed[..., 6] += 10
    differs = (model.condition(changed) != model.condition(mel)).any(1)[0]
    frames = differs.unflatten(0, (12, model.condition_rate)).any(1).nonzero()[:, 0]
    before, after = model.condition_reach
    assert frames.tolist() == list(range(6 - after, 7 + before))


def test_a_coupling_is_the_identity_at_first():
    torch.manual_seed(0)
    model = WaveGlow(SMALL).requires_grad_(False)
    _, log_sigmas, _ = model.transform(torch.randn(1, 32), model.condition(torch.randn(1, 3, 2)))
    assert not any(log_sigma.any() for log_sigma in log_sigmas)
    torch.testing.assert_close(model(torch.randn(1, 32), torch.randn(1, 3, 2))[1], torch.zeros(1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(flows=0), "flows must be at least 1, got 0"),
        (dict(layers=0), "layers must be at least 1, got 0"),
        (dict(group=6), "group must divide hop_length 16, got 6"),
        (dict(upsample_kernel=15), "upsample_kernel must be at least hop_length 16, got 15"),
        (dict(sigma=0.0), "sigma must be above 0, got 0.0"),
        (dict(early_size=1), "must leave every flow an even number of channels, got [8, 8, 7, 7]"),
        (dict(early_size=8), "must leave every flow an even number of channels, got [8, 8, 0, 0]"),
        (dict(early_size=-2), "must leave every flow an even number of channels, got [8, 8, 10, 10]"),
        (dict(kernel_size=2), "kernel_size of a centred stack must be odd, got 2"),
    ],
)
def test_bad_configurations(changes, message):
    assert_refused(lambda: dataclasses.replace(SMALL, **changes), message)


# checkpoints ---------------------------------------------------------------------------------------------------------

# config.json of the peer, at the golden's sizes
CONFIG = {
    "train_config": {"learning_rate": 1e-4, "sigma": 0.7, "seed": 1234},
    "data_config": {"segment_length": 16000, "sampling_rate": 16000, "filter_length": 2048, "hop_length": 256}
    | {"win_length": 800, "mel_fmin": 50.0, "mel_fmax": 7000.0},
    "waveglow_config": {"n_mel_channels": 5, "n_flows": 6, "n_group": 8, "n_early_every": 2, "n_early_size": 2}
    | {"WN_config": {"n_layers": 3, "n_channels": 8, "kernel_size": 3}},
}


def older(tensors):
    """One convolution per layer for the conditioning."""
    out = {}
    for key, value in tensors.items():
        flow, _, rest = key.partition("cond_layer.")
        parts = value.chunk(3) if rest else [value]
        out |= {f"{flow}cond_layers.{i}.{rest}" if rest else key: part for i, part in enumerate(parts)}
    return out


@pytest.mark.parametrize(
    "form",
    [
        dict,
        older,
        lambda tensors: {"model": tensors, "optimizer": {"state": {}}, "iteration": 3, "learning_rate": 1e-4},
        lambda tensors: {"state_dict": {f"module.{key}": value for key, value in tensors.items()}},
    ],
    ids=["bare", "older", "model", "state_dict"],
)
def test_forms_of_a_checkpoint(form, tmp_path):
    golden, model = converted()
    torch.save(form(golden.state_dict()), tmp_path / "waveglow.pt")
    assert_same(fastwave.convert(tmp_path / "waveglow.pt", SOURCE), model)


def test_the_tensors_tell_the_sizes():
    golden, model = converted()
    assert model.config == WaveGlowConfig(
        mel=dataclasses.replace(MelSpec.preset(SOURCE), n_mels=5), flows=6, early_every=2, layers=3, channels=8
    )
    mel = dict(sample_rate=16000, n_fft=2048, win_length=800, fmin=50.0, fmax=7000.0)
    changed = dataclasses.replace(model.config, mel=dataclasses.replace(model.config.mel, **mel), sigma=0.7)
    assert fastwave.convert(golden.state_dict(), SOURCE, CONFIG).config == changed


def test_without_early_outputs():
    golden = Golden(NAME, torch.float32)
    two = {
        key: value for key, value in golden.state_dict().items() if key.split(".")[1] in ("0", "1", "weight", "bias")
    }
    config = fastwave.convert(two, SOURCE).config
    assert config.widths() == [8, 8]


def test_a_pickled_module_is_refused(tmp_path):
    torch.save({"model": small(), "iteration": 3}, tmp_path / "waveglow_256channels.pt")
    export = 'where it was made, torch.save({"state_dict": model.state_dict()}, path)'
    assert_refused(lambda: fastwave.convert(tmp_path / "waveglow_256channels.pt", SOURCE), export)


@pytest.mark.parametrize(
    ("tensors", "hparams", "message"),
    [
        (dict(WN__1__cond_layer__bias=None), {}, "keys of its source: missing WN.1.cond_layer.bias"),
        (dict(WN__5__end__weight=None, step=torch.ones(1)), {}, "missing WN.5.end.weight; unexpected step"),
        (dict(convinv__1__conv__weight=torch.ones(6, 6, 1)), {}, "got [8, 6, "),
        (dict(convinv__3__conv__weight=torch.ones(8, 8, 1)), {}, "convinv.3.conv.weight must be (6, 6, 1), got (8, 8"),
        (dict(WN__0__cond_layer__bias=torch.ones(47)), {}, "WN.0.cond_layer.bias must be (48,), got (47,)"),
        (dict(WN__2__end__bias=torch.ones(8)), {}, "WN.2.end.bias must be (6,), got (8,)"),
        ({}, {"n_flows": 12}, "hparams n_flows must be 6, as in the tensors, got 12"),
        ({}, {"n_early_every": 4}, "hparams n_early_every must be 2, as in the tensors, got 4"),
        ({}, {"WN_config": {"n_channels": 512}}, "hparams n_channels must be 8, as in the tensors, got 512"),
        ({}, {"data_config": {"hop_length": 200}}, "hparams hop_length must be 256, as in the tensors, got 200"),
        ({}, {"waveglow_config": 3}, "hparams waveglow_config must be of type dict, got 3"),
        ({}, {"sigma": 0.0}, "sigma must be above 0, got 0.0"),
    ],
)
def test_refused(tensors, hparams, message):
    state_dict = Golden(NAME, torch.float32).state_dict()
    assert_refused(lambda: fastwave.convert(edited(state_dict, **tensors), SOURCE, hparams), message)


# the denoiser --------------------------------------------------------------------------------------------------------


def frames(wave, n_fft=1024):
    """STFT by its definition: (frames, n_fft / 2 + 1)."""
    padded = torch.nn.functional.pad(wave[None], (n_fft // 2, n_fft // 2), "reflect")[0]
    return torch.fft.rfft(padded.unfold(0, n_fft, n_fft // 4) * torch.hann_window(n_fft, dtype=wave.dtype))


def test_denoiser():
    mel = dataclasses.replace(MEL, n_fft=1024, win_length=1024, hop_length=64)
    model = small(torch.float32, mel=mel, upsample_kernel=128)
    denoiser, wave = Denoiser(model), 0.1 * normal(2, 4000, seed=2)
    hum = model.generate(torch.zeros(1, 3, 88), temperature=0)[0].double()
    bias = frames(hum)[0].abs()
    torch.testing.assert_close(denoiser.bias[0, :, 0].double(), bias, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(denoiser(wave, 0.0), wave)
    for wrong in (wave[0], wave[:, :512]):
        with pytest.raises(ValueError, match=r"wave must be \(batch, over 512 samples\), got \("):
            denoiser(wrong)

    out = denoiser(wave, 0.3)
    assert out.shape == wave.shape
    for row in range(2):
        spectrum = frames(wave[row])
        lowered = spectrum * ((spectrum.abs() - 0.3 * bias).clamp(min=0) / spectrum.abs())
        window = torch.hann_window(1024, dtype=wave.dtype)
        total, weight = torch.zeros(2, 5024, dtype=wave.dtype)
        for i, frame in enumerate(torch.fft.irfft(lowered)):
            total[256 * i : 256 * i + 1024] += frame * window
            weight[256 * i : 256 * i + 1024] += window**2
        expected = total / weight.clamp(min=1e-12)
        end = 256 * (len(spectrum) - 1)  # the last frame's centre
        torch.testing.assert_close(out[row, :end], expected[512 : 512 + end], rtol=1e-4, atol=1e-5)


def test_denoiser_takes_out_the_hum():
    mel = dataclasses.replace(MEL, n_fft=1024, win_length=1024, hop_length=64)
    model = small(torch.float32, mel=mel, upsample_kernel=128)
    hum = model.generate(torch.zeros(1, 3, 88), temperature=0)
    assert Denoiser(model)(hum, 1.0).square().mean() < 0.1 * hum.square().mean()


# training ------------------------------------------------------------------------------------------------------------


def test_a_resumed_run_ends_like_another(tmp_path):
    assert_resumes(TRAININGS["waveglow"], SMALL, tmp_path, batch=2, frames=20)


@needs_speech
def test_it_learns_speech(tmp_path):
    mel = MelSpec(n_mels=20)
    config = WaveGlowConfig(mel=mel, flows=4, early_every=2, layers=4, channels=16, upsample_kernel=512)
    options = dict(batch=2, frames=8, learning_rate=4e-3, warmup=20)
    losses = losses_on_speech(TRAININGS["waveglow"], config, tmp_path, **options)
    assert losses[-1] < losses[0] - 1
