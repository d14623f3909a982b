"""The references against what the public implementations computed (tests/golden.py).

Those of projects that can be converted are in tests/test_converters.py and in the tests of their models.
"""

import pytest
import torch
from golden import Golden, stft_distances

from fastwave.audio import MelSpec, log_mel
from fastwave.distributions import Gaussian, MixtureOfGaussians, MixtureOfLogistics
from fastwave.losses import MultiResolutionSTFTLoss, STFTMagnitudeLoss, gaussian_kl, regularized_kl
from fastwave.ops import heads

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


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
    golden.check(STFTMagnitudeLoss.ksw0306().magnitude(golden["in.wav"]), "stft_linear")


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
    loss = STFTMagnitudeLoss.ksw0306()
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
    for distances, part in zip(stft_distances(fake.detach(), golden["in.real"]), ("sc", "mag"), strict=True):
        golden.check(distances, f"per_resolution_{part}")
        golden.check(distances.mean(), f"{part}_loss")
    golden.tensors["out.loss"] = golden["out.sc_loss"] + golden["out.mag_loss"]
    golden.rounding["loss"] = golden.rounding["sc_loss"] + golden.rounding["mag_loss"]
    golden.check(loss.detach(), "loss")
    golden.check(fake.grad, "grad_fake")


@both_dtypes
def test_log_mel_as_a_loss(dtype):
    golden, spec = Golden("kan-bayashi__losses_stft", dtype), MelSpec.preset("kan-bayashi/ParallelWaveGAN")
    fake = golden["in.fake"].clone().requires_grad_()
    loss = (log_mel(fake, spec) - log_mel(golden["in.real"], spec)).abs().mean()
    loss.backward()
    golden.check(loss.detach(), "mel_loss")
    golden.check(fake.grad, "mel_grad_fake")


@pytest.mark.parametrize("fake", [0.0, 0.1])
@pytest.mark.parametrize("real", [0.0, 0.1])
def test_stft_loss_gradients_are_finite(fake, real):
    """In silence, and where there is nothing to improve."""
    noise = torch.randn(1, 3000, generator=torch.Generator().manual_seed(0))
    wave = (fake * noise).requires_grad_()
    loss = MultiResolutionSTFTLoss()(wave, real * noise)
    loss.backward()
    assert wave.grad.isfinite().all() and (loss == 0) == (fake == real)
