"""One training loop for every model.

What it minimises, and with what, an Objective says: a model's own ``loss(wave, mel)`` under Adam, where none says
otherwise. Gradients are clipped by their global norm. The learning rate rises linearly, then falls along half a cosine
(Training), or is halved at fixed steps (HalvingTraining). A run is a function of its options: batches are keyed by
(seed, step), and torch's random numbers by those and the micro-batch, so that a run that was stopped and resumed ends
in the same weights, bit for bit, as one that was not (on a CPU).

A batch is split into micro-batches, over processes (fastwave.train.processes) and, in each, over time (``accumulate``).
How many there are makes a run, not which process has them.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
import pickle
import re
import signal
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from fastwave import checkpoint, models
from fastwave.models import Model
from fastwave.train import processes
from fastwave.train.board import Board
from fastwave.train.data import Batches, Clip, Dataset, Segments, find_clips, select, standardized
from fastwave.vocoder import find_voice

__all__ = ["HalvingTraining", "Learner", "Objective", "Training", "TrainingOptions", "fit", "run"]

CHECKPOINT, LOG, MODEL, BOARD = "checkpoint.pt", "log.jsonl", "model", "tensorboard"
VALIDATION_SEGMENTS = 4  # of each validation clip


@dataclasses.dataclass(frozen=True)
class Learner:
    """A module, the optimiser that updates it, and the largest global norm of its gradient."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    clip_norm: float


class Objective:
    """What a run minimises: here the model's own loss.

    One with a discriminator adds learners; the checkpoint holds them all. Nothing else that changes may be kept here,
    or a resumed run would differ. Where a loss leaves parameters of the learners untouched,
    ``find_unused_parameters`` tells torch.nn.parallel.DistributedDataParallel to look which.
    """

    find_unused_parameters: ClassVar[bool] = False

    def __init__(self, model: Model, training: TrainingOptions):
        self.model, self.training = model, training
        adam = torch.optim.Adam(model.parameters(), lr=training.learning_rate)
        self.learners = {"model": Learner(model, adam, training.clip_norm)}

    def losses(self, wave: Tensor, mel: Tensor, step: int) -> Iterator[tuple[str, Tensor]]:
        """Names of learners and their losses; each learner is updated before the next loss is asked for.

        Where a batch is split, its micro-batches' losses are asked for in turn: the first of each, then the second.
        """
        yield "model", self.model.loss(wave, mel)

    def learning_rate(self, name: str, step: int) -> float:
        """A learner's, of the update that follows ``step`` updates."""
        return self.training.rate(step)

    def initialize(self, wave: Tensor, mel: Tensor) -> None:
        """Sets what a model takes from data before its first step, whose whole batch this is."""

    def histograms(self, wave: Tensor, mel: Tensor) -> dict[str, Tensor]:
        """What TensorBoard shows the distribution of, by name."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions(abc.ABC):
    """Options of a training run, whatever its schedule.

    A subclass gives the ``model_class``, the ``preset`` configuration of its model, and maybe another ``objective``.

    Attributes:
        data: folder in LJ Speech's layout (metadata.csv), or any folder of WAV and FLAC files.
        out: folder of checkpoint.pt, log.jsonl and model/ (for fastwave.load); a run that is there is resumed.
        config: JSON file with the model's whole configuration, in place of the built-in one, whose mel is z-scored with
            the statistics of the training clips.
        start: name of a bundled voice, or a model's folder, whose weights the run starts with; and whose configuration
            is taken, where there is no ``config``.
        validation_clips: names of clips, or globs of them, that give the validation loss.
        exclude_clips: names of clips, or globs of them, that are left out: the test clips.
        min_sample_rate: train on no files below this rate, Hz.
        steps: updates of the whole run.
        minutes: stop after this time, with a checkpoint.
        interval: steps between checkpoints, each with a line of the log.
        batch: segments of a step, of all processes together.
        accumulate: micro-batches, one after another, that a process splits its share of the batch into.
        workers: processes that read clips and make their mels, ahead of each training process; it does so itself where
            there are none.
        frames: mel frames of a segment.
        learning_rate: at its highest.
        clip_norm: largest global norm of the gradient.
        ema: decay of an exponential moving average of the weights, such as 0.999: it is then what is validated, and
            saved in model/.
        precision: of matrix products; weights, their updates and validation are float32. bfloat16 is the faster one
            on GPUs, and on CPUs with AVX512_BF16 or AMX.
        seed: of the weights, the batches and the noise.
        device: "cpu", "cuda" or "cuda:N"; under torchrun "cuda" is a GPU for each process.
        threads: CPU threads; all of them where absent.
        tensorboard: also write tensorboard/ in ``out``.
    """

    data: Path
    out: Path
    config: Path | None = None
    start: str | None = None
    validation_clips: tuple[str, ...] = ()
    exclude_clips: tuple[str, ...] = ()
    min_sample_rate: int = 0
    steps: int = 100_000
    minutes: float | None = None
    interval: int = 500
    batch: int = 2
    accumulate: int = 1
    workers: int = 0
    frames: int = 32
    learning_rate: float
    clip_norm: float
    ema: float | None = None
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    tensorboard: bool = False

    model_class: ClassVar[type[Model]]
    preset: ClassVar
    objective: ClassVar[type[Objective]] = Objective

    @abc.abstractmethod
    def rate(self, step: int) -> float:
        """The learning rate of the update that follows ``step`` updates."""

    def model_config(self, clips: Sequence[Clip]):
        """That in the file ``config``, that of ``start``, or the preset with the statistics of ``clips``."""
        if self.config is None and self.start is not None:
            return self.first_model().config
        if self.config is None:
            return dataclasses.replace(self.preset, mel=standardized(self.preset.mel, clips))
        try:
            values = json.loads(self.config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"config must be a JSON file, got {str(self.config)!r}: {error}") from None
        return checkpoint.config_from_dict(self.model_class.config_class, values)

    def make_model(self, clips: Sequence[Clip]) -> Model:
        """What is trained, with the weights that the seed gives or those of ``start``."""
        config = self.model_config(clips)
        torch.manual_seed(self.seed)
        model = self.model_class(config)
        if self.start is not None:
            self.take_weights(model, self.first_model())
        return model

    def first_model(self) -> Model:
        """The model ``start``; ValueError where it is of another kind."""
        model = models.load(find_voice(self.start))
        if not isinstance(model, self.model_class):
            raise ValueError(f"start must be a {self.model_class.__name__}, got {self.start!r}")
        return model

    def take_weights(self, model: Model, start: Model) -> None:
        """ValueError where they do not fit."""
        try:
            model.load_state_dict(start.state_dict())
        except RuntimeError:
            raise ValueError(f"start must have the shape that config says, got {self.start!r}") from None

    def check(self) -> None:
        """ValueError for a number out of its range."""
        for name in ("steps", "interval", "batch", "accumulate", "frames", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("minutes", "learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name in ("min_sample_rate", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must be above 0 and below 1, got {self.ema}")
        if self.batch % (processes.size() * self.accumulate):
            split = f"{processes.size()} processes x accumulate {self.accumulate}"
            raise ValueError(f"batch must be a multiple of {split}, got {self.batch}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be from 0 to 2**31 - 1, got {self.seed}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(TrainingOptions):
    """Options of a run whose learning rate rises linearly, then falls along half a cosine, which spans the steps.

    Attributes:
        warmup: steps over which the learning rate rises.
        final_rate: the learning rate's end, as a fraction of its highest.
    """

    warmup: int = 200
    final_rate: float = 0.05

    def rate(self, step: int) -> float:
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / self.steps)))
        return self.learning_rate * rise * (self.final_rate + (1.0 - self.final_rate) * cosine)

    def check(self) -> None:
        super().check()
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0, got {self.warmup}")
        if not 0 <= self.final_rate <= 1:
            raise ValueError(f"final_rate must be from 0 to 1, got {self.final_rate}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HalvingTraining(TrainingOptions):
    """Options of a run whose learning rate is halved at fixed steps.

    Attributes:
        halve_every: steps from one halving of the learning rate to the next.
    """

    halve_every: int = 200_000

    def rate(self, step: int) -> float:
        return self.learning_rate * 0.5 ** (step // self.halve_every)

    def check(self) -> None:
        super().check()
        if self.halve_every < 1:
            raise ValueError(f"halve_every must be at least 1, got {self.halve_every}")


def run(training: TrainingOptions, quiet: bool = False) -> None:
    """Trains as the options say: finds the clips, makes the model, and fits or resumes it.

    Raises:
        ValueError, OSError: bad options or data, or a file that cannot be read or written.
        FloatingPointError: the loss or a gradient is not finite.
        KeyboardInterrupt: Ctrl-C, after a checkpoint.
        ModuleNotFoundError: ``tensorboard`` is asked for and not installed.
    """
    device = checked_device(training.device)
    with processes.joined(device):
        training.check()
        quiet = quiet or processes.rank() > 0
        _, clips = select(find_clips(training.data), training.exclude_clips)
        held_out, clips = select(clips, training.validation_clips)
        clips = [clip for clip in clips if clip.sample_rate >= training.min_sample_rate]
        model = training.make_model(clips).to(device)
        segments = (model.config.mel, training.frames, model.context)
        train = Dataset(clips, *segments)
        validation = Dataset(held_out, *segments) if held_out else None
        if not quiet:
            parameters = sum(parameter.numel() for parameter in model.parameters())
            speech = f"{train.seconds:.0f} s in {len(train.clips)} clips"
            print(f"{type(model).__name__} with {parameters:,} parameters; {speech}")
        fit(model, train, validation, training, quiet)


def checked_device(name: str) -> torch.device:
    """The device of that name; ValueError where this machine has none."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        if device.index is not None:
            raise ValueError(f"device must be cpu or cuda under torchrun, got {name!r}")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device must be one that is here ({torch.cuda.device_count()} CUDA devices), got {name!r}")
    return device


def fit(
    model: Model, train: Dataset, validation: Dataset | None, training: TrainingOptions, quiet: bool = False
) -> None:
    """Trains ``model`` in place, from the checkpoint in ``training.out`` or else its present weights; see run()."""
    if training.threads is not None:
        torch.set_num_threads(training.threads)
    device, first = next(model.parameters()).device, processes.rank() == 0
    training.out.mkdir(parents=True, exist_ok=True)
    objective = training.objective(model, training)
    average = None if training.ema is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(training.ema))
    exported = model if average is None else average.module
    step, seconds = _resume(training.out / CHECKPOINT, model, objective.learners, average)
    board = Board(training.out / BOARD, step, validation) if training.tensorboard and first else None
    for learner in objective.learners.values():
        learner.module.train()
    if step == 0:
        wave, mel, _ = train.draw(training.batch, training.seed, step)
        with torch.no_grad():
            objective.initialize(wave.to(device), mel.to(device))
    share = training.batch // processes.size()
    rows = slice(processes.rank() * share, (processes.rank() + 1) * share)
    batches = DataLoader(
        Batches(train, training.batch, training.seed, rows),
        batch_size=None,
        sampler=range(step, training.steps),
        num_workers=training.workers,
        worker_init_fn=_ignore_interrupts,
    )

    samples = training.batch * training.frames * model.config.mel.hop_length  # of a step
    progress = {"total": training.steps * samples, "initial": step * samples, "unit": "sample", "unit_scale": True}
    started, means = time.monotonic(), {}
    deadline = math.inf if training.minutes is None else started + 60 * training.minutes
    with (
        _interrupts() as interrupted,
        open(training.out / LOG if first else os.devnull, "a", encoding="utf-8") as log,
        tqdm(**progress, disable=quiet, dynamic_ncols=True) as bar,
        processes.averaged(NextLoss(objective.learners), objective.find_unused_parameters) as next_loss,
    ):
        for segments in batches:
            if isinstance(segments, Exception):
                raise segments
            try:
                for name, loss, norm in _update(objective, next_loss, segments, device, step):
                    prefix = "" if name == "model" else f"{name}_"
                    means.setdefault(f"{prefix}loss", []).append(loss)
                    means.setdefault(f"{prefix}gradient_norm", []).append(norm)
            except FloatingPointError as error:
                places = train.places(training.batch, training.seed, step)
                names = ", ".join(train.clips[clip].name for clip, _ in places)
                raise FloatingPointError(f"{error} at step {step} on {names}") from None
            if average is not None:
                average.update_parameters(model)
            step += 1
            bar.set_description(f"step {step}/{training.steps}", refresh=False)
            bar.set_postfix({k: f"{v[-1]:.3f}" for k, v in means.items() if k.endswith("loss")}, refresh=False)
            bar.update(samples)

            flags = torch.tensor([time.monotonic() > deadline, bool(interrupted)], dtype=torch.int32, device=device)
            late, interrupting = processes.total(flags).tolist()
            stopping = step == training.steps or late
            reporting = stopping or step % training.interval == 0
            if first and (reporting or interrupting):
                now = seconds + time.monotonic() - started
                _save(training.out / CHECKPOINT, model, objective.learners, average, step, now)
                exported.save(training.out / MODEL)
            if interrupting:
                processes.wait()  # or torchrun, which sees one that has ended, would end the one that saves
                raise KeyboardInterrupt
            if first and reporting:
                line = {"step": step, "seconds": round(seconds + time.monotonic() - started, 1)}
                line |= {name: sum(values) / len(values) for name, values in means.items()}
                if validation is not None:
                    line |= {"validation_loss": validation_loss(exported, validation, training.seed)}
                line["learning_rate"] = objective.learning_rate("model", step)
                log.write(json.dumps(line) + "\n")
                log.flush()
                if not quiet:
                    short = {k: f"{v:.4g}" if k.endswith(("loss", "norm")) else v for k, v in line.items()}
                    bar.write(", ".join(f"{k} {v}" for k, v in short.items()))
                if board is not None:
                    with torch.no_grad():
                        histograms = objective.histograms(segments.wave.to(device), segments.mel.to(device))
                    board.write(line, histograms, exported)
            if reporting:
                means.clear()
            if stopping:
                break


class NextLoss(nn.Module):
    """The next of an objective's losses, whose gradients torch.nn.parallel.DistributedDataParallel can average.

    It wraps modules and looks at one call at a time. An objective calls its learners' as it likes, between one loss and
    the next; so this module has them all, and its call is what the objective does until it yields.
    """

    no_sync = contextlib.nullcontext  # as DistributedDataParallel's, where nothing is wrapped

    def __init__(self, learners: Mapping[str, Learner]):
        super().__init__()
        self.learners = nn.ModuleDict({name: learner.module for name, learner in learners.items()})

    def forward(self, losses: Iterator[tuple[str, Tensor]]) -> tuple[str | None, Tensor | None]:
        return next(losses, (None, None))


def _update(
    objective: Objective, next_loss: nn.Module, segments: Segments, device: torch.device, step: int
) -> Iterator[tuple[str, float, float]]:
    """One step: updates learner after learner, and yields their names, losses and norms of their gradients."""
    training, learners = objective.training, objective.learners
    waves, mels = (tensor.to(device).chunk(training.accumulate) for tensor in (segments.wave, segments.mel))
    micro_batches = [objective.losses(wave, mel, step) for wave, mel in zip(waves, mels, strict=True)]
    first = processes.rank() * len(micro_batches)
    for update in itertools.count():
        for learner in learners.values():
            learner.optimizer.zero_grad()
        mean = torch.zeros((), device=device)
        for i, losses in enumerate(micro_batches, 1):
            key = np.random.SeedSequence((training.seed, step, first + i, update))
            torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))
            # the last one's backward pass averages what all of them have summed
            with next_loss.no_sync() if i < len(micro_batches) else contextlib.nullcontext():
                with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bfloat16"):
                    name, loss = next_loss(losses)
                if name is None:
                    return
                (loss / len(micro_batches)).backward()
            mean += loss.detach() / len(micro_batches)
        learner = learners[name]
        for group in learner.optimizer.param_groups:
            group["lr"] = objective.learning_rate(name, step)
        mean = processes.total(mean).item() / processes.size()
        norm = nn.utils.clip_grad_norm_(learner.module.parameters(), learner.clip_norm).item()
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise FloatingPointError(f"loss and gradient must be finite, got {mean} and {norm}")
        learner.optimizer.step()
        yield name, mean, norm


@torch.no_grad()
def validation_loss(model: Model, validation: Dataset, seed: int) -> float:
    """Mean loss, in float32 and evaluation mode, over segments of every clip; torch's generator has another state then.

    Batch normalisation would see the clips otherwise, and average over them.
    """
    device, training = next(model.parameters()).device, model.training
    torch.manual_seed(seed)
    model.eval()
    total = 0.0
    for clip in range(len(validation.clips)):
        segments = validation.spread(clip, VALIDATION_SEGMENTS)
        total += model.loss(segments.wave.to(device), segments.mel.to(device)).item()
    model.train(training)
    return total / len(validation.clips)


@contextlib.contextmanager
def _interrupts():
    """Ctrl-C fills the list that this yields, so that the loop ends its step; a second Ctrl-C acts as usual."""
    interrupted = []
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main one alone
        yield interrupted
        return

    def stop(number, _):
        interrupted.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _ignore_interrupts(_: int) -> None:
    """In a process that reads: Ctrl-C is for the one that trains, which still ends its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _save(
    path: Path,
    model: Model,
    learners: Mapping[str, Learner],
    average: AveragedModel | None,
    step: int,
    seconds: float,
) -> None:
    state = {
        "config": checkpoint.config_to_dict(model.config),
        "step": step,
        "seconds": seconds,
        "modules": {name: learner.module.state_dict() for name, learner in learners.items()},
        "optimizers": {name: learner.optimizer.state_dict() for name, learner in learners.items()},
        "average": None if average is None else average.state_dict(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    checkpoint.write_whole(path, buffer.getvalue())


def _resume(
    path: Path, model: Model, learners: Mapping[str, Learner], average: AveragedModel | None
) -> tuple[int, float]:
    """Loads what ``_save`` wrote and returns its step and seconds; 0 and 0 where there is no file.

    Where the file has no average, one begins here.
    """
    if not path.exists():
        return 0, 0.0
    try:
        if not zipfile.is_zipfile(path):  # as torch.save writes; torch.load would try older formats
            raise KeyError
        state = torch.load(path, map_location="cpu", weights_only=True)
        config, step, seconds = state["config"], state["step"], state["seconds"]
        weights = {name: (state["modules"][name], state["optimizers"][name]) for name in learners}
    except (RuntimeError, KeyError, TypeError, pickle.UnpicklingError):
        raise ValueError(f"out must hold a checkpoint of this command or none, got a corrupt {str(path)!r}") from None
    if config != checkpoint.config_to_dict(model.config):
        raise ValueError(f"out must hold a checkpoint of the same configuration, got another in {str(path)!r}")
    parts = {
        name: [(learner.module, weights[name][0]), (learner.optimizer, weights[name][1])]
        for name, learner in learners.items()
    }
    if average is not None and state.get("average"):
        parts["average"] = [(average, state["average"])]
    for name, pairs in parts.items():
        try:
            for part, values in pairs:
                part.load_state_dict(values)
        except (RuntimeError, ValueError):  # the configuration is the model's alone
            raise ValueError(f"out must hold a checkpoint with the same {name}, got another in {str(path)!r}") from None
    return step, seconds
