"""Distillation: a Gaussian IAF learns a Gaussian WaveNet's density (ClariNet, Ping et al., 2018, section 3.3).

    z ~ N(0, I);   x, mu_q, log sigma_q = student(z, c)          (Algorithm 1)
    mu_p, log sigma_p = teacher(x, c)
    loss = KL_reg(q || p) + 1/B || |STFT(x)| - |STFT(x_n)| ||^2   (Eq. 10, section 3.3.2)

c is the teacher's: the student takes over its upsampler, frozen.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from fastwave import models
from fastwave.losses import LoudnessLoss, STFTMagnitudeLoss, gaussian_kl, regularized_kl
from fastwave.models import ClariNetStudent, ClariNetStudentConfig, WaveNet
from fastwave.models.base import ConditionedConfig
from fastwave.train.data import Clip
from fastwave.train.options import Objective, Training
from fastwave.vocoder import find_voice

__all__ = ["Distillation", "DistillationTraining"]

# Two flows of student-1, of 48 channels, small enough for a CPU, quiet and with the plain residual sum as in
# fastwave.train.student; the rest is the teacher's.
SHAPE = dict(
    flows=[[2**i for i in range(10)]] * 2,
    residual_channels=48,
    gate_channels=48,
    skip_channels=48,
    kernel_size=3,
    residual_scale=1.0,
    initial_log_sigma=-7.0,
)
CONDITIONER = [field.name for field in dataclasses.fields(ConditionedConfig)]


class Distillation(Objective):
    """KL_reg of student and teacher, plus the distance of STFT magnitudes, and of powers and loudness if asked for."""

    def __init__(self, model: ClariNetStudent, training: DistillationTraining):
        super().__init__(model, training)
        device = next(model.parameters()).device
        self.teacher = training.make_teacher().to(device).requires_grad_(False)
        model.upsampler.load_state_dict(self.teacher.upsampler.state_dict())
        model.upsampler.requires_grad_(False)
        stft = {
            "clarinet": STFTMagnitudeLoss.clarinet(model.config.mel.sample_rate),
            "ksw0306": STFTMagnitudeLoss.ksw0306(),
            "multi_resolution": model.stft_loss,
        }
        self.stft_loss = stft[training.stft].to(device)
        self.loudness = LoudnessLoss(model.config.mel).to(device)

    def given(self) -> dict[str, str]:
        weights = self.teacher.state_dict().values()
        return super().given() | {
            "teacher": hashlib.sha256(b"".join(weight.cpu().numpy().tobytes() for weight in weights)).hexdigest()
        }

    def densities(self, wave: Tensor, mel: Tensor) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        """A sample x (batch, samples), and (mu, log_sigma) of q and of p; not of a first sample that is always 0."""
        x, *q = self.model(torch.randn_like(wave), mel)
        p = self.teacher(x, mel).unbind(1)
        given = int(self.model.config.first_sample == "zero")
        return x, *([parameter[:, given:] for parameter in density] for density in (q, p))

    def losses(self, wave: Tensor, mel: Tensor, step: int) -> Iterator[tuple[str, Tensor]]:
        """KL_reg(q || p), or KL_reg(p || q), and the distances of magnitudes, powers and loudness."""
        x, q, p = self.densities(wave, mel)
        with torch.autocast(x.device.type, enabled=False):
            loss = self.loss(x, q, p, wave)
        yield "model", loss

    def loss(self, x: Tensor, q: Sequence[Tensor], p: Sequence[Tensor], wave: Tensor) -> Tensor:
        """The sum of ``terms``, of a sample x (batch, samples), its densities, and the recording."""
        training = self.training
        first, second = (q, p) if training.kl == "reverse" else (p, q)
        divergence = regularized_kl(*first, *second, training.regularizer, training.log_sigma_min)
        speech = self.model.emphasis.undo(x), self.model.emphasis.undo(wave)
        stft = training.stft_weight * self.stft_loss(*speech)
        kl = gaussian_kl(*first, *second, training.log_sigma_min).mean()
        self.terms = {"kl": kl, "regularizer": divergence - kl, "stft": stft}
        loss = divergence + stft
        if training.power_weight:
            self.terms["power"] = training.power_weight * self.stft_loss.power(*speech)
            loss = loss + self.terms["power"]
        if training.loudness_weight:
            self.terms["loudness"] = training.loudness_weight * self.loudness(*speech)
            loss = loss + self.terms["loudness"]
        return loss

    def histograms(self, wave: Tensor, mel: Tensor) -> dict[str, Tensor]:
        """Both log sigmas (Figure 1)."""
        _, (_, log_sigma_q), (_, log_sigma_p) = self.densities(wave, mel)
        return {"log_sigma_q": log_sigma_q, "log_sigma_p": log_sigma_p}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationTraining(Training):
    """Distils a parallel student from a Gaussian teacher; its validation loss is the multi-resolution STFT loss.

    Attributes:
        teacher: name of a bundled voice, or a model's folder.
        start: a student whose flows, and their shape, this one starts with.
        kl: "reverse": KL(q || p); "forward": KL(p || q) (Eq. 11).
        regularizer: lambda of Eq. 10.
        log_sigma_min: both log sigmas are bounded below here in the KL, not in the regulariser.
        stft: the STFT loss: "clarinet": the paper's; "ksw0306": that of ksw0306/ClariNet; "multi_resolution": the
            student's own (Parallel WaveGAN, Yamamoto et al., 2020, Eq. 6), which has no power loss beside it.
        stft_weight: its coefficient.
        power_weight: coefficient of the power loss (van den Oord et al., 2018).
        loudness_weight: coefficient of the distance of loudness in mel bands (fastwave.losses.LoudnessLoss).
    """

    teacher: str
    learning_rate: float = 1e-3
    clip_norm: float = 10.0
    precision: Literal["bfloat16", "float32"] = "float32"
    kl: Literal["reverse", "forward"] = "reverse"
    regularizer: float = 4.0
    log_sigma_min: float = -6.0
    stft: Literal["clarinet", "ksw0306", "multi_resolution"] = "clarinet"
    stft_weight: float = 1.0
    power_weight: float = 0.0
    loudness_weight: float = 0.0

    model_class = ClariNetStudent
    objective = Distillation

    def make_teacher(self) -> WaveNet:
        """ValueError where ``teacher`` is not a Gaussian WaveNet."""
        teacher = models.load(find_voice(self.teacher))
        if not isinstance(teacher, WaveNet) or teacher.config.distribution != "gaussian":
            raise ValueError(f"teacher must be a Gaussian WaveNet, got {self.teacher!r}")
        return teacher

    def take_weights(self, model: ClariNetStudent, start: ClariNetStudent) -> None:
        model.flows.load_state_dict(start.flows.state_dict())

    def model_config(self, clips: Sequence[Clip]) -> ClariNetStudentConfig:
        """The shape of ``config``, of ``start``, or else the built-in one, under the teacher's conditioner."""
        teacher = self.make_teacher().config
        conditioner = {name: getattr(teacher, name) for name in CONDITIONER}
        if self.start is not None:
            return dataclasses.replace(self.first_model().config, **conditioner)
        if self.config is None:
            return ClariNetStudentConfig(**SHAPE, **conditioner)
        config = super().model_config(clips)
        for name, value in conditioner.items():
            if getattr(config, name) != value:
                raise ValueError(f"config must have the teacher's {name}, {value}, got {getattr(config, name)}")
        return config

    def check(self) -> None:
        super().check()
        if self.start is not None and self.config is not None:
            raise ValueError(f"config must be absent where there is a start, got {str(self.config)!r}")
        for name in ("regularizer", "stft_weight", "power_weight", "loudness_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.power_weight and self.stft == "multi_resolution":
            raise ValueError(f"power_weight must be 0 where stft is multi_resolution, got {self.power_weight}")
        if not math.isfinite(self.log_sigma_min):
            raise ValueError(f"log_sigma_min must be finite, got {self.log_sigma_min}")
