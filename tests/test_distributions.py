import math

import pytest
import torch
from torch import distributions as td

from fastwave.distributions import DISTRIBUTIONS, Gaussian, MixtureOfGaussians, MixtureOfLogistics, Softmax
from fastwave.noise import draw
from fastwave.ops import heads

EVERY = [Gaussian(), MixtureOfGaussians(3), MixtureOfLogistics(4, 256), Softmax(16), Softmax(12, "linear")]


def normal(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(result, expected, tolerance=1e-12):
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


# log-likelihoods -----------------------------------------------------------------------------------------------------


def test_gaussian_log_prob():
    parameters, x = normal(2, 2, 30), normal(2, 30, seed=1)
    expected = td.Normal(parameters[:, 0], parameters[:, 1].exp()).log_prob(x)
    assert_same(Gaussian().log_prob(parameters, x), expected)


def test_mixture_of_gaussians_log_prob():
    parameters, x = normal(2, 9, 30), normal(2, 30, seed=1)
    logits, means, log_sigmas = parameters.transpose(1, 2).chunk(3, 2)
    expected = td.MixtureSameFamily(td.Categorical(logits=logits), td.Normal(means, log_sigmas.exp())).log_prob(x)
    assert_same(MixtureOfGaussians(3).log_prob(parameters, x), expected)


def test_one_component_is_no_mixture():
    parameters, x = normal(2, 3, 30), normal(2, 30, seed=1)
    assert_same(MixtureOfGaussians(1).log_prob(parameters, x), Gaussian().log_prob(parameters[:, 1:], x))


@pytest.mark.parametrize("distribution", EVERY[:3], ids=lambda d: type(d).__name__)
def test_log_scales_are_clipped_from_below(distribution):
    parameters, x = 2 * normal(2, distribution.n_params, 30), normal(2, 30, seed=1).clamp(-0.9, 0.9)
    clipped = parameters.clone()
    scales = distribution.n_params // 2 if distribution == Gaussian() else distribution.n_params * 2 // 3
    clipped[:, scales:].clamp_(min=-1.5)
    assert not torch.equal(clipped, parameters)
    assert torch.equal(distribution.log_prob(parameters, x, -1.5), distribution.log_prob(clipped, x))


@pytest.mark.parametrize("log_scale", [-4.0, -2.0, 0.0])
def test_mixture_of_logistics_sums_to_one(log_scale):
    """Over its levels, the outermost of which hold the tails."""
    distribution = MixtureOfLogistics(3, 256)
    parameters = 0.5 * normal(1, 9, 1)
    parameters[:, 6:] += log_scale
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)[None]
    log_prob = distribution.log_prob(parameters.expand(-1, -1, 256), levels)
    assert_same(log_prob.exp().sum(), torch.tensor(1.0, dtype=torch.float64), 1e-6)


def test_mixture_of_logistics_is_the_difference_of_cdfs():
    logits, means, log_scales = 0.5 * normal(3, 1, 1, 20)
    parameters = torch.cat([logits, means, log_scales], 1)
    x = 0.9 * normal(1, 20, seed=1).tanh()

    def cdf(v):
        return ((v - means[:, 0]) / log_scales[:, 0].exp()).sigmoid()

    mass = cdf(x + 1 / 255) - cdf(x - 1 / 255)
    assert (mass > 1e-5).all()
    assert_same(MixtureOfLogistics(1, 256).log_prob(parameters, x), mass.log())


@pytest.mark.parametrize("distance", [1.0, 30.0, 500.0])
def test_mixture_of_logistics_far_from_the_data(distance):
    """No underflow: the likelihood falls by one nat per scale."""
    parameters = torch.tensor([0.0, 0.0, -math.log(distance)], dtype=torch.float64)[None, :, None]
    log_prob = MixtureOfLogistics(1, 65536).log_prob(parameters, torch.tensor([[0.5]], dtype=torch.float64))
    density = td.TransformedDistribution(
        td.Uniform(torch.tensor(0.0, dtype=torch.float64), 1.0),
        [td.SigmoidTransform().inv, td.AffineTransform(0.0, 1 / distance)],
    )
    expected = density.log_prob(torch.tensor(0.5, dtype=torch.float64)) + math.log(2 / 65535)
    assert abs(log_prob.item() - expected.item()) < 1e-4


@pytest.mark.parametrize("companding", ["mulaw", "linear"])
def test_softmax_log_prob(companding):
    distribution = Softmax(16, companding)
    parameters, x = normal(2, 16, 30), 0.5 * normal(2, 30, seed=1)
    expected = td.Categorical(logits=parameters.transpose(1, 2)).log_prob(distribution.quantize(x))
    assert_same(distribution.log_prob(parameters, x), expected)


@pytest.mark.parametrize("companding", ["mulaw", "linear"])
@pytest.mark.parametrize("classes", [2, 15, 256, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_classes(companding, classes, dtype):
    distribution = Softmax(classes, companding)
    table = distribution.decode_table()
    assert table.shape == (classes,) and table.dtype == torch.float32
    assert (table.diff() > 0).all() and table.abs().max() <= 1
    assert torch.equal(distribution.quantize(table.to(dtype)), torch.arange(classes))
    edges = torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=dtype)
    assert distribution.quantize(edges).tolist() == [0, 0, classes - 1, classes - 1]


@pytest.mark.parametrize("distribution", EVERY, ids=lambda d: f"{type(d).__name__}{d.n_params}")
def test_gradients(distribution):
    parameters = normal(1, distribution.n_params, 8).requires_grad_()
    x = torch.tensor([[-1.0, -0.9995, -0.5, 0.0, 0.25, 0.5, 0.9995, 1.0]], dtype=torch.float64)
    distribution.log_prob(parameters, x, -7.0).sum().backward()
    assert parameters.grad.isfinite().all() and parameters.grad.abs().amax(1).min() > 0


# draws ---------------------------------------------------------------------------------------------------------------

DRAWS = 100_000


def sample(distribution, parameters, temperature=1.0, count=DRAWS):
    """``count`` draws of one setting of the parameters."""
    noise = draw(distribution.noise_kinds, 0, 1, 0, count).double()
    expanded = torch.tensor(parameters, dtype=torch.float64)[None, :, None].expand(1, -1, count)
    return distribution.sample(expanded, noise, temperature)[0]


def assert_moments(result, mean, variance):
    """Within five standard errors."""
    assert abs(result.mean().item() - mean) < 5 * math.sqrt(variance / DRAWS)
    spread = (result - mean).square()
    assert abs(spread.mean().item() - variance) < 5 * spread.std().item() / math.sqrt(DRAWS)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gaussian_moments(temperature):
    result = sample(Gaussian(), [0.3, -1.0], temperature)
    assert_moments(result, 0.3, (temperature * math.exp(-1)) ** 2)


def test_mixture_of_gaussians_moments():
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    means, sigmas = (
        torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64),
        torch.tensor([0.1, 0.5, 0.2], dtype=torch.float64),
    )
    result = sample(MixtureOfGaussians(3), [*weights.log().tolist(), *means.tolist(), *sigmas.log().tolist()])
    mean = (weights * means).sum().item()
    assert_moments(result, mean, (weights * (sigmas**2 + means**2)).sum().item() - mean**2)


def test_mixture_of_logistics_moments():
    weights, means = torch.tensor([0.6, 0.4], dtype=torch.float64), torch.tensor([-0.3, 0.5], dtype=torch.float64)
    scales = torch.tensor([0.05, 0.1], dtype=torch.float64)
    result = sample(MixtureOfLogistics(2), [*weights.log().tolist(), *means.tolist(), *scales.log().tolist()])
    mean = (weights * means).sum().item()
    variance = (weights * (scales**2 * math.pi**2 / 3 + means**2)).sum().item() - mean**2
    assert_moments(result, mean, variance)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_softmax_frequencies(temperature):
    distribution = Softmax(5, "linear")
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, -8.0], dtype=torch.float64)
    counts = torch.bincount(distribution.quantize(sample(distribution, logits.tolist(), temperature)), minlength=5)
    expected = (logits / temperature).softmax(0)
    assert ((counts / DRAWS - expected).abs() <= 5 * (expected * (1 - expected) / DRAWS).sqrt()).all()


def test_softmax_inverts_the_cumulative_distribution():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()[None, :, None].expand(1, 4, 6)
    u = torch.tensor([[[0.0, 0.0999, 0.1001, 0.2999, 0.6001, 0.9999999]]], dtype=torch.float64)
    assert heads.softmax_index(logits, u, 1.0).tolist() == [[0, 0, 1, 1, 3, 3]]


@pytest.mark.parametrize("distribution", EVERY, ids=lambda d: f"{type(d).__name__}{d.n_params}")
def test_temperature_zero_is_the_mean_path(distribution):
    parameters = normal(3, distribution.n_params, 20)
    noise = draw(distribution.noise_kinds, 0, 3, 0, 20).double()
    result = distribution.sample(parameters, noise, 0.0)
    if isinstance(distribution, Gaussian):
        expected = parameters[:, 0]
    elif isinstance(distribution, Softmax):
        expected = distribution.decode_table().double()[parameters.argmax(1)]
    else:
        logits, means, _ = parameters.chunk(3, 1)
        expected = means.gather(1, logits.argmax(1, keepdim=True))[:, 0]
    assert torch.equal(result, expected)


@pytest.mark.parametrize("draw_from", [heads.gaussian, heads.mixture_of_gaussians, heads.mixture_of_logistics])
def test_floor_of_the_log_scale(draw_from):
    parameters = torch.tensor([0.1, -9.0] if draw_from is heads.gaussian else [0.0, 0.1, -9.0])[None, :, None]
    noise = torch.full((1, 2 if len(parameters[0]) == 3 else 1, 1), 0.8)
    floored = draw_from(parameters, noise, 1.0, -2.0)
    expected = math.log(0.8 / 0.2) if draw_from is heads.mixture_of_logistics else 0.8
    assert floored.item() == pytest.approx(0.1 + math.exp(-2.0) * expected)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_sizes(name):
    distribution = DISTRIBUTIONS[name](*{"gaussian": []}.get(name, [4]))
    noise = draw(distribution.noise_kinds, 0, 2, 0, 7)
    parameters = torch.randn(2, distribution.n_params, 7, generator=torch.Generator().manual_seed(0))
    assert distribution.sample(parameters, noise).shape == (2, 7)
    assert distribution.sample(parameters, noise).dtype == torch.float32
    assert distribution.log_prob(parameters, torch.zeros(2, 7)).shape == (2, 7)
