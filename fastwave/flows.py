"""What the flows share: time squeezed into channels, and Glow's steps (Kingma and Dhariwal, 2018; WaveGlow, 2018).

x <- W x                                   invertible 1x1 convolution
mu, log sigma = WaveNet(x_a, c)            affine coupling of the halves of x
x_b <- x_b . sigma + mu

log |det dz/dx| = sum over steps of  columns log |det W| + sum of log sigma
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastwave.layers import GatedStack
from fastwave.ops.gated_stack import GatedStackSpec, GatedStackWeights, gated_stack_ref, ungrouped

__all__ = [
    "Glow",
    "InverseStack",
    "InvertibleConv",
    "affine_coupling",
    "coupling_stack",
    "flow_nll",
    "phases",
    "squeeze",
    "unsqueeze",
]


def squeeze(x: Tensor, group: int) -> Tensor:
    """(batch, channels, time) -> (batch, channels * group, time / group); channel c * group + j holds phase j of c."""
    return ungrouped(phases(x, group))


def phases(x: Tensor, group: int) -> Tensor:
    """(batch, channels, time) -> (batch, channels, time / group, group): ``squeeze`` without a copy, for a stack."""
    return x.unflatten(2, (-1, group))


def unsqueeze(x: Tensor, group: int) -> Tensor:
    """The inverse of ``squeeze``."""
    return x.unflatten(1, (-1, group)).transpose(2, 3).flatten(2)


class InvertibleConv(nn.Conv1d):
    """A 1x1 convolution of as many outputs as inputs, at first orthogonal (Glow, section 3.2)."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 1, bias=False)
        nn.init.orthogonal_(self.weight)

    @property
    def matrix(self) -> Tensor:
        """W, (channels, channels)."""
        return self.weight[..., 0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (batch, channels, columns) -> W x, and the log-determinant of each row, a scalar."""
        return super().forward(x), x.shape[2] * torch.linalg.slogdet(self.matrix)[1]


class InverseStack:
    """The inverse of an InvertibleConv as a gated stack that is its front alone, as the kernels take it.

    There a column's bits do not depend on how many there are.

    Args:
        conv: whose inverse it is, at any time.
        cond_repeat: of the stack behind it, whose columns of conditioning no block may cut.
    """

    def __init__(self, conv: InvertibleConv, cond_repeat: int = 1):
        self.conv, width = conv, conv.in_channels
        self.spec = GatedStackSpec(
            in_channels=width,
            residual_channels=width,
            gate_channels=1,
            skip_channels=0,
            kernel_size=1,
            dilations=(),
            cond_repeat=cond_repeat,
        )

    def weights(self) -> GatedStackWeights:
        inverse = torch.linalg.inv(self.conv.matrix)
        none = dict.fromkeys(("conv", "conv_bias", "residual", "residual_bias", "head", "head_bias"), ())
        return GatedStackWeights(front=inverse[..., None], front_bias=inverse.new_zeros(len(inverse)), **none)

    def __call__(self, x: Tensor, c: None = None, **named) -> Tensor:
        """See gated_stack_ref."""
        return gated_stack_ref(x, self.weights(), self.spec, c=c, **named)


def coupling_stack(spec: GatedStackSpec, kind: type[GatedStack] = GatedStack) -> GatedStack:
    """The gated stack of a coupling that is the identity at first (Glow, section 3.3)."""
    stack = kind(spec)
    nn.init.zeros_(stack.head[-1].weight)
    nn.init.zeros_(stack.head[-1].bias)
    return stack


def affine_coupling(stack: GatedStack, x: Tensor, c: Tensor, bound: float = math.inf) -> tuple[Tensor, Tensor]:
    """x (batch, channels, columns), its second half transformed, and log sigma (batch, channels / 2, columns).

    ``stack`` has the epilogue of the other direction; left off, it gives mu and log sigma themselves, which are
    clipped to [-bound, bound].
    """
    x_a, x_b = x.chunk(2, 1)
    mu, log_sigma = stack.before_epilogue(x_a, c).clamp(-bound, bound).chunk(2, 1)
    return torch.cat([x_a, x_b * log_sigma.exp() + mu], 1), log_sigma


def flow_nll(z: Tensor, logdet: Tensor, sigma: float) -> Tensor:
    """-log p(x) in nats per sample, without its constant: z under N(0, sigma^2), and log |det dz/dx| of each row."""
    return (z.square().sum() / (2 * sigma**2) - logdet.sum()) / z.numel()


class Glow(nn.Module):
    """Steps of an invertible convolution and an affine coupling; where a step is narrower, channels leave before it.

    Args:
        specs: the gated stack of each step's coupling, of epilogue "inverse"; it reads one half of the channels.
        stack: the class that the couplings are of.
    """

    def __init__(self, specs: Sequence[GatedStackSpec], stack: type[GatedStack] = GatedStack):
        super().__init__()
        widths = [2 * spec.in_channels for spec in specs]
        self.leaving = [0, *(a - b for a, b in itertools.pairwise(widths))]
        self.convs = nn.ModuleList(InvertibleConv(width) for width in widths)
        self.couplings = nn.ModuleList(coupling_stack(spec, stack) for spec in specs)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """x (batch, channels, columns) -> z, as large, what left first in front.

        Returns:
            z, and of every step log sigma, (batch, half of its channels, columns), and its convolution's
            log-determinant, a scalar.
        """
        out, log_sigmas, logdets = [], [], []
        for leaving, conv, coupling in zip(self.leaving, self.convs, self.couplings, strict=True):
            early, x = x.tensor_split([leaving], 1)
            x, logdet = conv(x)
            x, log_sigma = affine_coupling(coupling, x, c)
            out.append(early)
            log_sigmas.append(log_sigma)
            logdets.append(logdet)
        return torch.cat([*out, x], 1), log_sigmas, logdets

    def inverse(self, z: Tensor, run: Callable[..., tuple[Tensor, ...]]) -> Tensor:
        """z -> x; ``run`` is a model's (fastwave.models.base.Run), whose stages are ``inverse_stacks``.

        What has not been joined again travels as ``others``, in the end without channels.
        """
        early, x = z.tensor_split([sum(self.leaving)], 1)
        for i, leaving in enumerate(reversed(self.leaving)):
            x_a, x_b = x.chunk(2, 1)
            x_b, x_a, early = run(2 * i, x_a, early, y=x_b)
            x, _, early = run(2 * i + 1, torch.cat([x_a, x_b], 1), early)
            early, joining = early.tensor_split([early.shape[1] - leaving], 1)
            x = torch.cat([joining, x], 1)
        return x

    def inverse_stacks(self) -> list[GatedStack | InverseStack]:
        """Of each step, the last first, its coupling and its convolution's inverse."""
        steps = zip(reversed(self.couplings), reversed(self.convs), strict=True)
        return [
            stack for coupling, conv in steps for stack in (coupling, InverseStack(conv, coupling.spec.cond_repeat))
        ]
