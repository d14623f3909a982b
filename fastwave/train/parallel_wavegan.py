"""Parallel WaveGAN: the multi-resolution STFT loss, then an adversarial one too (Yamamoto et al., 2020, section 2)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from fastwave.audio import MelSpec
from fastwave.discriminators import ParallelWaveGANDiscriminator, ResidualParallelWaveGANDiscriminator
from fastwave.losses import least_squares_discriminator_loss, least_squares_generator_loss
from fastwave.models import ParallelWaveGAN, ParallelWaveGANConfig
from fastwave.train.options import HalvingTraining, Learner, Objective

__all__ = ["CONFIG", "ParallelWaveGANTraining"]

# The paper's generator, at 22.05 kHz with the front end and upsampler of kan-bayashi/ParallelWaveGAN.
CONFIG = ParallelWaveGANConfig(mel=MelSpec.preset("kan-bayashi/ParallelWaveGAN"), upsample_scales=(4, 4, 4, 4))


class Adversarial(Objective):
    """L_G of the generator, L_D of the discriminator (fastwave.models.parallel_wavegan); L_aux alone before its start.

    The discriminator sees the waveform that the generator, just updated, makes of the same noise.
    """

    find_unused_parameters = True

    def __init__(self, model: ParallelWaveGAN, training: ParallelWaveGANTraining):
        self.model, self.training = model, training
        self.discriminator = training.make_discriminator().to(next(model.parameters()).device)

        def learner(module: nn.Module, rate: float, clip_norm: float) -> Learner:
            return Learner(module, torch.optim.RAdam(module.parameters(), lr=rate, eps=1e-6), clip_norm, training.clip)

        self.learners = {
            "model": learner(model, training.learning_rate, training.clip_norm),
            "discriminator": learner(
                self.discriminator, training.discriminator_learning_rate, training.discriminator_clip_norm
            ),
        }

    def losses(self, wave: Tensor, mel: Tensor, step: int) -> Iterator[tuple[str, Tensor]]:
        z = torch.randn_like(wave)
        fake = self.model(z, mel).float()
        loss = self.model.stft_loss(fake, wave)
        if step < self.training.discriminator_start:
            yield "model", loss
            return
        yield "model", loss + self.training.lambda_adv * least_squares_generator_loss(self.discriminator(fake))
        with torch.no_grad():
            fake = self.model(z, mel).float()
        yield "discriminator", least_squares_discriminator_loss(self.discriminator(wave), self.discriminator(fake))

    def learning_rate(self, name: str, step: int) -> float:
        ratio = self.training.discriminator_learning_rate / self.training.learning_rate
        return self.training.rate(step) * (ratio if name == "discriminator" else 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelWaveGANTraining(HalvingTraining):
    """Trains a Parallel WaveGAN on the paper's schedule (section 3.1); its validation loss is the STFT loss.

    Attributes:
        discriminator: "dilated": the paper's; "residual": a gated stack (fastwave.discriminators).
        discriminator_channels: its width.
        discriminator_start: steps under the STFT loss alone.
        discriminator_learning_rate: at its highest; halved with the other.
        discriminator_clip_norm: largest global norm of its gradient.
        lambda_adv: weight of the adversarial loss.
    """

    steps: int = 400_000
    batch: int = 8
    frames: int = 94
    learning_rate: float = 1e-4
    clip_norm: float = 10.0
    precision: Literal["bfloat16", "float32"] = "float32"
    discriminator: Literal["dilated", "residual"] = "dilated"
    discriminator_channels: int = 64
    discriminator_start: int = 100_000
    discriminator_learning_rate: float = 5e-5
    discriminator_clip_norm: float = 1.0
    lambda_adv: float = 4.0

    model_class = ParallelWaveGAN
    preset = CONFIG
    objective = Adversarial

    def make_discriminator(self) -> nn.Module:
        n = self.discriminator_channels
        if self.discriminator == "residual":
            return ResidualParallelWaveGANDiscriminator(residual_channels=n, gate_channels=n, skip_channels=n)
        return ParallelWaveGANDiscriminator(channels=n)

    def check(self) -> None:
        super().check()
        if self.discriminator_channels < 1:
            raise ValueError(f"discriminator_channels must be at least 1, got {self.discriminator_channels}")
        if self.discriminator_start < 0:
            raise ValueError(f"discriminator_start must be at least 0, got {self.discriminator_start}")
        for name in ("discriminator_learning_rate", "discriminator_clip_norm", "lambda_adv"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
