"""The references against what the public implementations computed (tests/golden.py).

Those of projects that can be converted are in tests/test_converters.py and in the tests of their models.
"""

import pytest
import torch
from golden import Golden, waveglow_coupling
from torch.nn import functional as F

from fastwave.distributions import Gaussian, MixtureOfGaussians, MixtureOfLogistics
from fastwave.losses import MultiResolutionSTFTLoss, STFTMagnitudeLoss, gaussian_kl, regularized_kl
from fastwave.ops import heads
from fastwave.ops.gated_stack import gated_stack_ref

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


# gated_stack ---------------------------------------------------------------------------------------------------------


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
    golden = Golden("r9y9_wavenet_vocoder__functions", dtype)
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
    golden = Golden("r9y9_wavenet_vocoder__functions", dtype)
    mixing = {"mol": "in.u_mix", "g9": "in.u_mix3"}.get(parameters)
    last = golden["in.u_log" if parameters == "mol" else "in.eps"][:, None]
    components = golden[mixing].transpose(1, 2) if mixing else last.new_full(last.shape, 0.5)
    noise = last if parameters == "g2" else torch.cat([components, last], 1)
    golden.check(draw(golden[f"in.{parameters}"], noise, 1.0).clamp(-1, 1), name)


@both_dtypes
def test_clarinets_gaussian(dtype):
    golden = Golden("ksw0306_ClariNet__functions", dtype)
    parameters, x = golden["in.y_hat"], golden["in.y"][..., 0]
    nll = -Gaussian().log_prob(parameters, x, log_scale_min=-9.0)
    golden.check(nll, "gauss_nll")
    golden.check(nll.mean(), "gauss_loss")
    golden.check(heads.gaussian(parameters, golden["in.eps"][:, None], 1.0).clamp(-1, 1)[..., None], "gauss_sample")


# losses --------------------------------------------------------------------------------------------------------------


@both_dtypes
def test_clarinets_kl(dtype):
    golden = Golden("ksw0306_ClariNet__functions", dtype)
    q, p = ([golden[f"in.mu_{name}"], golden[f"in.logs_{name}"]] for name in "qp")
    golden.check(gaussian_kl(*q, *p), "kl")
    golden.check(gaussian_kl(*q, *p).mean(), "kl_mean")
    golden.check(regularized_kl(*q, *p), "kl_total")
    golden.check(STFTMagnitudeLoss().magnitude(golden["in.wav"]), "stft_linear")


@both_dtypes
def test_clarinets_distillation(dtype):
    """The losses of a student and its teacher: the divergence either way, the distance of magnitudes, their sum."""
    golden = Golden("ksw0306_ClariNet__student_iaf", dtype)
    q = [golden["out.mu_tot"], golden["out.logs_tot"]]
    p = list(golden["out.teacher_params"][..., :-1].split(1, 1))
    golden.check(gaussian_kl(*q, *p), "kl_qp_elem")
    golden.check(regularized_kl(*q, *p), "kl_qp_total")
    golden.check(gaussian_kl(*p, *q), "kl_pq_elem")
    golden.check(regularized_kl(*p, *q), "kl_pq_total")
    student, truth = golden["out.x_student"][:, 0, 1:], golden["in.x"][:, 0, 1:]
    loss = STFTMagnitudeLoss()
    golden.check(loss.magnitude(student), "stft_student")
    golden.check(loss.magnitude(truth), "stft_truth")
    golden.check(loss(student, truth), "loss_frame")
    golden.check(regularized_kl(*q, *p) + loss(student, truth), "loss_total_qp")


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
