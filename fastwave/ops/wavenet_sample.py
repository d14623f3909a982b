"""wavenet_sample: a gated stack one sample at a time, the drawn sample fed back.

    x_t ~ p(x_t | x_<t, c_t)        parameters = stack(x_<t, c_t),  x_t = clamp(draw(parameters, noise_t))

(WaveNet: van den Oord et al., 2016, Eq. 1; ClariNet, Eq. 1). The stack's column t reads x up to t - 1.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwave import _cpu
from fastwave.ops import heads
from fastwave.ops.custom import (
    argument_schema,
    arguments,
    capsule,
    cuda_kernels,
    current_stream,
    define,
    require_one_device,
)
from fastwave.ops.gated_stack import GatedStackSpec, GatedStackWeights, contiguous_state, gated_stack_ref

__all__ = [
    "HeadSpec",
    "has_own_kernel",
    "initial_sampler_state",
    "sampler_state_size",
    "wavenet_sample",
    "wavenet_sample_ref",
]

DISTRIBUTIONS = ("gaussian", "mixture_of_gaussians", "mixture_of_logistics", "softmax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """What becomes of the stack's output.

    Attributes:
        distribution: "gaussian", "mixture_of_gaussians", "mixture_of_logistics" or "softmax".
        log_scale_min: floor of the log-scales when sampling.
        clamp: bounds of the drawn sample; infinite for none.
    """

    distribution: str
    log_scale_min: float = -math.inf
    clamp: float = 1.0

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {self.distribution!r}")
        if not self.clamp > 0:
            raise ValueError(f"clamp must be positive, got {self.clamp}")

    def noise_channels(self, n_params: int) -> int:
        return 1 if self.distribution in ("gaussian", "softmax") else n_params // 3 + 1


def has_own_kernel(spec: GatedStackSpec, device: torch.device) -> bool:
    """Whether one row of such a stack runs on a CUDA kernel for its sizes, not on the general one, which is slower."""
    kernels = cuda_kernels("device", device)
    return not kernels.wavenet_sample_plan(arguments(spec), 1, device.index or 0)["general"]


def sampler_state_size(spec: GatedStackSpec) -> int:
    """Floats of state per row: the front's last ``front_width`` inputs, then each layer's history (time-major)."""
    return spec.state_size + spec.in_channels


def initial_sampler_state(spec: GatedStackSpec, batch: int, first: Tensor | None = None, **factory) -> Tensor:
    """State before the first sample: zeros, but for the input that column 0 reads, ``first`` (in_channels,)."""
    state = torch.zeros(batch, sampler_state_size(spec), **factory)
    if first is not None:
        last = spec.front_width * spec.in_channels
        state[:, last - spec.in_channels : last] = first
    return state


def wavenet_sample_ref(
    noise: Tensor,
    weights: GatedStackWeights,
    spec: GatedStackSpec,
    head: HeadSpec,
    *,
    state: Tensor,
    c: Tensor | None = None,
    g: Tensor | None = None,
    table: Tensor | None = None,
    forced: Tensor | None = None,
    temperature: float = 1.0,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The op in plain PyTorch, one column at a time, in the dtype of its inputs.

    Args:
        noise: (batch, noise_channels, time), see fastwave.ops.heads; it sets the number of samples.
        state: (batch, sampler_state_size), from initial_sampler_state or the call before; updated in place. Every call
            but the last takes a multiple of cond_repeat samples.
        c: (batch, cond_channels, ceil(time / cond_repeat)).
        g: (batch, L, 2G), a vector per row and layer (global conditioning).
        table: (classes,), the amplitude of each class of a softmax head.
        forced: (batch, n), n <= time: samples to feed, and return, in place of the first n drawn ones. A one-hot input
            takes the class whose amplitude is nearest.
        lengths: (batch,) int64: samples of each row; the rest is 0, and the row's state stays as after its last sample.

    Returns:
        samples (batch, time), and the parameters each was drawn from (batch, n_params, time).
    """
    batch, _, time = noise.shape
    width = spec.front_width * spec.in_channels
    window, layers = state[:, :width].clone(), state[:, width:].clone()
    samples, parameters = [], []
    for t in range(time):
        past = torch.cat([window[:, : -spec.in_channels], layers], 1)  # the stack's own state
        p = gated_stack_ref(
            window[:, -spec.in_channels :, None],
            weights,
            spec,
            c=None if c is None else c[..., t // spec.cond_repeat, None],
            g=g,
            state=past,
        )[..., 0]
        x = _draw(p, noise[..., t], head, table, temperature)
        if forced is not None and t < forced.shape[1]:
            x = forced[:, t]
        fed = F.one_hot(_nearest_class(x, table), spec.in_channels).to(x) if spec.in_channels > 1 else x[:, None]
        running = torch.ones(batch, 1, dtype=torch.bool) if lengths is None else t < lengths[:, None]
        window = torch.where(running, torch.cat([window[:, spec.in_channels :], fed], 1), window)
        layers = torch.where(running, past[:, width - spec.in_channels :], layers)
        samples.append(torch.where(running[:, 0], x, 0))
        parameters.append(torch.where(running, p, 0))
    state.copy_(torch.cat([window, layers], 1))
    if not samples:
        return noise.new_zeros(batch, 0), noise.new_zeros(batch, spec.out_channels, 0)
    return torch.stack(samples, 1), torch.stack(parameters, 2)


def _nearest_class(x: Tensor, table: Tensor) -> Tensor:
    """The class whose amplitude is nearest to x (the table increases)."""
    return (x[:, None] - table).abs().argmin(1)


def _draw(parameters: Tensor, noise: Tensor, head: HeadSpec, table: Tensor | None, temperature: float) -> Tensor:
    if head.distribution == "softmax":
        return table[heads.softmax_index(parameters, noise, temperature)]
    draw = getattr(heads, head.distribution)
    return draw(parameters, noise, temperature, head.log_scale_min).clamp(-head.clamp, head.clamp)


def wavenet_sample(
    noise: Tensor,
    weights: Tensor,
    spec: GatedStackSpec,
    head: HeadSpec,
    *,
    state: Tensor,
    c: Tensor | None = None,
    g: Tensor | None = None,
    table: Tensor | None = None,
    forced: Tensor | None = None,
    lengths: Tensor | None = None,
    temperature: float = 1.0,
    return_parameters: bool = False,
    threads: int = 1,
) -> tuple[Tensor, Tensor]:
    """The op on the kernels, of the CPU or of a CUDA device, as the tensors are.

    float32 tensors, and arguments as in wavenet_sample_ref, but for these.

    Args:
        weights: one flat tensor of spec.dtype, from fastwave.pack.pack_gated_stack.
        return_parameters: without it the second result is empty, (batch, 0, 0).
        threads: rows of the batch run on up to so many threads; of no meaning on a CUDA device.

    Raises:
        ValueError: a tensor of another shape, dtype, device or layout, or int8 on a CUDA device; the message names it.
    """
    required = {"noise": noise, "weights": weights, "state": state}
    require_one_device(required, c=c, g=g, table=table, forced=forced, lengths=lengths)
    return torch.ops.fastwave.wavenet_sample(
        noise,
        weights,
        c,
        g,
        table,
        forced,
        lengths,
        state,
        temperature=temperature,
        return_parameters=return_parameters,
        threads=threads,
        **arguments(spec),
        **arguments(head),
    )


def _wavenet_sample(noise, weights, c, g, table, forced, lengths, state, *, threads, **named):
    tensors = {"weights": weights, "c": c, "g": g, "table": table, "forced": forced, "lengths": lengths}
    return _run(_cpu, noise, tensors, state, {"threads": threads}, **named)


def _wavenet_sample_cuda(noise, weights, c, g, table, forced, lengths, state, *, threads, **named):
    kernels = cuda_kernels("noise", noise.device)
    if lengths is not None and lengths.numel() and not 0 <= lengths.min() <= lengths.max() <= noise.shape[-1]:
        raise ValueError(f"lengths must be between 0 and {noise.shape[-1]}, got {lengths.tolist()}")
    tensors = {"weights": weights, "c": c, "g": g, "table": table, "forced": forced, "lengths": lengths}
    plan = kernels.wavenet_sample_plan(_stack(named), max(1, len(noise)), noise.device.index)
    machine = {
        "workspace": capsule(noise.new_empty(plan["workspace"] // noise.itemsize)),
        "stream": current_stream(noise),
    }
    return _run(kernels, noise, tensors, state, machine, **named)


def _stack(named: dict) -> dict:
    """The fields of the GatedStackSpec among named arguments."""
    return {field.name: named[field.name] for field in dataclasses.fields(GatedStackSpec)}


def _run(kernels, noise, tensors, state, machine, *, temperature, return_parameters, **specs):
    samples, parameters = _empty_outputs(noise, return_parameters, specs)
    kernels.wavenet_sample(
        _stack(specs),
        {field.name: specs[field.name] for field in dataclasses.fields(HeadSpec)},
        noise=capsule(noise),
        state=capsule(contiguous_state(state)),
        samples=capsule(samples),
        parameters=capsule(parameters) if return_parameters else None,
        temperature=temperature,
        **{name: capsule(tensor) for name, tensor in tensors.items()},
        **machine,
    )
    return samples, parameters


def _fake_wavenet_sample(
    noise, weights, c, g, table, forced, lengths, state, *, temperature, return_parameters, threads, **specs
):
    return _empty_outputs(noise, return_parameters, specs)


define(
    "wavenet_sample",
    "(Tensor noise, Tensor weights, Tensor? c, Tensor? g, Tensor? table, Tensor? forced, Tensor? lengths,"
    " Tensor(a!) state, *, float temperature, bool return_parameters, int threads,"
    f" {argument_schema(GatedStackSpec, HeadSpec)}) -> (Tensor, Tensor)",
    cpu=_wavenet_sample,
    cuda=_wavenet_sample_cuda,
    fake=_fake_wavenet_sample,
)


def _empty_outputs(noise: Tensor, return_parameters: bool, specs: dict) -> tuple[Tensor, Tensor]:
    if noise.dim() != 3:
        raise ValueError(f"noise must be (batch, noise channels, samples), got {tuple(noise.shape)}")
    batch, _, time = noise.shape
    shape = (batch, specs["head_channels"][-1], time) if return_parameters else (batch, 0, 0)
    return noise.new_empty(batch, time), noise.new_empty(shape)
