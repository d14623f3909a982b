"""The modules that models are made of: GatedStack and Upsampler hold the parameters of the ops of the same names."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastwave.ops.gated_stack import GatedStackSpec, GatedStackWeights, gated_stack_ref
from fastwave.ops.upsample import UpsampleSpec, UpsampleWeights, stretched_phases, transposed_phases

__all__ = ["GatedStack", "Upsampler"]


class GatedStack(nn.Module):
    """Parameters of a gated stack (fastwave.ops.gated_stack), as convolutions that may carry a weight norm.

    Args:
        spec: the stack's shape.
        speaker_channels: width of a global conditioning vector, projected per layer; 0 without.
    """

    def __init__(self, spec: GatedStackSpec, speaker_channels: int = 0):
        super().__init__()
        self.spec = spec
        r, g, s, k = spec.residual_channels, spec.gate_channels, spec.skip_channels, spec.kernel_size
        self.front = nn.Conv1d(spec.in_channels, r, spec.front_width)
        if spec.separable:
            self.depthwise = nn.ModuleList(nn.Conv1d(r, r, k, dilation=d, groups=r) for d in spec.dilations)
        self.conv = nn.ModuleList(
            nn.Conv1d(r, 2 * g, 1 if spec.separable else k, dilation=1 if spec.separable else d) for d in spec.dilations
        )
        if spec.cond_channels:
            self.cond = nn.ModuleList(nn.Conv1d(spec.cond_channels, 2 * g, 1, bias=False) for _ in spec.dilations)
        if speaker_channels:
            self.speaker = nn.ModuleList(nn.Conv1d(speaker_channels, 2 * g, 1, bias=False) for _ in spec.dilations)
        self.residual = nn.ModuleList(nn.Conv1d(g, r, 1) for _ in spec.dilations[1 if s else 0 :])
        if s:
            self.skip = nn.ModuleList(nn.Conv1d(g, s, 1) for _ in spec.dilations)
        widths = [s or r, *spec.head_channels]
        self.head = nn.ModuleList(nn.Conv1d(i, o, 1) for i, o in itertools.pairwise(widths))

    def weights(self) -> GatedStackWeights:
        def products(name: str) -> dict:
            convs = getattr(self, name, ())
            return {name: [c.weight[..., 0] for c in convs], f"{name}_bias": [c.bias for c in convs]}

        cond = [c.weight[..., 0] for c in getattr(self, "cond", ())]
        depthwise = getattr(self, "depthwise", ())
        return GatedStackWeights(
            front=self.front.weight,
            front_bias=self.front.bias,
            conv=[c.weight for c in self.conv],
            conv_bias=[c.bias for c in self.conv],
            cond=cond,
            depthwise=[c.weight[:, 0] for c in depthwise],
            depthwise_bias=[c.bias for c in depthwise],
            **products("residual"),
            **products("skip"),
            **products("head"),
        )

    def speaker_vectors(self, embedding: Tensor) -> Tensor:
        """(batch, speaker_channels) -> the op's g, (batch, L, 2G)."""
        return torch.stack([embedding @ c.weight[..., 0].T for c in self.speaker], 1)

    def forward(self, x: Tensor, c: Tensor | None = None, **named) -> Tensor:
        """See gated_stack_ref for the arguments and shapes."""
        return gated_stack_ref(x, self.weights(), self.spec, c=c, **named)

    def before_epilogue(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """The head's output itself, (batch, head_channels[-1], time): mu and log sigma of a flow."""
        return gated_stack_ref(x, self.weights(), dataclasses.replace(self.spec, epilogue="none"), c=c)


class Upsampler(nn.Module):
    """Mel frames to conditioning columns, initialised as interpolation: conditioning is there from the first step.

    Args:
        spec: the upsampler's shape.
        kind: "transposed": ConvTranspose2d of kernel (K, 2 s), stride s per stage, with a bias (ClariNet, section 5);
            "stretched": repetition, then Conv2d of kernel (K, 2 s + 1) without bias (r9y9, Parallel WaveGAN); it alone
            can be causal, its convolution over the frames then having the taps up to the present one;
            "nearest": repetition alone.
    """

    def __init__(self, spec: UpsampleSpec, kind: str):
        super().__init__()
        if kind not in ("transposed", "stretched", "nearest"):
            raise ValueError(f"upsampler must be one of transposed, stretched, nearest, got {kind!r}")
        if spec.causal and kind != "stretched":
            raise ValueError(f"upsampler must be 'stretched' where it is causal, got {kind!r}")
        self.spec, self.kind = spec, kind
        self.register_buffer("unit", torch.ones(()), persistent=False)  # knows the dtype where there is no parameter
        if spec.context_conv:
            taps = spec.context + 1 if spec.causal else 2 * spec.context + 1
            self.context = nn.Conv1d(spec.n_mels, spec.n_mels, taps, bias=False)
            nn.init.zeros_(self.context.weight)
            nn.init.eye_(self.context.weight.data[..., spec.context])  # the present frame
        half = spec.freq_kernel // 2
        if kind == "transposed":
            self.stages = nn.ModuleList(
                nn.ConvTranspose2d(1, 1, (spec.freq_kernel, 2 * s), (1, s), (half, s // 2)) for s in spec.scales
            )
            for stage, s in zip(self.stages, spec.scales, strict=True):
                ramp = (torch.arange(s) + 0.5) / s
                self._interpolate(stage, torch.cat([ramp, ramp.flip(0)]))
        elif kind == "stretched":
            self.stages = nn.ModuleList(
                nn.Conv2d(1, 1, (spec.freq_kernel, 2 * s + 1), padding=(half, 2 * s if spec.causal else s), bias=False)
                for s in spec.scales
            )
            for stage, s in zip(self.stages, spec.scales, strict=True):
                self._interpolate(stage, torch.full((2 * s + 1,), 1 / (2 * s + 1)))

    def _interpolate(self, stage: nn.Module, taps: Tensor) -> None:
        nn.init.zeros_(stage.weight)
        stage.weight.data[0, 0, self.spec.freq_kernel // 2] = taps
        if stage.bias is not None:
            nn.init.zeros_(stage.bias)

    def weights(self) -> UpsampleWeights:
        """The polyphase form that the op takes."""
        device_dtype = next(self.parameters(), self.unit).detach()
        if self.kind == "nearest":
            phases = []
            for s in self.spec.scales:
                repeat = device_dtype.new_zeros(self.spec.freq_kernel, 3, s)
                repeat[self.spec.freq_kernel // 2, 1] = 1
                phases.append(repeat)
            biases = [device_dtype.new_zeros(())] * len(phases)
        else:
            fold = transposed_phases if self.kind == "transposed" else stretched_phases
            phases = [fold(stage.weight[0, 0], s) for stage, s in zip(self.stages, self.spec.scales, strict=True)]
            biases = [
                device_dtype.new_zeros(()) if stage.bias is None else stage.bias.reshape(()) for stage in self.stages
            ]
        context = None
        if self.spec.context_conv:
            context = F.pad(self.context.weight, (0, self.spec.context)) if self.spec.causal else self.context.weight
        return UpsampleWeights(phases=phases, bias=biases, context=context)

    def forward(self, mel: Tensor) -> Tensor:
        """(batch, n_mels, frames + 2 context) -> (batch, n_mels, frames * prod(scales)), as the field computes it."""
        spec = self.spec
        if spec.context_conv:
            mel = self.context(mel)[..., : mel.shape[-1] - 2 * spec.context]
        for i, s in enumerate(spec.scales):
            columns = mel.shape[-1] * s
            if self.kind != "transposed":
                mel = mel.repeat_interleave(s, -1)
            if self.kind != "nearest":
                mel = self.stages[i](mel[:, None])[:, 0, :, :columns]
            mel = F.leaky_relu(mel, spec.slope)
        cut = 0 if spec.context_conv else spec.context * spec.columns_per_frame
        return mel[..., cut : mel.shape[-1] - cut]
