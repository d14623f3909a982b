"""Free running: what a teacher samples, from what it has sampled, shall be as loud in every band as the recording.

    x_t = mu(x_<t, c) + sigma(x_<t, c) eps_t                                 (the teacher's own samples)
    D   = mean |N(x) - N(x_n)| / mean N(x_n)                                 (fastwave.losses.LoudnessLoss)

By maximum likelihood a teacher reads recordings, and learns nothing of where its own errors lead it. The gradient of D
goes through the sampling: lambda_t, D's whole derivative with respect to x_t, is the adjoint

    lambda_t = dD/dx_t + sum_(s > t) lambda_s dx_s/dx_t

swept from the last sample to the first, and what the weights get is sum_t lambda_t dx_t/dweights, the samples before
each x_t held fixed: a teacher-forced pass backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastwave.layers import GatedStack
from fastwave.models import WaveNet, WaveNetConfig
from fastwave.ops.wavenet_sample import initial_sampler_state, wavenet_sample
from fastwave.pack import pack_gated_stack

__all__ = ["adjoint", "free_running_loss", "least_frames"]

HORIZON = 2048  # samples, at least, of each row's end, through which the gradient goes
GROWTH = 4.0  # times the norm of a row's dD/dx, which that of its lambda may be at most: more is scaled down


def lead_and_horizon(config: WaveNetConfig) -> tuple[int, int]:
    """Frames that hold all that a sample depends on, and those through which the gradient goes."""
    hop = config.mel.hop_length
    return -(-config.stack_spec().receptive_field // hop), -(-HORIZON // hop)


def least_frames(config: WaveNetConfig) -> int:
    """Of a row."""
    return sum(lead_and_horizon(config))


def free_running_loss(model: WaveNet, wave: Tensor, mel: Tensor, distance) -> Tensor:
    """``distance`` of what a Gaussian WaveNet goes on with from a row's first frames, to the row itself.

    Args:
        wave: (batch, frames * hop_length), as the model learns it; frames are at least least_frames().
        mel: (batch, n_mels, frames + 2 context).
        distance: of speech, (batch, samples) each -> scalar.
    """
    hop, (lead, horizon) = model.config.mel.hop_length, lead_and_horizon(model.config)
    noise = torch.randn_like(wave)
    with torch.autocast(wave.device.type, enabled=False):
        x = sample(model, wave[:, : lead * hop], mel, noise).requires_grad_()
        loss = distance(model.emphasis.undo(x), model.emphasis.undo(wave))
        (gradient,) = torch.autograd.grad(loss, x)

    before = wave.shape[1] // hop - horizon - lead  # frames that the last ones do not depend on
    x, noise, gradient = (rows[:, before * hop :] for rows in (x.detach(), noise, gradient))
    trace, first = [], lead * hop
    mean, log_sigma = model(x, mel[..., before:], trace=trace).float().unbind(1)
    again = (mean + log_sigma.exp() * noise)[:, first:]
    derivatives = torch.stack([torch.ones_like(noise), log_sigma.detach().exp() * noise], 1)
    with torch.autocast(wave.device.type, enabled=False):
        total = adjoint(model.stack, trace, gradient, derivatives, first)
    limit = GROWTH * gradient[:, first:].norm(dim=1, keepdim=True)
    total = total * (limit / total.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1)
    through = (total * again).sum()
    return loss.detach() + through - through.detach()


@torch.no_grad()
def sample(model: WaveNet, start: Tensor, mel: Tensor, noise: Tensor) -> Tensor:
    """Rows that begin with ``start``, sampled on the kernels; ``noise`` (batch, samples)."""
    spec = model.stack.spec
    samples, _ = wavenet_sample(
        noise[:, None],
        pack_gated_stack(model.stack.weights(), spec),
        spec,
        model.config.head_spec(),
        state=initial_sampler_state(spec, len(noise), model.first_input(), device=noise.device),
        c=model.upsampler(mel),
        forced=start,
        threads=torch.get_num_threads(),
    )
    return samples


@torch.no_grad()
def adjoint(stack: GatedStack, trace: list[Tensor], gradient: Tensor, derivatives: Tensor, first: int) -> Tensor:
    """The whole derivative of a loss with respect to each sample x_t that a stack drew, from t = ``first`` on.

    Args:
        stack: a WaveNet's.
        trace: of the teacher-forced pass over the samples: see gated_stack_ref.
        gradient: (batch, samples), the loss's derivative with respect to each x_t alone.
        derivatives: (batch, n_params, samples), of x_t with respect to the parameters it was drawn from.

    Returns:
        (batch, samples - first).
    """
    spec, weights = stack.spec, stack.weights()
    (batch, time), width = gradient.shape, spec.front_width
    taps, residual, skip = spec.kernel_size, spec.residual_channels, spec.skip_channels

    def columns(v: Tensor) -> tuple[Tensor, ...]:
        """(..., time) as a (...) per sample."""
        return v.movedim(-1, 0).to(gradient.dtype, memory_format=torch.contiguous_format).unbind()

    front = columns(trace[0] > 0) if spec.front_relu else None
    head = [columns(v > 0) if relu else None for v, relu in zip(trace[1 + spec.layers :], spec.head_relu, strict=True)]
    gates, products, backward, given, received = [], [], [], [], []
    for layer, dilation in enumerate(spec.dilations):
        filter_, gate = (half.to(gradient.dtype) for half in trace[1 + layer].chunk(2, 1))
        filter_, gate = filter_.tanh(), gate.sigmoid()
        gates.append(columns(torch.stack([gate * (1 - filter_.square()), filter_ * gate * (1 - gate)], 1)))  # dz/da
        last = layer == spec.layers - 1  # nothing reads its residual sum
        onward = gradient.new_zeros(residual, spec.gate_channels) if last else weights.residual[layer]
        products.append(torch.cat([weights.skip[layer], spec.residual_scale * onward]))
        backward.append(weights.conv[layer].transpose(1, 2).flatten(1))  # (2G, k R), oldest tap first
        # what a sample's taps give to those that they read, by time; and what a sample gets from later ones' taps
        gifts = gradient.new_zeros(time + (taps - 1) * dilation, batch, taps, residual)
        given.append(gifts.flatten(2).unbind())
        received.append([gifts[(taps - 1 - tap) * dilation :, :, tap].unbind() for tap in range(taps)])

    total = torch.cat([gradient.new_zeros(width, batch), gradient.T])  # with what lies before the first sample
    derivatives = derivatives.permute(2, 0, 1).contiguous()
    joint = gradient.new_zeros(batch, skip + residual)  # of the loss, with respect to the skip sum and h
    of_h, of_z, of_a = joint[:, skip:], gradient.new_empty(batch, spec.gate_channels), torch.empty_like(gates[0][0])
    of_both, of_flat = of_z[:, None], of_a.flatten(1)
    for t in reversed(range(first, time)):
        out = total[width + t, :, None] * derivatives[t]
        for weight, passing in zip(reversed(weights.head), reversed(head), strict=True):
            out = out @ weight if passing is None else (out @ weight) * passing[t]
        joint[:, :skip], of_h[:] = out, 0
        for layer in reversed(range(spec.layers)):
            torch.mm(joint, products[layer], out=of_z)
            torch.mul(gates[layer][t], of_both, out=of_a)
            torch.mm(of_flat, backward[layer], out=given[layer][t])
            of_h.mul_(spec.residual_scale)
            for tap in received[layer]:
                of_h.add_(tap[t])
        if front is not None:
            of_h.mul_(front[t])
        total[t : t + width] += (of_h @ weights.front[:, 0]).T
    return total[width + first :].T
