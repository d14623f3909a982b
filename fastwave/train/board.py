"""What TensorBoard shows of a run: scalars, histograms, and speech."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastwave.models import Model
from fastwave.train.data import Dataset
from fastwave.vocoder import Vocoder

__all__ = ["Board"]

SPEECH = 3  # seconds


class Board:
    """Writes event files into ``folder``; events after ``step`` that a killed run left there are no longer shown.

    Args:
        validation: the beginning of its first clip is what the model speaks.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, step: int, validation: Dataset | None):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            message = "tensorboard is not installed; pip install 'fastwave[train]' installs it"
            raise ModuleNotFoundError(message) from None
        self.writer = SummaryWriter(folder, purge_step=step + 1)
        self.validation = validation

    def write(self, line: Mapping[str, float], histograms: Mapping[str, Tensor], model: Model) -> None:
        """The numbers of a line of the log, the histograms, and what ``model`` generates."""
        step = line["step"]
        for name in line.keys() - {"step", "seconds"}:
            self.writer.add_scalar(name, line[name], step)
        for name, values in histograms.items():
            self.writer.add_histogram(name, values, step)
        if self.validation is not None:
            spec = model.config.mel
            _, mel = self.validation.read(0)
            mel = mel[None, :, : SPEECH * spec.sample_rate // spec.hop_length]
            voice = Vocoder(copy.deepcopy(model).cpu(), threads=torch.get_num_threads())
            wave = voice.generate(mel).clamp(-1, 1)
            self.writer.add_audio("validation", wave, step, spec.sample_rate)
        self.writer.flush()
