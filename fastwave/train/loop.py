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
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from fastwave import checkpoint
from fastwave.models import Model
from fastwave.train import processes
from fastwave.train.board import Board
from fastwave.train.data import Batches, Dataset, Segments, find_clips, select
from fastwave.train.options import Learner, Objective, TrainingOptions

__all__ = ["fit", "run"]

CHECKPOINT, LOG, MODEL, BOARD = "checkpoint.pt", "log.jsonl", "model", "tensorboard"
VALIDATION_SEGMENTS = 4  # of each validation clip


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
        segments = (model.config.mel, training.frames, model.context, model.emphasis)
        others = [dataclasses.replace(clip, speed=speed) for speed in training.speeds for clip in clips]
        train = Dataset(clips + others, *segments)
        validation = Dataset(held_out, *segments) if held_out else None
        if not quiet:
            parameters = sum(parameter.numel() for parameter in model.parameters())
            speech = f"{train.seconds:.0f} s in {len(train.clips)} clips"
            print(f"{type(model).__name__} with {parameters:,} parameters; {speech}")
            if device.type == "cpu" and training.precision == "bfloat16" and not has_bfloat16_products():
                print("precision bfloat16 is far slower than float32 on this CPU, for which torch has no such products")
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


def has_bfloat16_products() -> bool:
    """Whether torch has matrix products of bfloat16 for this CPU; without, it multiplies number by number."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


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
    step, seconds, means = _resume(training.out / CHECKPOINT, model, objective, average)
    if first:
        _cut(training.out / LOG, step)
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
    started = time.monotonic()
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
                for name, figures in _update(objective, next_loss, segments, device, step):
                    prefix = "" if name == "model" else f"{name}_"
                    for figure, value in figures.items():
                        means.setdefault(prefix + figure, []).append(value)
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
            if first and reporting:
                line = {"step": step, "seconds": round(seconds + time.monotonic() - started, 1)}
                line |= {name: sum(values) / len(values) for name, values in means.items()}
                if validation is not None:
                    line |= {"validation_loss": validation_loss(exported, validation, training.seed)}
                line["learning_rate"] = objective.learning_rate("model", step)
                log.write(json.dumps(line) + "\n")
                log.flush()
                if not quiet:
                    short = {k: v if k in ("step", "seconds") else f"{v:.4g}" for k, v in line.items()}
                    bar.write(", ".join(f"{k} {v}" for k, v in short.items()))
                if board is not None:
                    with torch.no_grad():
                        histograms = objective.histograms(segments.wave.to(device), segments.mel.to(device))
                    board.write(line, histograms, exported)
            if reporting:
                means.clear()
            if first and (reporting or interrupting):
                now = seconds + time.monotonic() - started
                _save(training.out / CHECKPOINT, model, objective, average, step, now, means)
                exported.save(training.out / MODEL)
            if interrupting:
                raise KeyboardInterrupt
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
) -> Iterator[tuple[str, dict[str, float]]]:
    """One step: updates learner after learner, and yields their names with losses, their terms, and gradient norms."""
    training, learners = objective.training, objective.learners
    waves, mels = (tensor.to(device).chunk(training.accumulate) for tensor in (segments.wave, segments.mel))
    micro_batches = [objective.losses(wave, mel, step) for wave, mel in zip(waves, mels, strict=True)]
    first = processes.rank() * len(micro_batches)
    for update in itertools.count():
        for learner in learners.values():
            learner.optimizer.zero_grad()
        figures = defaultdict(lambda: torch.zeros((), device=device))
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
            for figure, value in {"loss": loss, **objective.terms}.items():
                figures[figure] += value.detach() / len(micro_batches)
        learner = learners[name]
        for group in learner.optimizer.param_groups:
            group["lr"] = objective.learning_rate(name, step)
        totals = processes.total(torch.stack([*figures.values()])).tolist()
        means = {figure: total / processes.size() for figure, total in zip(figures, totals, strict=True)}
        norm = learner.clip_gradient()
        if not (math.isfinite(means["loss"]) and math.isfinite(norm)):
            raise FloatingPointError(f"loss and gradient must be finite, got {means['loss']} and {norm}")
        learner.optimizer.step()
        yield name, means | {"gradient_norm": norm}


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
    objective: Objective,
    average: AveragedModel | None,
    step: int,
    seconds: float,
    means: Mapping[str, list[float]],
) -> None:
    learners = objective.learners
    state = {
        "given": objective.given(),
        "config": checkpoint.config_to_dict(model.config),
        "step": step,
        "seconds": seconds,
        "means": dict(means),
        "modules": {name: learner.module.state_dict() for name, learner in learners.items()},
        "optimizers": {name: learner.optimizer.state_dict() for name, learner in learners.items()},
        "average": None if average is None else average.state_dict(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    checkpoint.write_whole(path, buffer.getvalue())


def _resume(
    path: Path, model: Model, objective: Objective, average: AveragedModel | None
) -> tuple[int, float, dict[str, list[float]]]:
    """Loads what ``_save`` wrote and returns its step, seconds and figures of a line to come; 0, 0 and none without it.

    Where the file has no average, one begins here.
    """
    if not path.exists():
        return 0, 0.0, {}
    learners = objective.learners
    try:
        if not zipfile.is_zipfile(path):  # as torch.save writes; torch.load would try older formats
            raise KeyError
        state = torch.load(path, map_location="cpu", weights_only=True)
        config, step, seconds = state["config"], state["step"], state["seconds"]
        weights = {name: (state["modules"][name], state["optimizers"][name]) for name in learners}
    except (RuntimeError, KeyError, TypeError, pickle.UnpicklingError):
        raise ValueError(f"out must hold a checkpoint of this command or none, got a corrupt {str(path)!r}") from None
    if not _same(config, model.config):
        raise ValueError(f"out must hold a checkpoint of the same configuration, got another in {str(path)!r}")
    given = objective.given()
    for name, mark in state.get("given", given).items():
        if given.get(name) != mark:
            raise ValueError(f"out must hold a checkpoint with the same {name}, got another in {str(path)!r}")
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
    return step, seconds, state.get("means", {})


def _same(values: dict, config) -> bool:
    """Whether config_to_dict made ``values`` of ``config``, maybe before it had all its fields."""
    try:
        return checkpoint.config_from_dict(type(config), values) == config
    except ValueError:
        return False


def _cut(log: Path, step: int) -> None:
    """Takes out of the log what a killed run wrote after its last checkpoint, and will write again."""
    if not log.exists():
        return
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    checkpoint.write_whole(log, "".join(kept).encode())
