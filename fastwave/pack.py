"""Weights as the kernels read them: one flat tensor per op.

A matrix (rows, depth) stands in panels of 16 rows, (ceil(rows / 16), depth, 16), padded with zero rows: an AVX-512
vector, two of AVX2, four of NEON. Filter and gate panels come in turn, so that a kernel holds both halves of a channel
in registers. The residual and skip products are one matrix. csrc/params.h walks through the same order.

The unit is a word of 32 bits: one float32, two bfloat16 or four int8 of consecutive depth, padded with zeros. A panel
of int8 ends in the scales of its 16 rows and -128 times their sums (fastwave.ops.rounding).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastwave.ops.gated_stack import GatedStackSpec, GatedStackWeights
from fastwave.ops.rounding import quantized
from fastwave.ops.upsample import UpsampleWeights

__all__ = ["pack_gated_stack", "pack_upsample"]

PANEL = 16


def _pad_rows(matrix: Tensor) -> Tensor:
    rows = -len(matrix) % PANEL
    return torch.cat([matrix, matrix.new_zeros(rows, *matrix.shape[1:])])


def _panels(matrix: Tensor, dtype: str = "float32") -> Tensor:
    """(rows, depth), rows a multiple of 16 -> flat panels (rows / 16, words of depth, 16), as float32 words."""
    matrix = matrix.detach().float()
    if dtype == "int8":
        matrix, scale = quantized(matrix, power_of_two=False)
        offset = (-128 * matrix.sum(1, keepdim=True)).int().view(torch.float32)
        ends = torch.cat([scale, offset], 1).view(-1, PANEL, 2)
    storage = getattr(torch, dtype)
    per_word = 4 // storage.itemsize
    padding = matrix.new_zeros(len(matrix), -matrix.shape[1] % per_word)
    words = torch.cat([matrix, padding], 1).to(storage).view(torch.float32).unflatten(0, (-1, PANEL))
    return torch.cat([words, ends] if dtype == "int8" else [words], 2).transpose(1, 2).flatten()


def _gate_rows(matrix: Tensor) -> Tensor:
    """(2G, ...) -> (2 padded G, ...): 16 filter rows, their 16 gate rows, the next 16 filter rows, ..."""
    halves = torch.stack([_pad_rows(half) for half in matrix.chunk(2)])  # (2, padded G, ...)
    return halves.unflatten(1, (-1, PANEL)).transpose(0, 1).flatten(0, 2)


def _flat(weight: Tensor) -> Tensor:
    """(out, in, taps) -> (out, taps * in), the oldest tap first."""
    return weight.transpose(1, 2).flatten(1)


def pack_gated_stack(weights: GatedStackWeights, spec: GatedStackSpec) -> Tensor:
    """Flat weights of spec.dtype for fastwave.ops.gated_stack and fastwave.ops.wavenet_sample."""
    parts = [_pad_rows(weights.front_bias), _panels(_pad_rows(_flat(weights.front)))]
    for layer in range(spec.layers):
        parts.append(_gate_rows(weights.conv_bias[layer]))
        if spec.cond_channels:
            parts.append(_panels(_gate_rows(weights.cond[layer]), spec.dtype))
        if spec.separable:
            parts += [_pad_rows(weights.depthwise_bias[layer]), _pad_rows(weights.depthwise[layer]).T]
        parts += [_panels(_gate_rows(tap), spec.dtype) for tap in weights.conv[layer].unbind(2)]
        products: list[tuple[Sequence[Tensor], Sequence[Tensor]]] = []
        if layer + 1 < spec.layers or not spec.skip_channels:
            products.append((weights.residual, weights.residual_bias))
        if spec.skip_channels:
            products.append((weights.skip, weights.skip_bias))
        parts += [_pad_rows(bias[layer]) for _, bias in products]
        parts += [_panels(_pad_rows(weight[layer]), spec.dtype) for weight, _ in products]
    for weight, bias in zip(weights.head, weights.head_bias, strict=True):
        parts += [_pad_rows(bias), _panels(_pad_rows(weight))]
    return torch.cat([part.detach().float().flatten() for part in parts]).view(getattr(torch, spec.dtype))


def pack_upsample(weights: UpsampleWeights) -> Tensor:
    """Flat float32 weights for fastwave.ops.upsample: per stage its bias and phases, then the context convolution."""
    parts = [part for stage in zip(weights.bias, weights.phases, strict=True) for part in stage]
    if weights.context is not None:
        parts.append(weights.context)
    return torch.cat([part.detach().float().flatten() for part in parts]) if parts else torch.zeros(0)
