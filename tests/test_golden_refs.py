"""The reference ops against what the public implementations computed (tests/golden.py)."""

import pytest
import torch
from golden import (
    Golden,
    diffwave_stack,
    ksw0306_stack,
    r9y9_speaker_vectors,
    r9y9_stack,
    r9y9_upsampler,
    transposed_upsampler,
    waveglow_coupling,
)
from torch.nn import functional as F

from fastwave.distributions import Gaussian, MixtureOfGaussians, MixtureOfLogistics, Softmax
from fastwave.losses import MultiResolutionSTFTLoss
from fastwave.ops import heads
from fastwave.ops.gated_stack import gated_stack_ref
from fastwave.ops.upsample import upsample_ref
from fastwave.ops.wavenet_sample import HeadSpec, initial_sampler_state, wavenet_sample_ref

R9Y9 = {
    "gaussian_local": Gaussian(),
    "mixgauss3_local": MixtureOfGaussians(3),
    "mol10_local": MixtureOfLogistics(10),
    "mol10_local_global": MixtureOfLogistics(10),
    "mulaw256_local": Softmax(256),
}
HEADS = {Gaussian: "gaussian", MixtureOfGaussians: "mixture_of_gaussians", MixtureOfLogistics: "mixture_of_logistics"}
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def r9y9(model, dtype):
    return Golden(f"r9y9_wavenet_vocoder__{model}", dtype)


def ksw0306_teacher(dtype):
    golden = Golden("ksw0306_ClariNet__teacher_gaussian", dtype)
    hparams = golden.hparams
    k = hparams["kernel_size"]
    dilations = [k**i for i in range(hparams["num_layers"])] * hparams["num_blocks"]
    return golden, *ksw0306_stack(golden, width=32, kernel_size=k, dilations=dilations)


def clarinet_upsampler(golden):
    return transposed_upsampler(golden, ["upsample_conv.0", "upsample_conv.2"], golden.hparams["upsample_scales"])


# gated_stack ---------------------------------------------------------------------------------------------------------


@both_dtypes
def test_clarinet_student(dtype):
    golden = Golden("ksw0306_ClariNet__student_iaf", dtype)
    hparams = golden.hparams["student"]
    z = golden["in.z"]
    mu_tot, log_sigma_tot = 0, 0
    for i, blocks in enumerate(hparams["num_blocks_student"]):
        dilations = [2**n for n in range(hparams["num_layers"])] * blocks
        shape = dict(width=hparams["front_channels"], kernel_size=hparams["kernel_size"], dilations=dilations)
        spec, weights = ksw0306_stack(golden, f"iafs.{i}.", **shape)
        mu, log_sigma = gated_stack_ref(z, weights, spec, c=golden["out.c_up"])[..., :-1].chunk(2, 1)
        mu_tot, log_sigma_tot = mu_tot * log_sigma.exp() + mu, log_sigma_tot + log_sigma
        spec, _ = ksw0306_stack(golden, f"iafs.{i}.", **shape, epilogue="affine", delay="output")
        z = gated_stack_ref(z, weights, spec, c=golden["out.c_up"])
    golden.check(z, "generate")
    golden.check(z, "x_student")
    golden.check(mu_tot, "mu_tot")
    golden.check(log_sigma_tot, "logs_tot")


@both_dtypes
def test_clarinet_teacher(dtype):
    golden, spec, weights = ksw0306_teacher(dtype)
    parameters = gated_stack_ref(golden["in.x"], weights, spec, c=golden["out.c_up"])
    golden.check(parameters, "forward")
    nll = -Gaussian().log_prob(parameters[..., :-1], golden["in.x"][:, 0, 1:], log_scale_min=-9.0)
    golden.check(nll, "nll")


@both_dtypes
def test_diffwave(dtype):
    golden = Golden("lmnt__diffwave", dtype)
    module = transposed_upsampler(golden, [f"spectrogram_upsampler.conv{i}" for i in (1, 2)], (16, 16))
    c = upsample_ref(golden["in.mel"], module.weights(), module.spec)
    golden.check(c, "upsampled")

    angle = golden["in.step_int"][:, None] * 10.0 ** (torch.arange(64) * 4 / 63)  # up to 5e5: float32 is part of it
    step = torch.cat([angle.sin(), angle.cos()], 1).to(dtype)
    for i in (1, 2):
        projection = f"diffusion_embedding.projection{i}"
        step = F.silu(step @ golden.matrix(projection).T + golden.bias(projection))
    projections = [f"residual_layers.{i}.diffusion_projection" for i in range(golden.hparams["residual_layers"])]
    u = torch.stack([step @ golden.matrix(key).T + golden.bias(key) for key in projections], 1)

    spec, weights = diffwave_stack(golden)
    golden.check(gated_stack_ref(golden["in.audio"][:, None], weights, spec, c=c, u=u), "eps_int_step")


def waveglow_conditioning(golden):
    """Upsampled mel, and the same in groups: (batch, n_mels * n_group, groups)."""
    mel, group = golden["in.mel"], golden.hparams["n_group"]
    up = F.conv_transpose1d(mel, golden["sd.upsample.weight"], golden["sd.upsample.bias"], stride=256)
    up = up[..., : mel.shape[-1] * 256]
    return up, up.unflatten(2, (-1, group)).permute(0, 1, 3, 2).flatten(1, 2)


@both_dtypes
@pytest.mark.parametrize("sigma", ["0", "0.6", "1"])
def test_waveglow_inference(sigma, dtype):
    golden = Golden("NVIDIA_waveglow__glow", dtype)
    up, c = waveglow_conditioning(golden)
    golden.check(up, "upsampled")
    audio = float(sigma) * golden["in.z_last"]
    for k in reversed(range(golden.hparams["n_flows"])):
        spec, weights = waveglow_coupling(golden, k, epilogue="inverse")
        x, y = audio.chunk(2, 1)
        audio = torch.cat([x, gated_stack_ref(x, weights, spec, c=c, y=y)], 1)
        audio = golden.matrix(f"convinv.{k}.conv").inverse() @ audio
        if f"in.z_early.{k}" in golden:
            audio = torch.cat([float(sigma) * golden[f"in.z_early.{k}"], audio], 1)
    golden.check(audio.transpose(1, 2).flatten(1), f"infer_sigma{sigma}")


@both_dtypes
def test_waveglow_forward(dtype):
    golden = Golden("NVIDIA_waveglow__glow", dtype)
    _, c = waveglow_conditioning(golden)
    hparams = golden.hparams
    audio = golden["in.audio"].unflatten(1, (-1, hparams["n_group"])).transpose(1, 2)
    early = []
    for k in range(hparams["n_flows"]):
        if k and k % hparams["n_early_every"] == 0:
            emitted, audio = audio.tensor_split([hparams["n_early_size"]], 1)
            early.append(emitted)
        x, y = (golden.matrix(f"convinv.{k}.conv") @ audio).chunk(2, 1)
        spec, weights = waveglow_coupling(golden, k)
        golden.check(gated_stack_ref(x, weights, spec, c=c).chunk(2, 1)[1], f"log_s.{k}")
        spec, _ = waveglow_coupling(golden, k, epilogue="affine")
        audio = torch.cat([x, gated_stack_ref(x, weights, spec, c=c, y=y)], 1)
    golden.check(torch.cat([*early, audio], 1), "z")


@both_dtypes
@pytest.mark.parametrize("model", R9Y9)
def test_wavenet_vocoder(model, dtype):
    golden, distribution = r9y9(model, dtype), R9Y9[model]
    spec, weights = r9y9_stack(golden)
    g = r9y9_speaker_vectors(golden, golden["in.g"]) if "in.g" in golden else None
    if isinstance(distribution, Softmax):
        wave = distribution.decode_table().to(dtype)[golden["in.x_index"]]
        x = F.one_hot(golden["in.x_index"], 256).transpose(1, 2).to(dtype)
    else:
        x = golden["in.x"]
        wave = x[:, 0]
    parameters = gated_stack_ref(x, weights, spec, c=golden["out.c_up"], g=g)
    golden.check(parameters, "forward")
    nll = -distribution.log_prob(parameters[..., :-1], wave[:, 1:], golden.hparams["log_scale_min"])
    golden.check(nll[..., None], "nll")


# wavenet_sample ------------------------------------------------------------------------------------------------------


def sampling_conditioning(golden, module, samples):
    """The peers sampled from the first frames alone."""
    frames = samples // module.spec.columns_per_frame + 2 * module.spec.context
    return module(golden["in.c"][..., :frames])


def test_sampling_clarinet_teacher():
    golden, spec, weights = ksw0306_teacher(torch.float64)
    noise = golden["in.ar_eps"][None, None]
    c = sampling_conditioning(golden, clarinet_upsampler(golden), 96)[:1]
    for name, temperature in (("ar", 1.0), ("ar_mean", 0.0)):
        state = initial_sampler_state(spec, 1, dtype=noise.dtype)
        wave, parameters = wavenet_sample_ref(
            noise, weights, spec, HeadSpec(distribution="gaussian"), state=state, c=c, temperature=temperature
        )
        golden.check(wave[:, None], name)
        golden.check(parameters, f"{name}_params")


@both_dtypes
@pytest.mark.parametrize("model", [model for model in R9Y9 if model != "mulaw256_local"])
def test_sampling_wavenet_vocoder(model, dtype):
    golden, distribution = r9y9(model, dtype), R9Y9[model]
    spec, weights = r9y9_stack(golden)
    draws = [golden[f"in.{name}"] for name in ("ar_u_mix", "ar_u_log", "ar_eps") if f"in.{name}" in golden]
    noise = torch.cat([d if d.ndim == 3 else d[..., None] for d in draws], 2).permute(1, 2, 0)
    batch = len(noise)
    c = sampling_conditioning(golden, r9y9_upsampler(golden), noise.shape[2])
    head = HeadSpec(distribution=HEADS[type(distribution)])
    assert noise.shape[1] == head.noise_channels(spec.out_channels) == len(distribution.noise_kinds)
    g = r9y9_speaker_vectors(golden, golden["in.g"][:batch]) if "in.g" in golden else None
    for name, temperature in (("ar", 1.0), ("ar_mean", 0.0)):
        state = initial_sampler_state(spec, batch, dtype=dtype)
        wave, parameters = wavenet_sample_ref(
            noise, weights, spec, head, state=state, c=c[:batch], g=g, temperature=temperature
        )
        golden.check(wave[:, None], name)
        golden.check(parameters, f"{name}_params")


@both_dtypes
def test_sampling_wavenet_vocoder_softmax(dtype):
    golden, distribution = r9y9("mulaw256_local", dtype), R9Y9["mulaw256_local"]
    spec, weights = r9y9_stack(golden)
    table = distribution.decode_table().to(dtype)
    first = F.one_hot(torch.tensor(127), 256).to(dtype)
    noise = golden["in.ar_u"].T[:, None]
    c = sampling_conditioning(golden, r9y9_upsampler(golden), noise.shape[2])
    for name, temperature in (("ar", 1.0), ("ar_mean", 0.0)):
        wave, parameters = wavenet_sample_ref(
            noise,
            weights,
            spec,
            HeadSpec(distribution="softmax"),
            state=initial_sampler_state(spec, len(noise), first, dtype=dtype),
            c=c,
            table=table,
            temperature=temperature,
        )
        assert torch.equal(wave, table[golden[f"out.{name}_index"]])
        if temperature:
            golden.check(parameters, f"{name}_params")


# upsample ------------------------------------------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("model", ["clarinet", *R9Y9])
def test_upsampler(model, dtype):
    if model == "clarinet":
        golden = Golden("ksw0306_ClariNet__teacher_gaussian", dtype)
        module = clarinet_upsampler(golden)
    else:
        golden = r9y9(model, dtype)
        module = r9y9_upsampler(golden)
    golden.check(module(golden["in.c"]), "c_up")
    golden.check(upsample_ref(golden["in.c"], module.weights(), module.spec), "c_up")


# distributions -------------------------------------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize(
    "parameters, name, distribution, log_scale_min",
    [
        ("mol", "mol_nll_nc256_ls-7", MixtureOfLogistics(10, 256), -7.0),
        ("mol", "mol_nll_nc65536_ls-7", MixtureOfLogistics(10, 65536), -7.0),
        ("mol", "mol_nll_nc65536_ls-16", MixtureOfLogistics(10, 65536), -16.0),
        ("g2", "g2_nll", Gaussian(), -7.0),
        ("g9", "g9_nll", MixtureOfGaussians(3), -7.0),
    ],
)
def test_log_prob(parameters, name, distribution, log_scale_min, dtype):
    golden = r9y9("functions", dtype)
    log_prob = distribution.log_prob(golden[f"in.{parameters}"], golden["in.y"][..., 0], log_scale_min)
    golden.check(-log_prob[..., None], name)


@both_dtypes
@pytest.mark.parametrize(
    "parameters, name, draw",
    [
        ("mol", "mol_sample_clamp0", heads.mixture_of_logistics),
        ("g2", "g2_sample", heads.gaussian),
        ("g3", "g3_sample", heads.mixture_of_gaussians),
        ("g9", "g9_sample", heads.mixture_of_gaussians),
    ],
)
def test_draws(parameters, name, draw, dtype):
    golden = r9y9("functions", dtype)
    mixing = {"mol": "in.u_mix", "g9": "in.u_mix3"}.get(parameters)
    last = golden["in.u_log" if parameters == "mol" else "in.eps"][:, None]
    components = golden[mixing].transpose(1, 2) if mixing else last.new_full(last.shape, 0.5)
    noise = last if parameters == "g2" else torch.cat([components, last], 1)
    golden.check(draw(golden[f"in.{parameters}"], noise, 1.0).clamp(-1, 1), name)


# losses --------------------------------------------------------------------------------------------------------------


@both_dtypes
def test_multi_resolution_stft_loss(dtype):
    golden = Golden("kan-bayashi__losses_stft", dtype)
    fake = golden["in.fake"].clone().requires_grad_()
    loss = MultiResolutionSTFTLoss()(fake, golden["in.real"])
    loss.backward()
    golden.tensors["out.loss"] = golden["out.sc_loss"] + golden["out.mag_loss"]
    golden.rounding["loss"] = golden.rounding["sc_loss"] + golden.rounding["mag_loss"]
    golden.check(loss.detach(), "loss")
    golden.check(fake.grad, "grad_fake")


@pytest.mark.parametrize("fake", [0.0, 0.1])
@pytest.mark.parametrize("real", [0.0, 0.1])
def test_stft_loss_gradients_are_finite(fake, real):
    """In silence, and where there is nothing to improve."""
    noise = torch.randn(1, 3000, generator=torch.Generator().manual_seed(0))
    wave = (fake * noise).requires_grad_()
    loss = MultiResolutionSTFTLoss()(wave, real * noise)
    loss.backward()
    assert wave.grad.isfinite().all() and (loss == 0) == (fake == real)
