"""gated_stack: a stack of gated dilated convolutions, the inner loop of every WaveNet.

With ``*`` a dilated convolution, ``.`` the element-wise product and layer l = 1..L:

    h   =  relu?(F * x + f)                                    front convolution
    a   =  W_l * (h + u_l) + A_l c + b_l + g_l                 2 G channels: filter half, gate half
    z   =  tanh(a_filter) . sigmoid(a_gate)
    skip += S_l z + s_l ;   h <- (h + R_l z + r_l) residual_scale
    y   =  head(skip)      or head(h) where there is no skip   1x1 products, each behind an optional ReLU

and then, for a flow, the affine epilogue ``y . exp(log_sigma) + mu`` or its inverse, with mu and log_sigma
the halves of the head's output (WaveNet: van den Oord et al., 2016, sections 2.3 and 2.4; the flow:
ClariNet, Ping et al., 2018, Eq. 5).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.dlpack import to_dlpack

from fastwave import _cpu
from fastwave.ops.custom import (
    argument_schema,
    arguments,
    capsule,
    cuda_kernels,
    current_stream,
    define,
    require_one_device,
)
from fastwave.ops.rounding import DTYPES, rounded

__all__ = ["GatedStackSpec", "GatedStackWeights", "gated_stack", "gated_stack_ref", "initial_state", "ungrouped"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedStackSpec:
    """The shape of a gated stack; see the module's equations for the letters.

    Attributes:
        in_channels: channels of x.
        front_width: taps of the front convolution (dilation 1).
        front_causal: causal (True) or centred front; a centred front has an odd width.
        front_relu: a ReLU behind the front convolution.
        residual_channels, gate_channels, skip_channels: R, G and S. ``skip_channels=0``: no skip, the head reads h.
        kernel_size: taps k of the dilated convolutions.
        dilations: one per layer; without any the op is its front, a convolution.
        causal: causal (True) or centred dilated convolutions; a centred one has an odd kernel.
        residual_scale: factor on the residual sum, 1 or sqrt(1/2).
        cond_channels: channels of c that A_l reads; 0 without c.
        cond_repeat: samples that each column of c stands for.
        cond_taps: columns of c, an odd number, that the conditioning of a sample is interpolated from: the one that it
            stands at and its neighbours. A linear upsampler that treats all channels alike commutes with A_l: so A_l c
            is made at c's own rate, which is most of the work saved.
        separable: W_l is a depthwise convolution, then a 1x1 product (SqueezeWave, 2001.05685, section 3.2).
        head_channels, head_relu: outputs of each head layer, and whether a ReLU goes before it; there may be none.
        epilogue: "none"; "affine": y exp(log_sigma) + mu; "inverse": (y - mu) exp(-log_sigma).
        epilogue_order: which half of the head's output is first, "mu" or "log_sigma".
        dtype: what the layers' products (W, A, R, S) run in, "float32", "bfloat16" or "int8": see
            fastwave.ops.rounding. Front, head, sums and activations are float32 in any case.
        delay: "none"; "input": column t reads x[< t] (ClariNet's Algorithm 1: the net gives the first sample too);
            "output": column t reads x[<= t] and makes sample t + 1, the first sample is 0 (ksw0306/ClariNet).
    """

    in_channels: int = 1
    front_width: int = 1
    front_causal: bool = True
    front_relu: bool = False
    residual_channels: int
    gate_channels: int
    skip_channels: int
    kernel_size: int
    dilations: Sequence[int]
    causal: bool = True
    residual_scale: float = math.sqrt(0.5)
    cond_channels: int = 0
    cond_repeat: int = 1
    cond_taps: int = 1
    separable: bool = False
    head_channels: Sequence[int] = ()
    head_relu: Sequence[bool] = ()
    epilogue: Literal["none", "affine", "inverse"] = "none"
    epilogue_order: Literal["mu", "log_sigma"] = "mu"
    delay: Literal["none", "input", "output"] = "none"
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dilations", tuple(self.dilations))
        object.__setattr__(self, "head_channels", tuple(self.head_channels))
        object.__setattr__(self, "head_relu", tuple(self.head_relu))
        for name in (
            "in_channels",
            "front_width",
            "residual_channels",
            "gate_channels",
            "kernel_size",
            "cond_repeat",
            "cond_taps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("skip_channels", "cond_channels"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("dilations", "head_channels"):
            if any(value < 1 for value in getattr(self, name)):
                raise ValueError(f"{name} must be positive integers, got {getattr(self, name)}")
        if self.skip_channels and not self.dilations:
            raise ValueError(f"skip_channels must be 0 in a stack without layers, got {self.skip_channels}")
        if len(self.head_relu) != len(self.head_channels):
            raise ValueError(f"head_relu must have {len(self.head_channels)} entries, got {len(self.head_relu)}")
        if not self.front_causal and self.front_width % 2 == 0:
            raise ValueError(f"front_width of a centred front must be odd, got {self.front_width}")
        if not self.causal and self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size of a centred stack must be odd, got {self.kernel_size}")
        if self.cond_taps % 2 == 0 or (self.cond_taps > 1 and not self.cond_channels):
            raise ValueError(f"cond_taps must be odd, and 1 without cond_channels, got {self.cond_taps}")
        for name, allowed in (
            ("epilogue", ("none", "affine", "inverse")),
            ("epilogue_order", ("mu", "log_sigma")),
            ("delay", ("none", "input", "output")),
            ("dtype", DTYPES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.epilogue != "none" and self.parameters % 2:
            raise ValueError(f"head_channels must end in an even number for a flow, got {self.parameters}")
        if self.delay == "output" and self.epilogue == "none":
            raise ValueError("delay 'output' needs an epilogue")

    @property
    def layers(self) -> int:
        return len(self.dilations)

    @property
    def parameters(self) -> int:
        """Channels of what the epilogue reads."""
        return self.head_channels[-1] if self.head_channels else self.skip_channels or self.residual_channels

    @property
    def out_channels(self) -> int:
        """Channels of the op's output."""
        return self.parameters // (1 if self.epilogue == "none" else 2)

    @property
    def look_ahead(self) -> int:
        """Later columns of x that a column of the output depends on."""
        front = 0 if self.front_causal else self.front_width // 2
        return front + (0 if self.causal else (self.kernel_size - 1) * sum(self.dilations) // 2)

    @property
    def front_history(self) -> int:
        """Columns of x that the next call needs."""
        return self.front_width - 1 + (self.delay == "input")

    @property
    def receptive_field(self) -> int:
        """Samples of x that one output column depends on."""
        return self.front_width + (self.kernel_size - 1) * sum(self.dilations)

    @property
    def state_size(self) -> int:
        """Floats of state per row.

        The front's history; each layer's; the skip sums of a centred stack that some layers have added to and others
        have not; a delayed epilogue's last mu and log_sigma. All are time-major, (columns, channels), oldest first.
        """
        reach = [(self.kernel_size - 1) * d for d in self.dilations]
        skip = 0 if self.causal else sum(reach[1:]) // 2 * self.skip_channels
        last = self.parameters if self.delay == "output" else 0
        return self.front_history * self.in_channels + sum(reach) * self.residual_channels + skip + last


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedStackWeights:
    """The stack's weights in logical order: filter half before gate half, tap k - 1 the latest.

    ``cond`` is empty where there is no c; ``skip`` where there is no skip; the last layer's
    ``residual`` is read only where there is no skip. ``depthwise`` (R, k) goes with ``conv`` of one tap.
    """

    front: Tensor  # (R, in_channels, front_width)
    front_bias: Tensor  # (R,)
    conv: Sequence[Tensor]  # L x (2G, R, k)
    conv_bias: Sequence[Tensor]  # L x (2G,)
    residual: Sequence[Tensor]  # L or L - 1 x (R, G)
    residual_bias: Sequence[Tensor]
    skip: Sequence[Tensor] = ()  # L x (S, G)
    skip_bias: Sequence[Tensor] = ()
    cond: Sequence[Tensor] = ()  # L x (2G, cond_channels)
    depthwise: Sequence[Tensor] = ()  # L x (R, k)
    depthwise_bias: Sequence[Tensor] = ()
    head: Sequence[Tensor]  # (out, in) each
    head_bias: Sequence[Tensor]


def initial_state(spec: GatedStackSpec, batch: int, **factory) -> Tensor:
    """State before the first sample, (batch, state_size): zeros; a delayed epilogue starts at exp(-inf) x + 0 = 0."""
    state = torch.zeros(batch, spec.state_size, **factory)
    if spec.delay == "output":
        half = spec.out_channels
        log_sigma = state[:, -half:] if spec.epilogue_order == "mu" else state[:, -2 * half : -half]
        log_sigma.fill_(-math.inf if spec.epilogue == "affine" else math.inf)
    return state


def _taps(h: Tensor, kernel_size: int, dilation: int, left: int, right: int) -> Tensor:
    """The columns each tap reads, oldest tap first: (batch, R, time) -> (batch, k R, time)."""
    if kernel_size == 1:
        return h
    padded = F.pad(h, (left, right))
    time = padded.shape[-1] - (kernel_size - 1) * dilation
    return torch.cat([padded[..., j * dilation : j * dilation + time] for j in range(kernel_size)], 1)


def _flat(weight: Tensor) -> Tensor:
    """(out, in, k) -> (out, k in), in the order of _taps."""
    return weight.transpose(1, 2).flatten(1)


def _product(weight: Tensor, h: Tensor, bias: Tensor) -> Tensor:
    """weight (out, in) times h (batch, in, time) plus bias (out,); a batched product, so that h is not copied."""
    return torch.baddbmm(bias[:, None], weight.expand(len(h), -1, -1), h)


def ungrouped(c: Tensor | None) -> Tensor | None:
    """c with all its channels in one dimension."""
    return c.transpose(2, 3).flatten(1, 2) if c is not None and c.dim() == 4 else c


def _mask(lengths: Tensor | None, time: int) -> Tensor | None:
    """1 where a column is within its row's length, (batch, 1, time)."""
    return None if lengths is None else (torch.arange(time, device=lengths.device) < lengths[:, None])[:, None]


class _History:
    """Reads and rewrites the per-row history of a state tensor, in the order in which the stack asks."""

    def __init__(self, state: Tensor | None):
        self.state, self.at = state, 0

    def extend(self, h: Tensor, columns: int) -> Tensor:
        """h (batch, channels, time) behind its last ``columns`` columns, which then become the latest ones."""
        if self.state is None:
            return F.pad(h, (columns, 0))
        batch, channels, _ = h.shape
        past = self.state[:, self.at : self.at + columns * channels]
        self.at += columns * channels
        joined = torch.cat([past.view(batch, columns, channels).transpose(1, 2), h], 2)
        past.copy_(joined[..., joined.shape[-1] - columns :].transpose(1, 2).reshape(batch, -1))
        return joined


def gated_stack_ref(
    x: Tensor,
    weights: GatedStackWeights,
    spec: GatedStackSpec,
    *,
    c: Tensor | None = None,
    g: Tensor | None = None,
    u: Tensor | None = None,
    y: Tensor | None = None,
    interpolation: Tensor | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    state: Tensor | None = None,
    trace: list[Tensor] | None = None,
) -> Tensor:
    """The op in plain PyTorch, in the dtype of its inputs; differentiable (without ``state``).

    Under autocast the layers' products alone are of another dtype, as on the kernels: front, head and sums are not.

    Args:
        x: (batch, in_channels, time).
        c: (batch, cond_channels, ceil(time / cond_repeat) + cond_taps - 1), with cond_taps // 2 columns on either side;
            or (batch, bands, columns, group): channel i * group + j is phase j of band i, as a flow squeezes it.
        g: (batch, L, 2G), a vector per row and layer (global conditioning).
        u: (batch, L, R), added to the convolution's input but not to the residual, nor to the padding.
        y: (batch, out_channels, time), what the epilogue transforms; x where absent.
        interpolation: (batch, time, cond_taps), how much of each column of c goes into a sample's, where cond_taps > 1.
        lengths: (batch,) int64, valid columns of each row; no padding leaks, and the output is 0 after them. A row's
            state is that after its last valid column.
        reverse: run each row backwards in time (its valid columns reversed, the output put back in order).
        state: (batch, spec.state_size) of a causal stack, carried from call to call and updated in place. Every call
            but the last takes a multiple of cond_repeat columns.
        trace: gets, in order, what each nonlinearity reads, (batch, channels, time): the front's, each layer's filter
            and gate, and each layer's of the head.

    Returns:
        (batch, out_channels, time).
    """
    batch, _, time = x.shape
    if state is not None and spec.look_ahead:
        raise ValueError("state must be None: the reference takes a centred stack's columns all at once")
    if lengths is not None and state is not None:  # a row's state is that after its own last column
        out = x.new_zeros(batch, spec.out_channels, time)
        for row, n in enumerate(lengths.tolist()):
            one = slice(row, row + 1)
            out[one, :, :n] = gated_stack_ref(
                x[one, :, :n],
                weights,
                spec,
                c=None if c is None else c[one, :, : -(-n // spec.cond_repeat)],
                g=None if g is None else g[one],
                u=None if u is None else u[one],
                y=None if y is None else y[one, :, :n],
                state=state[one],
            )
        return out
    mask = _mask(lengths, time)
    c = ungrouped(c)

    def reversed_(v: Tensor) -> Tensor:
        if lengths is None:
            return v.flip(-1)
        index = torch.arange(time, device=v.device).expand(batch, -1)
        index = torch.where(index < lengths[:, None], lengths[:, None] - 1 - index, index)
        return v.gather(-1, index[:, None].expand_as(v))

    def matrix(weight: Tensor) -> Tensor:
        return rounded(weight, spec.dtype, power_of_two=False)

    def conditioning(layer: int) -> Tensor:
        """A_l c at the sample rate, (batch, 2G, time): projected at c's own rate, then repeated."""
        projected = torch.bmm(matrix(weights.cond[layer]).expand(batch, -1, -1), c)
        taps = projected.unfold(2, projected.shape[2] - spec.cond_taps + 1, 1).unbind(2)
        taps = [tap.repeat_interleave(spec.cond_repeat, -1)[..., :time] for tap in taps]
        if interpolation is None:
            (projected,) = taps
        else:
            projected = sum(w[:, None] * tap for w, tap in zip(interpolation.unbind(2), taps, strict=True))
        return reversed_(projected) if reverse else projected

    y = x if y is None else y
    if reverse:
        x, y = reversed_(x), reversed_(y)
    if mask is not None:
        x = x.masked_fill(~mask, 0)
    if c is not None:
        c = rounded(c, spec.dtype)
    history = _History(state)

    delayed = spec.delay == "input"
    if spec.front_causal:
        padded = history.extend(x, spec.front_history)
        padded = padded[..., : padded.shape[-1] - delayed]
        columns = _taps(padded, spec.front_width, 1, 0, 0)
    else:
        half = spec.front_width // 2
        columns = _taps(F.pad(x, (1, -1)) if delayed else x, spec.front_width, 1, half, half)
    with torch.autocast(x.device.type, enabled=False):
        h = _product(_flat(weights.front), columns, weights.front_bias)
    if trace is not None:
        trace.append(h)
    h = h.relu() if spec.front_relu else h

    skip = None
    reach = [(spec.kernel_size - 1) * d for d in spec.dilations]
    for layer, dilation in enumerate(spec.dilations):
        if mask is not None:
            h = h.masked_fill(~mask, 0)
        v = h if u is None else h + u[:, layer, :, None]
        if mask is not None and u is not None:
            v = v.masked_fill(~mask, 0)
        if not spec.separable:
            v = rounded(v, spec.dtype)
        if spec.causal:
            v = history.extend(v, reach[layer])
        else:
            v = F.pad(v, (reach[layer] // 2,) * 2)
        v = _taps(v, spec.kernel_size, dilation, 0, 0)
        if spec.separable:
            taps = v.unflatten(1, (spec.kernel_size, -1)) * weights.depthwise[layer].T[..., None]
            v = rounded(taps.sum(1) + weights.depthwise_bias[layer][:, None], spec.dtype)
        a = _product(_flat(matrix(weights.conv[layer])), v, weights.conv_bias[layer])
        if c is not None:
            a = a + conditioning(layer)
        if g is not None:
            a = a + g[:, layer, :, None]
        if trace is not None:
            trace.append(a)
        a_filter, a_gate = a.chunk(2, 1)
        z = rounded(a_filter.tanh() * a_gate.sigmoid(), spec.dtype)
        if spec.skip_channels:
            s = _product(matrix(weights.skip[layer]), z, weights.skip_bias[layer])
            skip = s.to(x.dtype) if skip is None else skip + s
        if layer + 1 < spec.layers or not spec.skip_channels:
            r = _product(matrix(weights.residual[layer]), z, weights.residual_bias[layer])
            h = (h + r) * spec.residual_scale

    out = skip if spec.skip_channels else h
    with torch.autocast(x.device.type, enabled=False):
        for weight, bias, relu in zip(weights.head, weights.head_bias, spec.head_relu, strict=True):
            if trace is not None:
                trace.append(out)
            out = _product(weight, out.relu() if relu else out, bias)
    if spec.epilogue != "none":
        out = _epilogue(out, y, spec, history)
    if mask is not None:
        out = out.masked_fill(~mask, 0)
    return reversed_(out) if reverse else out


def _epilogue(parameters: Tensor, y: Tensor, spec: GatedStackSpec, history: _History) -> Tensor:
    """y exp(log_sigma) + mu, or its inverse, with the delay's rule for the first sample."""
    first_is_zero = False
    if spec.delay == "output":
        first_is_zero = history.state is None
        parameters = history.extend(parameters, 1)[..., :-1]
    mu, log_sigma = parameters.chunk(2, 1) if spec.epilogue_order == "mu" else parameters.chunk(2, 1)[::-1]
    out = y * log_sigma.exp() + mu if spec.epilogue == "affine" else (y - mu) * (-log_sigma).exp()
    return torch.cat([torch.zeros_like(out[..., :1]), out[..., 1:]], -1) if first_is_zero else out


def gated_stack(
    x: Tensor,
    weights: Tensor,
    spec: GatedStackSpec,
    *,
    c: Tensor | None = None,
    projected: Tensor | None = None,
    g: Tensor | None = None,
    u: Tensor | None = None,
    y: Tensor | None = None,
    interpolation: Tensor | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    state: Tensor | None = None,
    pending: int = 0,
    last: bool = True,
    threads: int = 1,
) -> Tensor:
    """The op on the kernels, of the CPU or of a CUDA device, as the tensors are.

    float32 tensors, and arguments as in gated_stack_ref, but for these.

    A stack that looks ahead may carry state too. It then makes, of ``pending`` columns that earlier calls took and did
    not make and of the ``time`` new ones of x, all but the last ``look_ahead``; and those too in the last call. What
    belongs to columns, other than x, begins with the pending ones: c, y, interpolation, lengths. A row that has ended
    goes on with the others until what is pending of it is made.

    Args:
        weights: one flat tensor of spec.dtype, from fastwave.pack.pack_gated_stack.
        projected: what fastwave.ops.project made of c and g, in their place: the same bits come out. On the CPU alone.
        pending: columns that are pending: as many as all earlier calls took, at most spec.look_ahead.
        last: whether no more columns will come.
        threads: rows of the batch run on up to so many threads; of no meaning on a CUDA device, where the call returns
            before the work is done, as torch's do.

    Raises:
        ValueError: a tensor of another shape, dtype, device or layout, or int8 on a CUDA device; the message names it.
    """
    optional = (c, projected, g, u, y, interpolation, lengths, state)
    require_one_device({"x": x, "weights": weights}, **dict(zip(OPTIONAL, optional, strict=True)))
    return torch.ops.fastwave.gated_stack(
        x, weights, *optional, reverse=reverse, pending=pending, last=last, threads=threads, **arguments(spec)
    )


OPTIONAL = ("c", "projected", "g", "u", "y", "interpolation", "lengths", "state")  # tensors, in the schema's order


def _gated_stack(x, weights, *optional, threads, **named):
    tensors = dict(zip(OPTIONAL, optional, strict=True))
    projected = tensors.pop("projected")
    machine = {"threads": threads, "projected": None if projected is None else to_dlpack(projected.detach())}
    return _run(_cpu, x, weights, tensors, machine, **named)


def _gated_stack_cuda(x, weights, *optional, threads, **named):
    kernels = cuda_kernels("x", x.device)
    tensors = dict(zip(OPTIONAL, optional, strict=True))
    if tensors.pop("projected") is not None:
        raise ValueError("projected must be None on cuda, got a tensor")
    tensors["c"] = ungrouped(tensors["c"])
    lengths, columns = tensors["lengths"], named["pending"] + x.shape[-1]
    capturing = torch.cuda.is_current_stream_capturing()  # a graph: values cannot be read, and the kernel bounds them
    if lengths is not None and lengths.numel() and not capturing and not 0 <= lengths.min() <= lengths.max() <= columns:
        raise ValueError(f"lengths must be between 0 and {columns}, got {lengths.tolist()}")
    machine = {"stream": current_stream(x), "workspace": capsule(_workspace(kernels, x, tensors, **named))}
    return _run(kernels, x, weights, tensors, machine, **named)


def _workspace(kernels, x, tensors, *, reverse, pending, last, **spec):
    """What a call on a CUDA device needs of memory beside its tensors."""
    plan = kernels.gated_stack_plan(
        spec,
        batch=max(1, len(x)),
        time=x.shape[-1],
        cond_time=0 if tensors["c"] is None else tensors["c"].shape[-1],
        last=last,
        device=x.device.index or 0,
    )
    return x.new_empty(plan["workspace"] // x.itemsize)


def _run(kernels, x, weights, tensors, machine, *, reverse, pending, last, **spec):
    out = _empty_output(x, pending, last, spec)
    tensors["state"] = contiguous_state(tensors["state"])
    kernels.gated_stack(
        spec,
        x=capsule(x),
        weights=capsule(weights),
        out=capsule(out),
        reverse=reverse,
        pending=pending,
        last=last,
        **{name: capsule(tensor) for name, tensor in tensors.items()},
        **machine,
    )
    return out


def _fake_gated_stack(x, weights, *optional, reverse, pending, last, threads, **spec):
    return _empty_output(x, pending, last, spec)


define(
    "gated_stack",
    f"(Tensor x, Tensor weights, {', '.join(f'Tensor? {name}' for name in OPTIONAL[:-1])}, Tensor(a!)? state, *,"
    " bool reverse, int pending, bool last, int threads,"
    f" {argument_schema(GatedStackSpec)}) -> Tensor",
    cpu=_gated_stack,
    cuda=_gated_stack_cuda,
    fake=_fake_gated_stack,
)


def _empty_output(x: Tensor, pending: int, last: bool, spec: dict) -> Tensor:
    if x.dim() != 3:
        raise ValueError(f"x must be (batch, {spec['in_channels']}, time), got {tuple(x.shape)}")
    spec = GatedStackSpec(**spec)
    if not 0 <= pending <= spec.look_ahead:
        raise ValueError(f"pending must be between 0 and {spec.look_ahead}, got {pending}")
    columns = max(0, pending + x.shape[2] - (0 if last else spec.look_ahead))
    return x.new_empty(x.shape[0], spec.out_channels, columns)


def contiguous_state(state: Tensor | None) -> Tensor | None:
    """The state itself, or an error: a copy of it would be updated in its place."""
    if state is not None and not state.is_contiguous():
        raise ValueError(f"state must be contiguous, got strides {state.stride()}")
    return state
