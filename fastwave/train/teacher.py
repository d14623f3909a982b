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
from fastwave.models import WaveNet, WaveNetConfig
from fastwave.train.data import Clip
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

    With ``input_noise`` what the model reads of the past is noisy, as its own samples will be.
    """

    def losses(self, wave: Tensor, mel: Tensor, step: int) -> Iterator[tuple[str, Tensor]]:
        if self.training.dequantize:
            wave = wave + QUANTUM * torch.rand_like(wave)
        yield "model", self.model.loss(wave, mel, past=self.past(wave), beta=self.training.beta)

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
    """

    learning_rate: float = 2e-3
    clip_norm: float = 0.5
    optimizer: Literal["soap", "adam"] = "soap"
    dequantize: bool = False
    input_noise: float = 0.0
    beta: float = 0.0

    model_class = WaveNet
    preset = CONFIG
    objective = MaximumLikelihood

    def check(self) -> None:
        super().check()
        if not 0 <= self.input_noise < math.inf:
            raise ValueError(f"input_noise must be at least 0, got {self.input_noise}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must be from 0 to 1, got {self.beta}")

    def model_config(self, clips: Sequence[Clip]) -> WaveNetConfig:
        config = super().model_config(clips)
        if self.beta and config.distribution != "gaussian":
            raise ValueError(f"beta must be 0 where the distribution is {config.distribution!r}, got {self.beta}")
        return config
