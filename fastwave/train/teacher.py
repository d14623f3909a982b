"""The teacher: a WaveNet by maximum likelihood (ClariNet, Ping et al., 2018, section 3.1 and appendix A).

    loss = -1/T sum_t log p(x_t | x_<t, c)

The density p is the configuration's ``distribution``: a Gaussian, a mixture of Gaussians or of logistics, each with
its log-scales clipped from below at ``train_log_scale_min``, or a softmax (fastwave.distributions).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from fastwave.audio import MelSpec
from fastwave.emphasis import Emphasis
from fastwave.losses import LoudnessLoss
from fastwave.models import WaveNet, WaveNetConfig
from fastwave.train.data import Clip
from fastwave.train.free_running import free_running_loss, least_frames
from fastwave.train.options import Objective, Training

__all__ = ["CONFIG", "TeacherTraining"]

# 20 layers of 64 channels at 22.05 kHz, small enough for a CPU, which learn emphasised speech about as loud as speech
# itself. Log-sigma is clipped at e^-7.4 of speech in the loss: with the paper's -9 training may diverge.
CONFIG = WaveNetConfig(
    mel=MelSpec.preset("fastwave"),
    emphasis=Emphasis(coefficient=0.95, gain=4.0),
    train_log_scale_min=-6.0,
    clamp=8.0,
    front_width=32,
    front_relu=True,
    residual_channels=64,
    gate_channels=64,
    skip_channels=64,
    kernel_size=2,
    dilations=[2**i for i in range(10)] * 2,
    upsample_scales=(16,),
    upsample_context=2,
    upsample_context_conv=True,
    cond_repeat=16,
)

QUANTUM = 2 / 65536  # from one 16-bit amplitude to the next
QUIETEST = 0.01  # level of input noise, to the highest


class MaximumLikelihood(Objective):
    """The model's negative log-likelihood, of the recording or of one that is spread over its 16-bit quanta.

    With ``input_noise`` what the model reads of the past is noisy, as its own samples will be. With ``free_running`` it
    also counts how loud these are (fastwave.train.free_running).
    """

    def __init__(self, model: WaveNet, training: TeacherTraining):
        super().__init__(model, training)
        self.loudness = LoudnessLoss(model.config.mel).to(next(model.parameters()).device)

    def losses(self, wave: Tensor, mel: Tensor, step: int) -> Iterator[tuple[str, Tensor]]:
        if self.training.dequantize:
            wave = wave + QUANTUM * torch.rand_like(wave)
        loss = self.model.loss(wave, mel, past=self.past(wave), beta=self.training.beta)
        if self.training.free_running:
            loudness = self.training.free_running * free_running_loss(self.model, wave, mel, self.loudness)
            self.terms = {"likelihood": loss, "loudness": loudness}
            loss = loss + loudness
        yield "model", loss

    def past(self, wave: Tensor) -> Tensor:
        """wave, and to each row white noise; its level's logarithm is uniform."""
        highest = self.training.input_noise
        if highest == 0:
            return wave
        level = highest * QUIETEST ** torch.rand_like(wave[:, :1])
        return wave + level * torch.randn_like(wave)

    def histograms(self, wave: Tensor, mel: Tensor) -> dict[str, Tensor]:
        """A Gaussian's log sigma (appendix A, Figure 4)."""
        if self.model.config.distribution != "gaussian":
            return {}
        _, log_sigma = self.model(wave, mel).unbind(1)
        return {"log_sigma": log_sigma}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherTraining(Training):
    """Trains an autoregressive WaveNet, the teacher, by maximum likelihood; its loss is in nats per sample.

    Attributes:
        dequantize: uniform noise of one 16-bit quantum is added to the recordings (section 3.1): the alternative to a
            clip of log-sigma, for a configuration whose ``train_log_scale_min`` is far down.
        input_noise: the highest standard deviation of white noise in the samples that the model reads, not in those
            that it predicts; the lowest is a hundredth of it. When it samples it reads its own, which are noisier than
            recordings (LPCNet, Valin and Skoglund, 2019, has such noise in training).
        beta: of a Gaussian: each sample counts sigma^(2 beta) times, from 0 to 1. The gradient of the mean is
            proportional to 1 / sigma, so that quiet speech drowns loud speech in it; with 0.5 they weigh the same
            (Seitzer et al., 2022).
        free_running: of a Gaussian: weight of how far the loudness of its own samples, free-running from the first
            frames of each segment on, is from that of the recording (fastwave.train.free_running).
    """

    learning_rate: float = 2e-3
    clip_norm: float = 0.5
    optimizer: Literal["soap", "adam"] = "soap"
    dequantize: bool = False
    input_noise: float = 0.0
    beta: float = 0.0
    free_running: float = 0.0

    model_class = WaveNet
    preset = CONFIG
    objective = MaximumLikelihood

    def check(self) -> None:
        super().check()
        if not 0 <= self.input_noise < math.inf:
            raise ValueError(f"input_noise must be at least 0, got {self.input_noise}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must be from 0 to 1, got {self.beta}")
        if not 0 <= self.free_running < math.inf:
            raise ValueError(f"free_running must be at least 0, got {self.free_running}")

    def model_config(self, clips: Sequence[Clip]) -> WaveNetConfig:
        config = super().model_config(clips)
        for name in ("beta", "free_running"):
            if getattr(self, name) and config.distribution != "gaussian":
                kind, value = repr(config.distribution), getattr(self, name)
                raise ValueError(f"{name} must be 0 where the distribution is {kind}, got {value}")
        if self.free_running and self.frames < (least := least_frames(config)):
            raise ValueError(f"frames must be at least {least} where the model runs free, got {self.frames}")
        return config
