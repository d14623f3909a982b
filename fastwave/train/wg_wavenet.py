"""WG-WaveNet: likelihood, and every few steps the spectra of a sample (Hsu and Lee, 2020, Eq. 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from fastwave.models import WGWaveNet, WGWaveNetConfig
from fastwave.train.options import HalvingTraining, Objective

__all__ = ["CONFIG", "WGWaveNetTraining"]

CONFIG = WGWaveNetConfig.g_8()


class Joint(Objective):
    """L_z, and L_s in the last of every ``sample_every`` steps."""

    find_unused_parameters = True

    def losses(self, wave: Tensor, mel: Tensor, step: int) -> Iterator[tuple[str, Tensor]]:
        loss = self.model.flow_loss(wave, mel)
        if (step + 1) % self.training.sample_every == 0:
            loss = loss + self.model.sample_loss(wave, mel)
        yield "model", loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class WGWaveNetTraining(HalvingTraining):
    """Trains a WG-WaveNet as the paper does (section 3.2).

    Attributes:
        sample_every: steps from one that draws a sample, and compares its spectra, to the next.
    """

    steps: int = 1_000_000
    batch: int = 8
    frames: int = 80
    learning_rate: float = 4e-4
    clip_norm: float = 10.0
    precision: Literal["bfloat16", "float32"] = "float32"
    sample_every: int = 3

    model_class = WGWaveNet
    preset = CONFIG
    objective = Joint

    def check(self) -> None:
        super().check()
        if self.sample_every < 1:
            raise ValueError(f"sample_every must be at least 1, got {self.sample_every}")
