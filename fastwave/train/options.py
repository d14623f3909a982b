"""What a run minimises, and its options."""

from __future__ import annotations

import abc
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fastwave import checkpoint, models
from fastwave.models import Model
from fastwave.train import processes
from fastwave.train.data import Clip, standardized
from fastwave.train.soap import SOAP
from fastwave.vocoder import find_voice

__all__ = ["HalvingTraining", "Learner", "Objective", "Training", "TrainingOptions"]


@dataclasses.dataclass(frozen=True)
class Learner:
    """A module, the optimiser that updates it, and the largest norm of its gradient: of all of it or of each tensor."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    clip_norm: float
    clip: Literal["all", "each"]

    def clip_gradient(self) -> float:
        """The gradient's global norm, before it is clipped."""
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        if self.clip == "all":
            return nn.utils.clip_grad_norm_(parameters, self.clip_norm).item()
        norms = [nn.utils.clip_grad_norm_(parameter, self.clip_norm) for parameter in parameters]
        return torch.stack(norms).norm().item()


class Objective:
    """What a run minimises: here the model's own loss.

    One with a discriminator adds learners; the checkpoint holds them all. Nothing else that changes may be kept here,
    or a resumed run would differ, but ``terms``: what the last loss is the sum of, for the log. Where a loss leaves
    parameters of the learners untouched, ``find_unused_parameters`` tells torch.nn.parallel.DistributedDataParallel to
    look which.
    """

    find_unused_parameters: ClassVar[bool] = False
    terms: Mapping[str, Tensor] = MappingProxyType({})

    def __init__(self, model: Model, training: TrainingOptions):
        self.model, self.training = model, training
        self.learners = {"model": Learner(model, training.make_optimizer(model), training.clip_norm, training.clip)}

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

    def given(self) -> dict[str, str]:
        """Options, by name, whose content makes a run, and marks of that content: it must be there again to go on."""
        return {"optimizer": type(self.learners["model"].optimizer).__name__}

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
        speeds: the training clips are also read this many times faster, such as 0.96 and 1.06, pitch and all: more
            voices, where there is little speech (Ko et al., 2015).
        steps: updates of the whole run.
        minutes: stop after this time, with a checkpoint.
        interval: steps between checkpoints, each with a line of the log.
        batch: segments of a step, of all processes together.
        accumulate: micro-batches, one after another, that a process splits its share of the batch into.
        workers: processes that read clips and make their mels, ahead of each training process; it does so itself where
            there are none.
        frames: mel frames of a segment.
        learning_rate: at its highest.
        clip_norm: largest norm of the gradient.
        clip: "all": of all of it together; "each": of each tensor by itself, where a few of them have most of it.
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
    speeds: tuple[float, ...] = ()
    steps: int = 100_000
    minutes: float | None = None
    interval: int = 500
    batch: int = 2
    accumulate: int = 1
    workers: int = 0
    frames: int = 32
    learning_rate: float
    clip_norm: float
    clip: Literal["all", "each"] = "all"
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

    def make_optimizer(self, model: Model) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=self.learning_rate)

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
        for speed in self.speeds:
            if not 0.5 <= speed <= 2:
                raise ValueError(f"speeds must be from 0.5 to 2, got {speed}")
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
        optimizer: "adam", or "soap" (fastwave.train.soap).
    """

    warmup: int = 200
    final_rate: float = 0.05
    optimizer: Literal["adam", "soap"] = "adam"

    def make_optimizer(self, model: Model) -> torch.optim.Optimizer:
        if self.optimizer == "adam":
            return super().make_optimizer(model)
        return SOAP(model.parameters(), lr=self.learning_rate)

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
