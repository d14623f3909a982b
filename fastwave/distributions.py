"""Output distributions of an autoregressive WaveNet: log-likelihood, and sampling from noise that the caller gives.

A distribution maps the network's output ``parameters`` (batch, n_params, time) to a density over ``x`` (batch, time),
and a noise tensor (batch, noise channels, time), whose channels ``noise_kinds`` names, to a sample. No generator is
ever called here: the same noise gives the same sample in PyTorch and in every kernel.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwave import audio
from fastwave.ops import heads

__all__ = ["DISTRIBUTIONS", "Gaussian", "MixtureOfGaussians", "MixtureOfLogistics", "Softmax"]


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """N(mean, exp(log_sigma)^2): ClariNet, section 3.1. Parameters: mean, log_sigma. Noise: one standard normal."""

    n_params = 2
    noise_kinds = ("normal",)

    def log_prob(self, parameters: Tensor, x: Tensor, log_scale_min: float = -math.inf) -> Tensor:
        """(batch, time); log_sigma is clipped from below, which ClariNet does at training only (appendix A)."""
        mean, log_sigma = parameters.unbind(1)
        log_sigma = log_sigma.clamp(min=log_scale_min)
        return -0.5 * ((x - mean) * (-log_sigma).exp()).square() - log_sigma - 0.5 * math.log(2 * math.pi)

    def sample(self, parameters: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        return heads.gaussian(parameters, noise, temperature)


@dataclasses.dataclass(frozen=True)
class MixtureOfGaussians:
    """Parameters: K logits, K means, K log-sigmas. Noise: K uniforms that choose the component, one standard normal."""

    components: int

    @property
    def n_params(self) -> int:
        return 3 * self.components

    @property
    def noise_kinds(self) -> tuple[str, ...]:
        return ("uniform",) * self.components + ("normal",)

    def log_prob(self, parameters: Tensor, x: Tensor, log_scale_min: float = -math.inf) -> Tensor:
        logits, means, log_sigmas = parameters.chunk(3, 1)
        log_sigmas = log_sigmas.clamp(min=log_scale_min)
        log_density = -0.5 * ((x[:, None] - means) * (-log_sigmas).exp()).square() - log_sigmas
        return torch.logsumexp(logits.log_softmax(1) + log_density, 1) - 0.5 * math.log(2 * math.pi)

    def sample(self, parameters: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        return heads.mixture_of_gaussians(parameters, noise, temperature)


@dataclasses.dataclass(frozen=True)
class MixtureOfLogistics:
    """Discretised mixture of logistics: PixelCNN++ (Salimans et al., 2017, section 2.1).

    Parameters: K logits, K means, K log-scales. Noise: K uniforms that choose the component, one uniform. ``classes``
    is the number of quantisation levels of the data, between which the likelihood integrates the density.
    """

    components: int
    classes: int = 65536

    @property
    def n_params(self) -> int:
        return 3 * self.components

    @property
    def noise_kinds(self) -> tuple[str, ...]:
        return ("uniform",) * (self.components + 1)

    def log_prob(self, parameters: Tensor, x: Tensor, log_scale_min: float = -math.inf) -> Tensor:
        logits, means, log_scales = parameters.chunk(3, 1)
        log_scales = log_scales.clamp(min=log_scale_min)
        x = x[:, None].expand_as(means)
        inverse_scale, centred = (-log_scales).exp(), x - means
        upper = inverse_scale * (centred + 1 / (self.classes - 1))
        lower = inverse_scale * (centred - 1 / (self.classes - 1))
        middle = inverse_scale * centred
        mass = upper.sigmoid() - lower.sigmoid()
        # where the mass underflows: the density at the centre of the level times the level's width
        log_density = middle - log_scales - 2 * F.softplus(middle) - math.log((self.classes - 1) / 2)
        log_prob = torch.where(mass > 1e-5, mass.clamp(min=1e-12).log(), log_density)
        log_prob = torch.where(x > 0.999, -F.softplus(lower), log_prob)  # everything above
        log_prob = torch.where(x < -0.999, upper - F.softplus(upper), log_prob)  # everything below
        return torch.logsumexp(logits.log_softmax(1) + log_prob, 1)

    def sample(self, parameters: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        return heads.mixture_of_logistics(parameters, noise, temperature)


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Categorical over quantised amplitudes: mu-law (WaveNet, section 2.2) or linear levels (ClariNet, section 5).

    Parameters: one logit per class. Noise: one uniform, by the inverse of the cumulative distribution.
    """

    classes: int
    companding: str = "mulaw"
    noise_kinds = ("uniform",)

    @property
    def n_params(self) -> int:
        return self.classes

    def decode_table(self) -> Tensor:
        """The amplitude of each class, (classes,) float32."""
        return audio.decode_table(self.classes, self.companding)

    def quantize(self, x: Tensor) -> Tensor:
        """Amplitudes in [-1, 1] to class indices, int64 of the same shape."""
        if self.companding == "mulaw":
            return audio.mulaw_quantize(x, self.classes)
        return ((x + 1) * (self.classes / 2)).long().clamp(0, self.classes - 1)

    def log_prob(self, parameters: Tensor, x: Tensor, log_scale_min: float = -math.inf) -> Tensor:
        return parameters.log_softmax(1).gather(1, self.quantize(x)[:, None])[:, 0]

    def sample(self, parameters: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        return self.decode_table().to(parameters)[heads.softmax_index(parameters, noise, temperature)]


DISTRIBUTIONS = {
    "gaussian": Gaussian,
    "mixture_of_gaussians": MixtureOfGaussians,
    "mixture_of_logistics": MixtureOfLogistics,
    "softmax": Softmax,
}
