"""The parts of the flows: they invert, and their log-determinants are those of their Jacobians."""

import pytest
import torch

from fastwave.flows import Glow, InverseStack, InvertibleConv, phases, squeeze, unsqueeze
from fastwave.ops.gated_stack import GatedStackSpec, gated_stack, ungrouped
from fastwave.pack import pack_gated_stack


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_abs_det(function, x):
    """log |det| of the Jacobian of ``function``, whose result has as many elements as x."""
    jacobian = torch.autograd.functional.jacobian(function, x).reshape(x.numel(), -1)
    return torch.linalg.slogdet(jacobian)[1]


def test_squeeze():
    x = torch.arange(12).view(1, 2, 6)
    assert squeeze(x, 3).tolist() == [[[0, 3], [1, 4], [2, 5], [6, 9], [7, 10], [8, 11]]]
    assert torch.equal(squeeze(squeeze(x, 3), 1), squeeze(x, 3))
    assert torch.equal(ungrouped(phases(x, 3)), squeeze(x, 3))
    for group in (1, 2, 3, 6):
        assert torch.equal(unsqueeze(squeeze(x, group), group), x)


@pytest.mark.parametrize("channels", [1, 2, 7, 8])
def test_invertible_conv(channels):
    torch.manual_seed(channels)
    conv = InvertibleConv(channels).double()
    torch.testing.assert_close(conv.matrix.T @ conv.matrix, torch.eye(channels).double(), rtol=0, atol=1e-6)
    conv.weight.data += 0.3 * normal(channels, channels, 1)
    x = normal(2, channels, 5)
    y, logdet = conv(x)
    torch.testing.assert_close(y, conv.matrix @ x)
    torch.testing.assert_close(InverseStack(conv)(y), x)
    torch.testing.assert_close(2 * logdet, log_abs_det(lambda x: conv(x)[0], x))


@pytest.mark.parametrize("channels", [4, 6, 8, 20])
def test_an_inverse_has_the_same_bits_in_any_chunk(channels):
    stack = InverseStack(InvertibleConv(channels).requires_grad_(False))
    weights, x = pack_gated_stack(stack.weights(), stack.spec), normal(2, channels, 300).float()
    whole = gated_stack(x, weights, stack.spec)
    for first, end in ((0, 1), (3, 10), (5, 37), (41, 300)):
        assert torch.equal(gated_stack(x[..., first:end], weights, stack.spec), whole[..., first:end])


def glow(*halves):
    """A step for each number of channels of a half, with random weights."""
    specs = [
        GatedStackSpec(
            in_channels=half,
            residual_channels=3,
            gate_channels=4,
            skip_channels=5,
            kernel_size=3,
            dilations=(1, 2),
            causal=False,
            cond_channels=2,
            head_channels=(2 * half,),
            head_relu=(False,),
            epilogue="inverse",
        )
        for half in halves
    ]
    torch.manual_seed(0)
    flow = Glow(specs).double().requires_grad_(False)
    for parameter in flow.parameters():
        parameter += 0.1 * normal(*parameter.shape)
    return flow


def runner(flow, c):
    stacks = flow.inverse_stacks()

    def run(i, x, *others, y=None):
        return stacks[i](x, None if y is None else c, y=y), x, *others

    return run


@pytest.mark.parametrize("halves", [(1,), (2, 2), (4, 3, 3, 1)])
def test_glow(halves):
    flow, x, c = glow(*halves), normal(2, 2 * halves[0], 4), normal(2, 2, 4, seed=1)
    z, log_sigmas, logdets = flow(x, c)
    assert z.shape == x.shape
    assert [s.shape for s in log_sigmas] == [(2, half, 4) for half in halves]
    torch.testing.assert_close(flow.inverse(z, runner(flow, c)), x)
    expected = [log_abs_det(lambda x, row=row: flow(x, c[row])[0], x[row]) for row in (slice(0, 1), slice(1, 2))]
    torch.testing.assert_close(sum(s.sum((1, 2)) for s in log_sigmas) + sum(logdets), torch.stack(expected))


def test_what_leaves_early_comes_first():
    flow, x, c = glow(3, 2), normal(1, 6, 4), normal(1, 2, 4, seed=1)
    z = flow(x, c)[0]
    x_b = torch.cat([torch.zeros(1, 5, 4), torch.ones(1, 1, 4)], 1).double()
    first = flow.convs[0](x)[0]
    torch.testing.assert_close(z[:, :2], first[:, :2])
    changed = flow(InverseStack(flow.convs[0])(first + x_b), c)[0]
    torch.testing.assert_close(changed[:, :2], z[:, :2])
    assert not torch.allclose(changed[:, 2:], z[:, 2:])
