"""Mel frames to what a model's stacks read of them, frame by frame as they come, with the bits of the whole mel.

A conditioner makes, of some frames, the columns of one tensor or of several, (batch, channels, columns): ``rates`` of
them to a frame. For that it reads the frames as far as ``behind`` before them and ``ahead`` after them. It makes
``grid`` frames at a time. A stage reads ``margin`` columns of the first tensor on either side of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastwave import models
from fastwave.layers import Upsampler
from fastwave.models.base import Stage, as_it_is
from fastwave.ops.upsample import UpsampleSpec, UpsampleWeights, upsample
from fastwave.pack import pack_upsample

__all__ = ["Conditioner", "FrameConditioner", "TorchConditioner", "commutes", "make_conditioner"]


class Conditioner:
    """The model's upsampler, on its kernel."""

    grid, margin = 1, 0

    def __init__(self, model: models.Model):
        self.spec, self.rates = model.upsampler.spec, [model.condition_rate]
        self.weights = pack_upsample(model.upsampler.weights())
        self.behind, self.ahead = model.condition_reach

    def columns(self, mel: Tensor, first: int, end: int, start: int, threads: int) -> list[Tensor]:
        """Columns of frames [start, end) from mel, whose frame 0 is frame ``first`` of the utterance.

        ``mel`` holds the frames that it reads, as far as the utterance has any; its edges are the utterance's where it
        has no more. Context that the upsampler eats is replicated there.
        """
        return [_upsample(mel, self.weights, self.spec, start - first, end - first, threads)]


def _upsample(mel: Tensor, weights: Tensor, spec: UpsampleSpec, start: int, end: int, threads: int) -> Tensor:
    """Columns of frames [start, end) of mel, whose edges are replicated where the upsampler eats context."""
    if spec.context:
        mel = nn.functional.pad(mel, (spec.context,) * 2, "replicate")
    return upsample(mel, weights, spec, skip=start, frames=max(0, end - start), threads=threads)


class TorchConditioner:
    """The conditioning of a model that does it in torch, as all do on a CUDA device.

    There the bits of a column may depend on how many are made at once, so it is always the same number of frames, but
    at the end of an utterance.
    """

    grid, margin = 8, 0

    def __init__(self, model: models.Model):
        self.model, self.rates = model, [model.condition_rate]
        self.behind, self.ahead = model.condition_reach

    def columns(self, mel: Tensor, first: int, end: int, start: int, threads: int) -> list[Tensor]:
        """See Conditioner.columns."""
        rate, parts = self.model.condition_rate, []
        mel = mel.to(next(self.model.parameters()).device)
        for at in range(start, end, self.grid):
            stop = min(at + self.grid, end)
            left = max(first, at - self.behind)
            columns = self.model.condition(mel[..., left - first : stop + self.ahead - first])
            parts.append(columns[..., (at - left) * rate : (stop - left) * rate])
        return [torch.cat(parts, 2)]


def commutes(model: models.ParallelModel, stages: Sequence[Stage]) -> bool:
    """Whether interpolating what the stages project of a frame gives what they project of an interpolated frame.

    So it is with an upsampler that is linear and treats every band alike.
    """
    upsampler = model.upsampler
    return (
        isinstance(upsampler, Upsampler)
        and upsampler.spec.slope == 1.0
        and upsampler.spec.freq_kernel == 1
        and not any(upsampler.weights().bias)
        and all(stage.condition is as_it_is and stage.group == 1 and not stage.reverse for stage in stages)
    )


class FrameConditioner:
    """Frames themselves, behind the convolution that eats their context, and how columns are interpolated from them.

    The second tensor has a channel for each of ``taps`` frames around a column's own: how much of it the upsampler puts
    into the column. It is what it makes of impulses.
    """

    grid = 1

    def __init__(self, model: models.ParallelModel):
        spec, weights = model.upsampler.spec, model.upsampler.weights()
        self.frame_spec = dataclasses.replace(spec, scales=())
        self.frame_weights = pack_upsample(UpsampleWeights(phases=[], bias=[], context=weights.context))
        alone = dataclasses.replace(spec, context=0, context_conv=False)
        self.margin = alone.reach
        self.taps = 2 * self.margin + 1
        self.spec = dataclasses.replace(alone, n_mels=self.taps)
        self.weights = pack_upsample(dataclasses.replace(weights, context=None))
        self.repeat = model.config.mel.hop_length // model.condition_rate
        self.rates = [1, model.config.mel.hop_length]
        self.early = 0 if spec.causal else self.margin  # frames that are made before those that they are a margin of
        self.behind, self.ahead = spec.context + self.margin, 0 if spec.causal else spec.context + self.margin

    def columns(self, mel: Tensor, first: int, end: int, start: int, threads: int) -> list[Tensor]:
        """See Conditioner.columns."""
        known = first + mel.shape[2]
        high = min(end + self.early, known)
        low = min(start + self.early, high) if start else 0
        frames = _upsample(mel, self.frame_weights, self.frame_spec, low - first, high - first, threads)
        return [frames, self.interpolation(first, known, start, end, threads).expand(len(mel), -1, -1)]

    def interpolation(self, first: int, known: int, start: int, end: int, threads: int) -> Tensor:
        """(1, taps, columns of frames [start, end)); as many bands as taps, since a column sees one impulse of each."""
        low, high = max(first, start - self.margin), min(end + self.margin, known)
        impulses = torch.zeros(1, self.taps, high - low)
        impulses[0, torch.arange(low, high) % self.taps, torch.arange(high - low)] = 1
        columns = _upsample(impulses, self.weights, self.spec, start - low, end - low, threads)[0]
        frames = torch.arange(start, end)
        band = (frames + torch.arange(-self.margin, self.margin + 1)[:, None]) % self.taps  # of each tap and frame
        taps = columns.unflatten(1, (end - start, -1))[band, torch.arange(end - start)]  # (taps, frames, rate)
        return taps.flatten(1).repeat_interleave(self.repeat, 1)[None]


def make_conditioner(model: models.Model) -> Conditioner | TorchConditioner:
    """The conditioner of a model whose stages read its conditioning as it is."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    return Conditioner(model) if on_cpu and isinstance(model.upsampler, Upsampler) else TorchConditioner(model)
