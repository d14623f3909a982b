"""What runs a model on the kernels, block by block: its conditioning, and its stacks.

A runner's ``start`` gives a function that takes the blocks of one batch of utterances in turn, their noise and
conditioning, and returns the samples that they add; a model that looks ahead adds them late.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastwave import models
from fastwave.ops.gated_stack import gated_stack, initial_state
from fastwave.ops.upsample import upsample
from fastwave.ops.wavenet_sample import initial_sampler_state, wavenet_sample
from fastwave.pack import pack_gated_stack, pack_upsample
from fastwave.threads import choose_threads

__all__ = ["Autoregressive", "Conditioner", "Parallel", "TorchConditioner"]


class Autoregressive:
    """Runs a WaveNet on wavenet_sample, block by block."""

    streams, look_ahead = True, 0

    def __init__(self, model: models.WaveNet, dtype: str):
        self.model, self.head = model, model.config.head_spec()
        self.spec = dataclasses.replace(model.stack.spec, dtype=dtype)
        self.weights = pack_gated_stack(model.stack.weights(), self.spec)
        softmax = model.config.distribution == "softmax"
        self.table = model.distribution.decode_table() if softmax else None

    def threads(self, threads: int | None, batch: int) -> int:
        return choose_threads(threads, batch, self.spec, sampling=True)

    def start(self, batch: int, threads: int | None, speaker: Tensor | None) -> Callable[..., Tensor]:
        state = initial_sampler_state(self.spec, batch, self.model.first_input().detach())
        g, at = self.model.global_vectors(speaker), 0

        def run(noise: Tensor, c: Tensor, lengths: Tensor | None, temperature: float, last: bool) -> Tensor:
            nonlocal at
            start, at = at, at + noise.shape[2]
            samples, _ = wavenet_sample(
                noise,
                self.weights,
                self.spec,
                self.head,
                state=state,
                c=c,
                g=g,
                table=self.table,
                temperature=temperature,
                lengths=None if lengths is None else (lengths - start).clamp(0, at - start),
                threads=self.threads(threads, batch),
            )
            return samples

        return run


class Parallel:
    """Runs a parallel model's stages on gated_stack; one that turns time around sees the whole utterance at once."""

    def __init__(self, model: models.ParallelModel, dtype: str):
        self.model, self.stages = model, model.stages()
        self.specs = [dataclasses.replace(stage.stack.spec, dtype=dtype) for stage in self.stages]
        packed = {}
        for stage, spec in zip(self.stages, self.specs, strict=True):
            if stage.stack not in packed:
                packed[stage.stack] = pack_gated_stack(stage.stack.weights(), spec)
        self.weights = [packed[stage.stack] for stage in self.stages]
        self.streams = not any(stage.reverse for stage in self.stages)
        self.look_ahead = sum(
            spec.look_ahead * stage.group for stage, spec in zip(self.stages, self.specs, strict=True)
        )

    def threads(self, threads: int | None, batch: int) -> int:
        return max(choose_threads(threads, batch, spec, sampling=False) for spec in self.specs)

    def start(self, batch: int, threads: int | None, speaker: Tensor | None) -> Callable[..., Tensor]:
        if speaker is not None:
            raise ValueError("speaker must be None: this model has no global conditioning")
        columns = _Columns()
        lanes = [_Lane(self, i, batch, threads, columns) for i in range(len(self.stages))]

        def run(noise: Tensor, c: Tensor, lengths: Tensor | None, temperature: float, last: bool) -> Tensor:
            columns.append(c)
            wave = self.model.synthesize(
                noise * temperature, lambda i, x, *others, y=None: lanes[i].run(x, others, y, lengths, last)
            )[:, 0]
            columns.forget(min(lane.needs for lane in lanes))
            return wave

        return run


class _Columns:
    """The conditioning columns of an utterance that some stage still has to read."""

    def __init__(self) -> None:
        self.first, self.columns = 0, None

    def append(self, columns: Tensor) -> None:
        self.columns = columns if self.columns is None else torch.cat([self.columns, columns], 2)

    def forget(self, before: int) -> None:
        self.columns, self.first = self.columns[..., before - self.first :], before

    def __getitem__(self, columns: slice) -> Tensor:
        return self.columns[..., columns.start - self.first : columns.stop - self.first]


class _Lane:
    """One stage of an utterance: what it carries from block to block.

    A stage that looks ahead makes its output later than it takes x. What belongs to x waits here so long.
    """

    def __init__(self, runner: Parallel, i: int, batch: int, threads: int | None, columns: _Columns):
        self.stage, self.spec, self.weights, self.columns = (
            runner.stages[i],
            runner.specs[i],
            runner.weights[i],
            columns,
        )
        self.threads = choose_threads(threads, batch, self.spec, sampling=False)
        self.state = initial_state(self.spec, batch) if runner.streams else None
        self.taken, self.waiting, self.held = 0, None, None
        config = runner.model.config.mel
        # conditioning columns to one of the stage's
        self.rate = self.spec.cond_repeat * self.stage.group * runner.model.condition_rate // config.hop_length
        after = runner.specs[i + 1].cond_repeat if i + 1 < len(runner.specs) else 1
        self.grain = after if self.spec.look_ahead % after else 1  # the next stage's columns of c must not be cut

    @property
    def needs(self) -> int:
        """The first conditioning column that the stage has still to read."""
        return max(0, self.taken - self.spec.look_ahead) // self.spec.cond_repeat * self.rate

    def run(
        self, x: Tensor, others: Sequence[Tensor], y: Tensor | None, lengths: Tensor | None, last: bool
    ) -> tuple[Tensor, ...]:
        """See fastwave.models.base.Run."""
        stage, spec, repeat = self.stage, self.spec, self.spec.cond_repeat
        pending, first = min(self.taken, spec.look_ahead), max(0, self.taken - spec.look_ahead)
        self.taken += x.shape[2]
        end = self.taken
        made = max(first, end if last else end - spec.look_ahead) - first
        (*aligned,) = self._wait([x, *others] if y is None else [x, *others, y], made)
        y = None if y is None else aligned.pop()
        c = None
        if stage.condition is not None:
            c = stage.condition(self.columns[first // repeat * self.rate : -(-end // repeat) * self.rate])
        if lengths is not None:
            lengths = (lengths // stage.group - first).clamp(0, end - first)
        out = gated_stack(
            x,
            self.weights,
            spec,
            c=c,
            u=None if stage.u is None else stage.u.expand(len(x), -1, -1),
            y=y,
            lengths=lengths,
            reverse=stage.reverse,
            state=self.state,
            pending=pending,
            last=last,
            threads=self.threads,
        )
        return self._hold([out, *aligned], last)

    def _wait(self, tensors: list[Tensor], made: int) -> list[Tensor]:
        """The first ``made`` columns of what waits and of ``tensors`` behind it; the others wait."""
        if self.spec.look_ahead == 0:
            return tensors
        if self.waiting is not None:
            tensors = [torch.cat(pair, 2) for pair in zip(self.waiting, tensors, strict=True)]
        self.waiting = [tensor[..., made:] for tensor in tensors]
        return [tensor[..., :made] for tensor in tensors]

    def _hold(self, tensors: list[Tensor], last: bool) -> tuple[Tensor, ...]:
        """As many columns as the next stage takes; it takes ``grain`` at a time."""
        if self.grain == 1:
            return tuple(tensors)
        if self.held is not None:
            tensors = [torch.cat(pair, 2) for pair in zip(self.held, tensors, strict=True)]
        columns = tensors[0].shape[2]
        ready = columns if last else columns // self.grain * self.grain
        self.held = [tensor[..., ready:] for tensor in tensors]
        return tuple(tensor[..., :ready] for tensor in tensors)


class Conditioner:
    """Turns mel frames into conditioning columns as they come, with the bits that the whole mel would give."""

    grid = 1  # frames that it takes at a time

    def __init__(self, model: models.Model):
        self.spec = model.upsampler.spec
        self.weights = pack_upsample(model.upsampler.weights())
        self.ahead = self.spec.reach  # frames after a frame that its columns depend on

    def columns(self, mel: Tensor, first: int, end: int, start: int, threads: int) -> Tensor:
        """Columns of frames [start, end) from mel, whose frame 0 is frame ``first`` of the utterance.

        ``mel`` holds the frames within reach, as far as the utterance has any; its edges are the utterance's where it
        has no more. Context that the upsampler eats is replicated there.
        """
        context = self.spec.context
        if context:
            mel = torch.nn.functional.pad(mel, (context, context), "replicate")
        return upsample(mel, self.weights, self.spec, skip=start - first, frames=end - start, threads=threads)


class TorchConditioner:
    """The same for a model whose ``condition`` is torch's alone.

    There the bits of a column may depend on how many are made at once, so it is always the same number of frames, but
    at the end of an utterance.
    """

    grid = 8

    def __init__(self, model: models.Model):
        self.model, self.ahead = model, model.condition_reach

    def columns(self, mel: Tensor, first: int, end: int, start: int, threads: int) -> Tensor:
        rate, parts = self.model.condition_rate, []
        for at in range(start, end, self.grid):
            stop = min(at + self.grid, end)
            left = max(first, at - self.ahead)
            columns = self.model.condition(mel[..., left - first : stop + self.ahead - first])
            parts.append(columns[..., (at - left) * rate : (stop - left) * rate])
        return torch.cat(parts, 2)
