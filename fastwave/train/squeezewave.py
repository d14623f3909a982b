"""SqueezeWave by maximum likelihood (Zhai et al., 2020, arXiv 2001.05685)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from fastwave.audio import MelSpec
from fastwave.models import SqueezeWave, SqueezeWaveConfig
from fastwave.train.options import Training

__all__ = ["CONFIG", "SqueezeWaveTraining"]

CONFIG = SqueezeWaveConfig(mel=MelSpec.preset("fastwave"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SqueezeWaveTraining(Training):
    """Trains a SqueezeWave; its loss is in nats per sample, without the constant.

    Batch and learning rate are those of the authors' configurations.
    """

    steps: int = 600_000
    batch: int = 96
    frames: int = 64
    learning_rate: float = 4e-4
    clip_norm: float = 1e9
    precision: Literal["bfloat16", "float32"] = "float32"

    model_class = SqueezeWave
    preset = CONFIG
