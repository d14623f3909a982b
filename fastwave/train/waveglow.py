"""WaveGlow by maximum likelihood (Prenger et al., 2018, arXiv 1811.00002, sections 2 and 3.2)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from fastwave.audio import MelSpec
from fastwave.models import WaveGlow, WaveGlowConfig
from fastwave.train.options import Training

__all__ = ["CONFIG", "WaveGlowTraining"]

CONFIG = WaveGlowConfig(mel=MelSpec.preset("NVIDIA/waveglow"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WaveGlowTraining(Training):
    """Trains a WaveGlow; its loss is in nats per sample, without the constant."""

    steps: int = 580_000
    batch: int = 24
    frames: int = 63
    learning_rate: float = 1e-4
    clip_norm: float = 1e9
    precision: Literal["bfloat16", "float32"] = "float32"

    model_class = WaveGlow
    preset = CONFIG
