"""The models in PyTorch, in float32, as a careful user would write them: what the kernels are compared with."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastwave.graphs import capture
from fastwave.layers import GatedStack
from fastwave.models import ParallelModel, WaveNet
from fastwave.ops import heads
from fastwave.ops.gated_stack import GatedStackSpec, GatedStackWeights, ungrouped

__all__ = [
    "ConvolutionModel",
    "ConvolutionStacks",
    "Graphed",
    "IncrementalWaveNet",
    "convolution_stack",
    "onnx_runtime",
]


def _linear(bias: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """W x + b for one vector or a batch of them; one is faster as a matrix-vector product."""
    return torch.addmv(bias, weight, x) if x.dim() == 1 else torch.addmm(bias, x, weight.T)


class Graphed:
    """A step of IncrementalWaveNet as a CUDA graph."""

    def __init__(self, step: Callable):
        self.step, self.rings = step, None

    def __call__(self, window: Tensor, rings: list[Tensor], *inputs: Tensor) -> tuple[Tensor, Tensor]:
        given = (window, *inputs)
        if self.rings is not rings:
            self._capture(rings, given)
        for held, new in zip(self.inputs, given, strict=True):
            held.copy_(new)
        self.replay()
        return self.outputs

    def _capture(self, rings: list[Tensor], inputs: tuple[Tensor, ...]) -> None:
        self.rings, self.inputs = rings, [tensor.clone() for tensor in inputs]
        window, *others = self.inputs
        before = [ring.clone() for ring in rings]
        for _ in range(3):  # what is chosen, compiled or allocated at first must not be a part of it
            self.step(window, rings, *others)
        self.replay, self.outputs = capture(lambda: self.step(window, rings, *others), torch.cuda.Stream())
        for ring, old in zip(rings, before, strict=True):
            ring.copy_(old)


class IncrementalWaveNet:
    """Sampled one sample at a time, nothing computed twice.

    Each layer keeps its past inputs in a ring; conditioning is projected for the whole utterance at once; all taps of a
    layer are one matrix product, residual and skip another.

    Args:
        wrap: what the step of one sample goes through: torch.compile, Graphed or both. It then updates tensors that
            stay where they are.
    """

    def __init__(self, model: WaveNet, wrap: Callable[[Callable], Callable] | None = None):
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
        self.wrapped, self.step = wrap is not None, self._step if wrap is None else wrap(self._step)
        self.rings = []

    @torch.inference_mode()
    def generate(self, noise: Tensor, c: Tensor) -> Tensor:
        """noise (batch, noise channels, samples), conditioning (batch, cond_channels, columns) -> (batch, samples)."""
        spec, batch = self.spec, len(noise)
        rows = () if batch == 1 else (batch,)
        noise = noise.permute(2, 0, 1).contiguous()  # (samples, batch, noise channels)
        columns = c.permute(2, 0, 1).reshape(c.shape[2], *rows, -1)
        pairs = zip(self.conv_bias, self.cond, strict=True)
        projected = torch.stack([F.linear(columns, w, b) for b, w in pairs], 1)  # (columns, L, ..., 2G)
        past = spec.kernel_size - 1
        rings = self._empty_rings(noise, rows)
        window = noise.new_zeros(*rows, spec.front_width * spec.in_channels)
        window[..., -spec.in_channels :] = self.first
        samples = noise.new_empty(len(noise), batch)
        # where in its layer's ring each past tap stands, oldest first: (samples, L, k - 1)
        dilations = torch.tensor(spec.dilations)[:, None]
        places = (torch.arange(len(noise))[:, None, None] + torch.arange(past) * dilations) % (past * dilations)
        places = places.to(noise.device) if self.wrapped else places.tolist()
        for t in range(len(noise)):
            samples[t], window = self.step(window, rings, places[t], projected[t // spec.cond_repeat], noise[t])
        return samples.T

    def _empty_rings(self, like: Tensor, rows: tuple[int, ...]) -> list[Tensor]:
        """Those of the last utterance where it had as many rows."""
        spec, past = self.spec, self.spec.kernel_size - 1
        shapes = [(past * d, *rows, spec.residual_channels) for d in spec.dilations]
        if [ring.shape for ring in self.rings] != shapes:
            self.rings = [like.new_empty(shape) for shape in shapes]
        for ring in self.rings:
            ring.zero_()
        return self.rings

    def _with_past(self, h: Tensor, ring: Tensor, places: list[int] | Tensor) -> Tensor:
        """A layer's taps, oldest first, and h into the ring in the oldest one's place."""
        if self.wrapped:  # the same step for all places
            taps = torch.cat([*ring.index_select(0, places), h], -1)
            ring.index_copy_(0, places[:1], h[None])
        else:
            past = [ring[place] for place in places]
            taps = torch.cat([*past, h], -1)
            past[0].copy_(h)
        return taps

    def _step(self, window: Tensor, rings: list[Tensor], places, projected: Tensor, noise: Tensor):
        """One sample of each row (batch,), and the window after it; the rings are updated in place."""
        spec, g, s = self.spec, self.spec.gate_channels, self.spec.skip_channels
        h = _linear(self.front_bias, self.front, window)
        h = h.relu() if spec.front_relu else h
        skip = 0
        for i, ring in enumerate(rings):
            a = _linear(projected[i], self.conv[i], self._with_past(h, ring, places[i]))
            out = _linear(self.out_bias[i], self.out[i], a[..., :g].tanh() * a[..., g:].sigmoid())
            skip = skip + out[..., -s:]
            if i + 1 < spec.layers:
                h = torch.add(out[..., :-s], h, alpha=spec.residual_scale)
        for weight, bias, relu in self.heads:
            skip = _linear(bias, weight, skip.relu() if relu else skip)
        x, fed = self._draw(skip.view(len(noise), -1), noise)
        return x, torch.cat([window[..., spec.in_channels :], fed.view(*window.shape[:-1], -1)], -1)

    def _draw(self, parameters: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The samples (batch,), and what the network reads of them."""
        if self.table is None:
            x = getattr(heads, self.head.distribution)(parameters, noise, 1.0, self.head.log_scale_min)
            x = x.clamp(-self.head.clamp, self.head.clamp)
            return x, x
        index = heads.softmax_index(parameters, noise, 1.0)
        x = self.table[index]
        return x, x if self.spec.in_channels == 1 else F.one_hot(index, self.spec.in_channels).to(x)


class ConvolutionStacks(nn.Module):
    """Gated stacks one after the other, written with dilated convolutions as public code has them.

    For long utterances that is faster in PyTorch than the matrix products of gated_stack_ref.
    """

    def __init__(self, stacks: list[GatedStack]):
        super().__init__()
        self.stacks = [(stack.spec, stack.weights()) for stack in stacks]

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (batch, in_channels, time), c (batch, cond_channels, columns) -> (batch, out_channels, time)."""
        for spec, weights in self.stacks:
            x = convolution_stack(spec, weights, x, c)
        return x


class ConvolutionModel(nn.Module):
    """A parallel model, mel to waveform, its stacks as in ConvolutionStacks."""

    def __init__(self, model: ParallelModel):
        super().__init__()
        self.model, self.stages = model, model.stages()
        self.weights = [stage.stack.weights() for stage in self.stages]

    def forward(self, noise: Tensor, mel: Tensor) -> Tensor:
        """noise in the model's layout, mel (batch, n_mels, frames) -> (batch, samples)."""
        conditioning = self.model.condition(mel)

        def run(i: int, x: Tensor, *others: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
            stage = self.stages[i]
            c = None if stage.condition is None else ungrouped(stage.condition(conditioning))
            out = convolution_stack(stage.stack.spec, self.weights[i], x, c, y=y, u=stage.u)
            return out, x, *others

        return self.model.synthesize(noise, run)[:, 0]


def convolution_stack(
    spec: GatedStackSpec,
    weights: GatedStackWeights,
    x: Tensor,
    c: Tensor | None,
    *,
    y: Tensor | None = None,
    u: Tensor | None = None,
) -> Tensor:
    """One of them; arguments as in gated_stack_ref."""

    def convolution(h: Tensor, weight: Tensor, bias: Tensor, dilation: int, causal: bool, groups: int = 1) -> Tensor:
        reach = (weight.shape[-1] - 1) * dilation
        padded = F.pad(h, (reach, 0) if causal else (reach // 2, reach // 2))
        return F.conv1d(padded, weight, bias, dilation=dilation, groups=groups)

    def product(h: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv1d(h, weight[..., None], bias)

    delayed = F.pad(x[..., :-1], (1, 0)) if spec.delay == "input" else x
    h = convolution(delayed, weights.front, weights.front_bias, 1, spec.front_causal)
    h = h.relu() if spec.front_relu else h
    skip = 0
    for i, dilation in enumerate(spec.dilations):
        v = h if u is None else h + u[:, i, :, None]
        if spec.separable:
            taps, bias = weights.depthwise[i][:, None], weights.depthwise_bias[i]
            v = convolution(v, taps, bias, dilation, spec.causal, groups=len(taps))
        a = convolution(v, weights.conv[i], weights.conv_bias[i], dilation, spec.causal)
        if c is not None:
            conditioning = product(c, weights.cond[i])
            a = a + (conditioning.repeat_interleave(spec.cond_repeat, -1) if spec.cond_repeat > 1 else conditioning)
        a_filter, a_gate = a.chunk(2, 1)
        z = a_filter.tanh() * a_gate.sigmoid()
        if spec.skip_channels:
            skip = skip + product(z, weights.skip[i], weights.skip_bias[i])
        if i + 1 < spec.layers or not spec.skip_channels:
            h = (h + product(z, weights.residual[i], weights.residual_bias[i])) * spec.residual_scale
    out = skip if spec.skip_channels else h
    for weight, bias, relu in zip(weights.head, weights.head_bias, spec.head_relu, strict=True):
        out = product(out.relu() if relu else out, weight, bias)
    if spec.epilogue == "none":
        return out
    mu, log_sigma = out.chunk(2, 1) if spec.epilogue_order == "mu" else out.chunk(2, 1)[::-1]
    y = x if y is None else y
    return y * log_sigma.exp() + mu if spec.epilogue == "affine" else (y - mu) * (-log_sigma).exp()


def onnx_runtime(module: nn.Module, inputs: tuple[Tensor, ...], threads: int) -> Callable[[], Tensor]:
    """The module's result on those inputs, from ONNX Runtime.

    Raises:
        ModuleNotFoundError: onnx or onnxruntime is not installed.
    """
    import onnx  # noqa: F401  the exporter needs it, and would say so late
    import onnxruntime

    file, names = io.BytesIO(), [f"input_{i}" for i in range(len(inputs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is the older one, and says so
        torch.onnx.export(module, inputs, file, input_names=names, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    network = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    named = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    return lambda: torch.from_numpy(network.run(None, named)[0])
