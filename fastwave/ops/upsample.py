"""upsample: mel frames to conditioning columns, by a chain of polyphase interpolators.

Every upsampler of the field that works on each mel band alike is, per stage of scale s, with q the frame and
r = 0..s-1 the phase of output column q s + r:

    out[f, q s + r] = act(b + sum over i < K, o in {-1, 0, 1} of  V[i, o, r] in[f + i - K // 2, q + o])

and zero outside the input: a transposed 2-D convolution of kernel (K, 2 s) and stride s (ClariNet, section 5;
DiffWave), a nearest-neighbour stretch followed by a 2-D convolution of kernel (K, 2 s + 1) (r9y9/wavenet_vocoder,
Parallel WaveGAN), or a plain repetition. ``act`` is a leaky ReLU of a given slope (1: linear). A causal stage reads one
column earlier, in[., q + o - 1].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwave import _cpu
from fastwave.ops.custom import argument_schema, arguments, capsule, define, require_all_cpu

__all__ = ["UpsampleSpec", "UpsampleWeights", "upsample", "upsample_ref"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpsampleSpec:
    """The shape of an upsampler.

    Attributes:
        n_mels: bands.
        scales: one per stage; their product is the number of columns per frame.
        freq_kernel: K, taps over the bands, odd.
        slope: of the leaky ReLU behind each stage.
        context: frames eaten on each side.
        context_conv: a convolution of width 2 context + 1 over the frames eats them, before the first stage;
            without it they are cut off behind the last.
        causal: no stage reads a later frame.
    """

    n_mels: int
    scales: Sequence[int]
    freq_kernel: int = 1
    slope: float = 1.0
    context: int = 0
    context_conv: bool = False
    causal: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        if self.n_mels < 1:
            raise ValueError(f"n_mels must be at least 1, got {self.n_mels}")
        if any(s < 1 for s in self.scales):
            raise ValueError(f"scales must be positive integers, got {self.scales}")
        if math.prod(self.scales) > 2**24:
            raise ValueError(f"scales must have a product of at most 2^24, got {math.prod(self.scales)}")
        if self.freq_kernel < 1 or self.freq_kernel % 2 == 0:
            raise ValueError(f"freq_kernel must be odd, got {self.freq_kernel}")
        if self.context < 0:
            raise ValueError(f"context must not be negative, got {self.context}")

    @property
    def columns_per_frame(self) -> int:
        return math.prod(self.scales)

    @property
    def reach(self) -> int:
        """Frames on each side of a frame that its columns depend on; causal stages read those before it alone."""
        rate, reach = 1, 0.0
        for scale in self.scales:
            reach += (1 + self.causal) / rate
            rate *= scale
        return self.context + math.ceil(reach)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpsampleWeights:
    """``phases``: (K, 3, s) per stage; ``bias``: one scalar per stage; ``context``: (n_mels, n_mels, 2 context + 1)."""

    phases: Sequence[Tensor]
    bias: Sequence[Tensor]
    context: Tensor | None = None


def transposed_phases(weight: Tensor, scale: int) -> Tensor:
    """Polyphase form of ConvTranspose2d(1, 1, (K, 2 s), stride (1, s), padding ((K - 1) / 2, s // 2)).

    Its output column t = q s + r gets input q + o through kernel column r + s // 2 - o s.
    An odd s makes one column more than q s; it is dropped. weight: (K, 2 s) -> (K, 3, s).
    """
    kernel = weight.flip(0)  # a transposed convolution runs over the bands backwards
    phases = weight.new_zeros(len(weight), 3, scale)
    for offset in (-1, 0, 1):
        columns = torch.arange(scale) + scale // 2 - offset * scale
        inside = (columns >= 0) & (columns < 2 * scale)
        phases[:, offset + 1, inside] = kernel[:, columns[inside]]
    return phases


def stretched_phases(weight: Tensor, scale: int) -> Tensor:
    """Polyphase form of a repetition by s, then Conv2d(1, 1, (K, 2 s + 1), padding ((K - 1) / 2, s)).

    Tap j of output column q s + r falls on the copy of input q + (r + j - s) // s. weight: (K, 2 s + 1) -> (K, 3, s).
    A causal convolution, of padding 2 s to the left alone, has the same phases on inputs one column earlier.
    """
    phases = weight.new_zeros(len(weight), 3, scale)
    for r in range(scale):
        for j in range(2 * scale + 1):
            phases[:, (r + j - scale) // scale + 1, r] += weight[:, j]
    return phases


def upsample_ref(
    mel: Tensor,
    weights: UpsampleWeights,
    spec: UpsampleSpec,
    *,
    skip: int = 0,
    frames: int | None = None,
) -> Tensor:
    """The op in plain PyTorch, in the dtype of its inputs.

    Args:
        mel: (batch, n_mels, n), the context frames included.
        skip, frames: which of the n - 2 context frames to make columns of: ``frames`` of them (all that follow, where
            None) behind the first ``skip``; the others serve as their neighbours.

    Returns:
        (batch, n_mels, frames * prod(scales)).
    """
    if weights.context is not None:
        mel = F.conv1d(mel, weights.context)
    for phases, bias, scale in zip(weights.phases, weights.bias, spec.scales, strict=True):
        batch, bands, columns = mel.shape
        padded = F.pad(mel[:, None], (2, 0) if spec.causal else (1, 1))
        # (batch, s, bands, columns): one output channel per phase
        stage = F.conv2d(
            padded, phases.permute(2, 0, 1)[:, None], bias.expand(scale), padding=(spec.freq_kernel // 2, 0)
        )
        mel = F.leaky_relu(stage.permute(0, 2, 3, 1).reshape(batch, bands, columns * scale), spec.slope)
    first = skip if spec.context_conv else skip + spec.context
    rate = spec.columns_per_frame
    if frames is None:
        frames = mel.shape[-1] // rate - first - (0 if spec.context_conv else spec.context)
    return mel[..., first * rate : (first + frames) * rate]


def upsample(
    mel: Tensor, weights: Tensor, spec: UpsampleSpec, *, skip: int = 0, frames: int | None = None, threads: int = 1
) -> Tensor:
    """The op on the kernels, float32; arguments as in upsample_ref, but for these.

    Args:
        weights: one flat tensor, from fastwave.pack.pack_upsample.
        threads: rows of the batch run on up to so many threads.

    Raises:
        ValueError: a tensor of another shape, dtype, device or layout; the message names it.
    """
    require_all_cpu({"mel": mel, "weights": weights})
    if frames is None:
        frames = max(0, mel.shape[-1] - 2 * spec.context - skip)
    return torch.ops.fastwave.upsample(mel, weights, skip=skip, frames=frames, threads=threads, **arguments(spec))


def _upsample(mel, weights, *, skip, frames, threads, **spec):
    out = _empty_output(mel, frames, spec)
    _cpu.upsample(spec, mel=capsule(mel), weights=capsule(weights), out=capsule(out), skip=skip, threads=threads)
    return out


def _fake_upsample(mel, weights, *, skip, frames, threads, **spec):
    return _empty_output(mel, frames, spec)


define(
    "upsample",
    f"(Tensor mel, Tensor weights, *, int skip, int frames, int threads, {argument_schema(UpsampleSpec)}) -> Tensor",
    cpu=_upsample,
    fake=_fake_upsample,
)


def _empty_output(mel: Tensor, frames: int, spec: dict) -> Tensor:
    if mel.dim() != 3:
        raise ValueError(f"mel must be (batch, {spec['n_mels']}, frames), got {tuple(mel.shape)}")
    if not 0 <= frames <= mel.shape[2]:
        raise ValueError(f"frames must be between 0 and {mel.shape[2]}, got {frames}")
    return mel.new_empty(mel.shape[0], spec["n_mels"], frames * math.prod(spec["scales"]))
