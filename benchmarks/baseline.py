"""A WaveNet sampled incrementally in PyTorch, as a careful user would write it: what the kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from fastwave.models import WaveNet
from fastwave.ops import heads

__all__ = ["IncrementalWaveNet"]


class IncrementalWaveNet:
    """One utterance, one sample at a time, nothing computed twice.

    Each layer keeps its past inputs in a ring; conditioning is projected for the whole utterance at once; all taps of a
    layer are one matrix-vector product, residual and skip another.
    """

    def __init__(self, model: WaveNet):
        self.spec, self.head, self.first = model.stack.spec, model.config.head_spec(), model.first_input()
        self.table = model.distribution.decode_table() if self.head.distribution == "softmax" else None
        weights, spec = model.stack.weights(), self.spec
        self.front, self.front_bias = weights.front.transpose(1, 2).flatten(1), weights.front_bias
        self.conv = [w.transpose(1, 2).flatten(1) for w in weights.conv]  # (2G, k R), the oldest tap first
        self.conv_bias, self.cond = weights.conv_bias, weights.cond
        # the residual scale goes into the matrix: h <- scale h + (scale R) z + scale r
        scale = spec.residual_scale
        last = spec.layers - 1
        self.out = [torch.cat([scale * weights.residual[i], weights.skip[i]]) for i in range(last)] + [
            weights.skip[last]
        ]
        self.out_bias = [torch.cat([scale * weights.residual_bias[i], weights.skip_bias[i]]) for i in range(last)]
        self.out_bias.append(weights.skip_bias[last])
        self.heads = list(zip(weights.head, weights.head_bias, spec.head_relu, strict=True))

    @torch.inference_mode()
    def generate(self, noise: Tensor, c: Tensor) -> Tensor:
        """noise (1, noise channels, samples) and conditioning columns (1, cond_channels, columns) -> (1, samples)."""
        spec, g, r = self.spec, self.spec.gate_channels, self.spec.residual_channels
        noise = noise.transpose(1, 2).contiguous()  # (1, samples, noise channels)
        projected = [torch.addmm(b, c[0].T, w.T) for b, w in zip(self.conv_bias, self.cond, strict=True)]
        rings = [noise.new_zeros((spec.kernel_size - 1) * d, r) for d in spec.dilations]
        window = noise.new_zeros(spec.front_width * spec.in_channels)
        window[-spec.in_channels :] = self.first
        samples = noise.new_empty(1, noise.shape[1])
        for t in range(noise.shape[1]):
            h = torch.addmv(self.front_bias, self.front, window)
            h = h.relu() if spec.front_relu else h
            skip, column = None, t // spec.cond_repeat
            for i, ring in enumerate(rings):
                past = [ring[(t + j * spec.dilations[i]) % len(ring)] for j in range(spec.kernel_size - 1)]
                a = torch.addmv(projected[i][column], self.conv[i], torch.cat([*past, h]))
                past[0].copy_(h)  # the oldest makes room
                out = torch.addmv(self.out_bias[i], self.out[i], a[:g].tanh() * a[g:].sigmoid())
                skip = out[-spec.skip_channels :] if skip is None else skip + out[-spec.skip_channels :]
                if i + 1 < spec.layers:
                    h = torch.add(out[:r], h, alpha=spec.residual_scale)
            for weight, bias, relu in self.heads:
                skip = torch.addmv(bias, weight, skip.relu() if relu else skip)
            samples[0, t], fed = self._draw(skip[None], noise[:, t])
            window = torch.cat([window[spec.in_channels :], fed])
        return samples

    def _draw(self, parameters: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The sample, and what the network reads of it."""
        if self.table is None:
            x = getattr(heads, self.head.distribution)(parameters, noise, 1.0, self.head.log_scale_min)
            x = x.clamp(-self.head.clamp, self.head.clamp)
            return x[0], x
        index = heads.softmax_index(parameters, noise, 1.0)
        x = self.table[index]
        if self.spec.in_channels == 1:
            return x[0], x
        one_hot = x.new_zeros(self.spec.in_channels)
        one_hot[index] = 1
        return x[0], one_hot
