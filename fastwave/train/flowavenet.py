"""FloWaveNet by maximum likelihood (Kim et al., 2018, arXiv 1811.02155), on the schedule of ksw0306/FloWaveNet."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import Tensor

from fastwave.audio import MelSpec
from fastwave.models import FloWaveNet, FloWaveNetConfig
from fastwave.train.options import HalvingTraining, Objective

__all__ = ["CONFIG", "FloWaveNetTraining"]

# The smaller of the two that the authors compare, of six blocks, with 64 channels in place of 256.
CONFIG = FloWaveNetConfig(mel=MelSpec.preset("fastwave"), blocks=6, channels=64)


class MaximumLikelihood(Objective):
    """The model's own loss; its activation norms begin as the whole first batch says."""

    def initialize(self, wave: Tensor, mel: Tensor) -> None:
        self.model(wave, mel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FloWaveNetTraining(HalvingTraining):
    """Trains FloWaveNet by maximum likelihood; its loss is in nats per sample."""

    steps: int = 700_000
    learning_rate: float = 1e-3
    clip_norm: float = 1.0
    precision: Literal["bfloat16", "float32"] = "float32"

    model_class = FloWaveNet
    preset = CONFIG
    objective = MaximumLikelihood
