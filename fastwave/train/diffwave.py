"""DiffWave: which noise was added (Kong et al., 2020, arXiv 2009.09761, Algorithm 1)."""

from __future__ import annotations

import dataclasses

from fastwave.models import DiffWave, DiffWaveConfig
from fastwave.train.options import Training

__all__ = ["CONFIG", "DiffWaveTraining"]

CONFIG = DiffWaveConfig.base()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffWaveTraining(Training):
    """Trains DiffWave to tell noise from speech at a random step of diffusion, at the paper's constant rate."""

    steps: int = 1_000_000
    batch: int = 16
    frames: int = 62
    learning_rate: float = 2e-4
    warmup: int = 0
    final_rate: float = 1.0
    clip_norm: float = 1e9  # nothing is clipped

    model_class = DiffWave
    preset = CONFIG
