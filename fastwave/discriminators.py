"""Discriminators, which only training needs: plain torch convolutions under a weight norm.

Their modules are named as in kan-bayashi/ParallelWaveGAN, whose state dicts load as they are.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

__all__ = ["ParallelWaveGANDiscriminator", "ResidualParallelWaveGANDiscriminator"]

SLOPE = 0.2  # of the leaky ReLUs


def _conv(in_channels: int, out_channels: int, kernel_size: int = 1, dilation: int = 1) -> nn.Conv1d:
    """A centred convolution that keeps the length."""
    padding = (kernel_size - 1) // 2 * dilation
    return weight_norm(nn.Conv1d(in_channels, out_channels, kernel_size, dilation=dilation, padding=padding))


class ParallelWaveGANDiscriminator(nn.Module):
    """Dilated convolutions, a leaky ReLU behind each but the last (Parallel WaveGAN, section 3.1).

    Args:
        layers, channels, kernel_size: of the convolutions.
        dilation_factor: layer i has dilation dilation_factor ** i; where 1, dilation i. The first and the last have 1.
    """

    def __init__(self, layers: int = 10, channels: int = 64, kernel_size: int = 3, dilation_factor: int = 1):
        super().__init__()
        self.conv_layers = nn.Sequential()
        for i in range(layers - 1):
            dilation = max(1, i) if dilation_factor == 1 else dilation_factor**i
            self.conv_layers.append(_conv(channels if i else 1, channels, kernel_size, dilation))
            self.conv_layers.append(nn.LeakyReLU(SLOPE))
        self.conv_layers.append(_conv(channels, 1, kernel_size))

    def forward(self, wave: Tensor) -> Tensor:
        """Scores (batch, samples), one per sample of the wave, which it should make 1 of speech and 0 of samples."""
        return self.conv_layers(wave[:, None])[:, 0]


class GatedBlock(nn.Module):
    """A layer of a gated stack without conditioning (fastwave.ops.gated_stack)."""

    def __init__(self, residual_channels: int, gate_channels: int, skip_channels: int, kernel_size: int, dilation: int):
        super().__init__()
        self.conv = _conv(residual_channels, 2 * gate_channels, kernel_size, dilation)
        self.conv1x1_out = _conv(gate_channels, residual_channels)
        self.conv1x1_skip = _conv(gate_channels, skip_channels)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        a_filter, a_gate = self.conv(h).chunk(2, 1)
        z = a_filter.tanh() * a_gate.sigmoid()
        return (h + self.conv1x1_out(z)) * math.sqrt(0.5), self.conv1x1_skip(z)


class ResidualParallelWaveGANDiscriminator(nn.Module):
    """A gated stack between leaky ReLUs, which the op does not have (kan-bayashi/ParallelWaveGAN).

    Args:
        layers, stacks: layer i has dilation 2 ** (i mod layers / stacks).
        residual_channels, gate_channels, skip_channels, kernel_size: as in fastwave.ops.gated_stack.
    """

    def __init__(
        self,
        layers: int = 30,
        stacks: int = 3,
        residual_channels: int = 64,
        gate_channels: int = 64,
        skip_channels: int = 64,
        kernel_size: int = 3,
    ):
        super().__init__()
        self.first_conv = nn.Sequential(_conv(1, residual_channels), nn.LeakyReLU(SLOPE))
        self.conv_layers = nn.ModuleList(
            GatedBlock(residual_channels, gate_channels, skip_channels, kernel_size, 2 ** (i % (layers // stacks)))
            for i in range(layers)
        )
        self.last_conv_layers = nn.Sequential(
            nn.LeakyReLU(SLOPE), _conv(skip_channels, skip_channels), nn.LeakyReLU(SLOPE), _conv(skip_channels, 1)
        )

    def forward(self, wave: Tensor) -> Tensor:
        """Scores (batch, samples), as ParallelWaveGANDiscriminator's."""
        h, total = self.first_conv(wave[:, None]), 0.0
        for block in self.conv_layers:
            h, skip = block(h)
            total = total + skip
        return self.last_conv_layers(total * math.sqrt(1 / len(self.conv_layers)))[:, 0]
