"""Draws from a network's output parameters and a noise tensor; csrc/heads.h has the same ones for the kernels.

``parameters`` is (batch, n_params, ...) and ``noise`` (batch, noise channels, ...); a draw is (batch, ...). Uniforms
lie in (0, 1). ``temperature`` scales the normal or logistic part and divides softmax logits; at 0 a draw is the mean of
the likeliest component, or the likeliest class. ``log_scale_min`` bounds log-scales from below.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["gaussian", "mixture_of_gaussians", "mixture_of_logistics", "softmax_index"]


def gaussian(parameters: Tensor, noise: Tensor, temperature: float, log_scale_min: float = -math.inf) -> Tensor:
    mean, log_sigma = parameters.unbind(1)
    return mean + log_sigma.clamp(min=log_scale_min).exp() * (temperature * noise[:, 0])


def _component(parameters: Tensor, noise: Tensor, temperature: float, log_scale_min: float) -> tuple[Tensor, Tensor]:
    """Mean and scale of a drawn component: arg-max of the logits plus Gumbel noise, from K uniforms."""
    logits, means, log_scales = parameters.chunk(3, 1)
    score = logits if temperature == 0 else logits - torch.log(-torch.log(noise[:, : logits.shape[1]]))
    chosen = score.argmax(1, keepdim=True)
    scale = log_scales.gather(1, chosen)[:, 0].clamp(min=log_scale_min).exp()
    return means.gather(1, chosen)[:, 0], scale


def mixture_of_gaussians(
    parameters: Tensor, noise: Tensor, temperature: float, log_scale_min: float = -math.inf
) -> Tensor:
    mean, scale = _component(parameters, noise, temperature, log_scale_min)
    return mean + scale * (temperature * noise[:, -1])


def mixture_of_logistics(
    parameters: Tensor, noise: Tensor, temperature: float, log_scale_min: float = -math.inf
) -> Tensor:
    mean, scale = _component(parameters, noise, temperature, log_scale_min)
    u = noise[:, -1]
    return mean if temperature == 0 else mean + scale * (temperature * (u.log() - (1 - u).log()))


def softmax_index(parameters: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Class indices, int64: how many cumulative probabilities are <= u."""
    if temperature == 0:
        return parameters.argmax(1)
    cumulative = (parameters / temperature).softmax(1).double().cumsum(1)
    return (cumulative <= noise[:, :1]).sum(1).clamp(max=parameters.shape[1] - 1)
