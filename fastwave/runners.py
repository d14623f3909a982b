"""What runs a model's stacks on the kernels, block by block.

A runner's ``start`` gives a function that takes the blocks of one batch of utterances in turn: their noise, their mel,
what makes columns of that with the runner's ``conditioner``. It returns the samples that they add; a model that looks
ahead adds them late.

The model, and all that is done, is on the runner's ``device``; noise comes from the CPU, and samples go there.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastwave import models
from fastwave.conditioners import FrameConditioner, commutes, make_conditioner
from fastwave.graphs import Graphs
from fastwave.ops.gated_stack import gated_stack, initial_state
from fastwave.ops.project import project
from fastwave.ops.wavenet_sample import has_own_kernel, initial_sampler_state, wavenet_sample
from fastwave.pack import pack_gated_stack
from fastwave.threads import choose_threads

__all__ = ["Autoregressive", "Parallel"]

Condition = Callable[[Tensor], list[Tensor]]  # the conditioner's columns of a block's mel; no tensor where it adds none
BLOCK_FRAMES = 32  # that generate() hands to a runner at once: enough to hide the cost of a call


class Autoregressive:
    """Runs a WaveNet on wavenet_sample, block by block."""

    streams, look_ahead, block_frames = True, 0, BLOCK_FRAMES

    def __init__(self, model: models.WaveNet, dtype: str, device: torch.device):
        self.model, self.head, self.device = model, model.config.head_spec(), device
        self.conditioner = make_conditioner(model)
        self.spec = dataclasses.replace(model.stack.spec, dtype=dtype)
        self.weights = pack_gated_stack(model.stack.weights(), self.spec)
        softmax = model.config.distribution == "softmax"
        self.table = model.distribution.decode_table().to(device) if softmax else None
        if device.type == "cuda" and not has_own_kernel(self.spec, device):
            sizes = f"{self.spec.residual_channels} residual and {self.spec.gate_channels} gate channels"
            warnings.warn(f"{device} has no kernel for {sizes}: the general one runs, which is slower", stacklevel=3)

    def threads(self, threads: int | None, batch: int) -> int:
        return choose_threads(threads, batch, self.spec, sampling=True)

    def start(self, batch: int, threads: int | None, speaker: Tensor | None) -> Callable[..., Tensor]:
        device = self.device
        state = initial_sampler_state(self.spec, batch, self.model.first_input().detach().to(device), device=device)
        g, at = self.model.global_vectors(None if speaker is None else speaker.to(device)), 0

        def run(
            noise: Tensor, mel: Tensor, condition: Condition, lengths: Tensor | None, temperature: float, last: bool
        ) -> Tensor:
            nonlocal at
            if noise.shape[2] == 0:
                return noise[:, 0]
            start, at = at, at + noise.shape[2]
            samples, _ = wavenet_sample(
                noise.to(device),
                self.weights,
                self.spec,
                self.head,
                state=state,
                c=condition(mel)[0],
                g=g,
                table=self.table,
                temperature=temperature,
                lengths=None if lengths is None else (lengths - start).clamp(0, at - start).to(device),
                threads=self.threads(threads, batch),
            )
            return samples.cpu()

        return run


PARALLEL_FRAMES = 128  # likewise: of each block the edges are conditioned twice, and a stage's last chunk is not full
CHUNK = 96  # columns that gated_stack takes through a layer at once
CUDA_BLOCK = 2**17  # samples of a row that generate() hands to a CUDA device at once: some for each multiprocessor
GRAPH_SAMPLES = 2**18  # of all rows together, for which CUDA graphs are made: more are not bound by launches
PROJECTED_BYTES = 3 * 2**30  # of projected conditioning that may wait for later stages, of all rows together
PROJECTED_BLOCK = 2**27  # likewise, that a block may add to a row's
PROJECTED_COLUMNS = 4 * CHUNK  # that are made at once: they are still in a cache when they join those that wait


class Parallel:
    """Runs a parallel model's stages on gated_stack; one that turns time around sees the whole utterance at once.

    On a CUDA device an utterance that is one block is one CUDA graph, conditioner included where rows are not ragged.
    """

    def __init__(self, model: models.ParallelModel, dtype: str, device: torch.device):
        on_cpu = device.type == "cpu"
        self.model, self.stages, self.device = model, model.stages(), device
        self.specs = [dataclasses.replace(stage.stack.spec, dtype=dtype) for stage in self.stages]
        if on_cpu and commutes(model, self.stages):
            self.conditioner = FrameConditioner(model)
            frame = dict(cond_repeat=model.config.mel.hop_length, cond_taps=self.conditioner.taps)
            self.specs = [dataclasses.replace(spec, **frame) for spec in self.specs]
        else:
            self.conditioner = make_conditioner(model)
        packed = {}
        for stage, spec in zip(self.stages, self.specs, strict=True):
            if stage.stack not in packed:
                packed[stage.stack] = pack_gated_stack(stage.stack.weights(), spec)
        self.weights = [packed[stage.stack] for stage in self.stages]
        self.graphs = None if on_cpu else Graphs()
        self.streams = not any(stage.reverse for stage in self.stages)
        self.look_ahead = sum(
            spec.look_ahead * stage.group for stage, spec in zip(self.stages, self.specs, strict=True)
        )
        # so many that the stage with the fewest columns too makes a chunk of them with each reading of its weights
        widest = max(stage.group for stage in self.stages)
        hop = model.config.mel.hop_length
        self.block_frames = max(PARALLEL_FRAMES, (CHUNK * widest if on_cpu else CUDA_BLOCK) // hop)
        for first in set(self.shared(batch=1).values()):
            fit = PROJECTED_BLOCK // self._projected_bytes(first, hop)
            self.block_frames = max(BLOCK_FRAMES, min(self.block_frames, fit))

    def shared(self, batch: int) -> dict[int, int]:
        """Stages whose stack reads what that of another stage reads, and the first of these.

        What such a stack projects of the conditioning is the same each time, and is made once, where the projections of
        all rows that wait for the last stage fit.
        """
        if self.device.type != "cpu":
            return {}
        stages_of = defaultdict(list)
        for i, stage in enumerate(self.stages):
            if stage.condition is not None and self.specs[i].cond_taps == 1:
                stages_of[stage.stack, stage.condition].append(i)
        return {
            i: stages[0]
            for stages in stages_of.values()
            if len(stages) > 1 and batch * self._projected_bytes(stages[0], self.look_ahead) <= PROJECTED_BYTES
            for i in stages
        }

    def _projected_bytes(self, stage: int, samples: int) -> int:
        spec = self.specs[stage]
        return 8 * spec.layers * spec.gate_channels * (samples // (self.stages[stage].group * spec.cond_repeat))

    def waiting(self, stage: int) -> int:
        """Columns of projected conditioning that wait for later stages, at the most."""
        samples = self.look_ahead + self.block_frames * self.model.config.mel.hop_length
        return samples // (self.stages[stage].group * self.specs[stage].cond_repeat)

    def threads(self, threads: int | None, batch: int) -> int:
        return max(choose_threads(threads, batch, spec, sampling=False) for spec in self.specs)

    def start(self, batch: int, threads: int | None, speaker: Tensor | None) -> Callable[..., Tensor]:
        if speaker is not None:
            raise ValueError("speaker must be None: this model has no global conditioning")
        utterances = None

        def run(
            noise: Tensor, mel: Tensor, condition: Condition, lengths: Tensor | None, temperature: float, last: bool
        ) -> Tensor:
            nonlocal utterances
            noise = noise.to(self.device) * temperature
            lengths = None if lengths is None else lengths.to(self.device)
            samples = batch * mel.shape[2] * self.model.config.mel.hop_length
            if self.graphs is not None and utterances is None and last and samples <= GRAPH_SAMPLES:
                return self._run_graph(noise, mel, condition, lengths)
            if utterances is None:
                utterances = _Utterances(self, batch, threads)
            return utterances.run(noise, condition(mel), lengths, last).cpu()

        return run

    def _run_graph(self, noise: Tensor, mel: Tensor, condition: Condition, lengths: Tensor | None) -> Tensor:
        """All samples of utterances that are there from end to end."""

        def make(noise: Tensor, lengths: Tensor | None, mel: Tensor | None, *c: Tensor) -> Tensor:
            c = c if mel is None else condition(mel)
            return _Utterances(self, len(noise), None).run(noise, c, lengths, last=True)

        if lengths is None:
            return self.graphs(make, noise, None, mel.to(self.device))
        return self.graphs(make, noise, lengths, None, *condition(mel))  # each row up to its end, of any length


class _Utterances:
    """A batch of utterances: what its stages carry from block to block."""

    def __init__(self, runner: Parallel, batch: int, threads: int | None):
        self.runner, self.conditioning = runner, [_Columns() for _ in runner.conditioner.rates]
        self.lanes = [_Lane(runner, i, batch, threads, self.conditioning) for i in range(len(runner.stages))]
        self.shared = runner.shared(batch)
        for i, first in self.shared.items():
            self.lanes[i].projected = self.lanes[first].projected or _Columns(runner.waiting(first))

    def run(self, noise: Tensor, c: Sequence[Tensor], lengths: Tensor | None, last: bool) -> Tensor:
        """The samples that a block adds, on the runner's device."""
        runner, lanes = self.runner, self.lanes
        for columns, new in zip(self.conditioning if c else (), c, strict=True):
            columns.append(new)
        for first in set(self.shared.values()) if c else ():
            lanes[first].project(c[0])
        wave = runner.model.synthesize(noise, lambda i, x, *others, y=None: lanes[i].run(x, others, y, lengths, last))
        sample = min(lane.first * lane.stage.group for lane in lanes)
        for columns, rate in zip(self.conditioning, runner.conditioner.rates, strict=True):
            columns.forget(sample * rate // runner.model.config.mel.hop_length - runner.conditioner.margin)
        for first in set(self.shared.values()):
            stage, spec = runner.stages[first], runner.specs[first]
            lanes[first].projected.forget(sample // (stage.group * spec.cond_repeat))
        return wave[:, 0]


class _Columns:
    """What some stage still has to read of the columns of an utterance; around the utterance there are zeros.

    The first stay in the tensor that they come in. Then all stand in one with half as much room again as they need, and
    move to its front when they have reached its end. Time is its third dimension.
    """

    def __init__(self, most: int = 0) -> None:
        """most: columns that will be kept at a time, where that is known: there is room for them at once."""
        self.most, self.room = most, 0
        self.first = 0  # the first column that is kept
        self.store, self.start, self.count = None, 0, 0  # where it stands, and how many there are

    @property
    def columns(self) -> Tensor:
        return self.store.narrow(2, self.start, self.count)

    def append(self, columns: Tensor) -> None:
        count = columns.shape[2]
        if self.store is None and self.most <= count:
            self.store = columns
        else:
            self._make_room(columns)
            self.store.narrow(2, self.start + self.count, count).copy_(columns)
        self.count += count

    def _make_room(self, columns: Tensor) -> None:
        count = self.count + columns.shape[2]
        if self.start + count <= self.room:
            return
        if 3 * count <= 2 * self.room:
            for at in range(0, self.count, self.start):  # a piece must not overlap the place that it is copied to
                end = min(at + self.start, self.count)
                self.store[:, :, at:end] = self.columns[:, :, at:end]
        else:
            self.room = 3 * max(count, self.most) // 2
            store = columns.new_empty(*columns.shape[:2], self.room, *columns.shape[3:])
            if self.count:
                store[:, :, : self.count] = self.columns
            self.store = store
        self.start = 0

    def forget(self, before: int) -> None:
        """Columns before this one will not be read any more."""
        passed = max(0, before - self.first)
        self.first, self.start, self.count = self.first + passed, self.start + passed, self.count - passed

    def window(self, start: int, end: int) -> Tensor:
        """Columns [start, end)."""
        start, end = start - self.first, end - self.first
        low, high = max(0, start), min(end, self.count)
        inside = self.columns.narrow(2, low, high - low)
        around = (0, 0) * (inside.dim() - 3) + (low - start, end - high)
        return nn.functional.pad(inside, around) if any(around) else inside


class _Lane:
    """One stage of an utterance: what it carries from block to block.

    A stage that looks ahead makes its output later than it takes x. What belongs to x waits here so long.
    """

    def __init__(self, runner: Parallel, i: int, batch: int, threads: int | None, conditioning: list[_Columns]):
        self.stage, self.spec, self.weights = runner.stages[i], runner.specs[i], runner.weights[i]
        self.conditioning = conditioning
        self.threads = choose_threads(threads, batch, self.spec, sampling=False)
        self.taken, self.state, self.waiting, self.held, self.projected = 0, None, None, None, None
        # columns that the conditioner makes to one that the stage reads
        hop_length = runner.model.config.mel.hop_length
        self.rate = self.spec.cond_repeat * self.stage.group * runner.conditioner.rates[0] // hop_length
        after = runner.specs[i + 1].cond_repeat if i + 1 < len(runner.specs) else 1
        self.grain = after if self.spec.look_ahead % after else 1  # the next stage's columns of c must not be cut

    @property
    def first(self) -> int:
        """The first column that the stage has not made."""
        return max(0, self.taken - self.spec.look_ahead)

    def run(
        self, x: Tensor, others: Sequence[Tensor], y: Tensor | None, lengths: Tensor | None, last: bool
    ) -> tuple[Tensor, ...]:
        """See fastwave.models.base.Run."""
        stage, spec, first = self.stage, self.spec, self.first
        pending = self.taken - first
        if self.state is None and not last:  # an utterance of one block carries nothing
            self.state = initial_state(spec, len(x), device=x.device)
        self.taken += x.shape[2]
        end = self.taken
        made = max(first, end if last else end - spec.look_ahead) - first
        (*aligned,) = self._wait([x, *others] if y is None else [x, *others, y], made)
        y = None if y is None else aligned.pop()
        c = projected = interpolation = None
        start, stop, margin = first // spec.cond_repeat, -(-end // spec.cond_repeat), spec.cond_taps // 2
        if self.projected is not None:
            projected = self.projected.window(start, stop)
        elif stage.condition is not None:
            columns = self.conditioning[0].window((start - margin) * self.rate, (stop + margin) * self.rate)
            c = stage.condition(columns)
        if spec.cond_taps > 1:
            interpolation = self.conditioning[1].window(first, end).transpose(1, 2)
        if lengths is not None:
            lengths = (lengths // stage.group - first).clamp(0, end - first)
        out = gated_stack(
            x,
            self.weights,
            spec,
            c=c,
            projected=projected,
            u=None if stage.u is None else stage.u.expand(len(x), -1, -1),
            y=y,
            interpolation=interpolation,
            lengths=lengths,
            reverse=stage.reverse,
            state=self.state,
            pending=pending,
            last=last,
            threads=self.threads,
        )
        return self._hold([out, *aligned], last)

    def project(self, conditioning: Tensor) -> None:
        """Takes what comes of the conditioning, for all stages that share this one's stack and conditioning."""
        for c in self.stage.condition(conditioning).split(PROJECTED_COLUMNS, 2):
            self.projected.append(project(c.contiguous(), self.weights, self.spec, threads=self.threads))

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
