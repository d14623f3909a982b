"""A flow that hums: a first flow for a student, which adds a sine of the fundamental frequency to the noise.

A student makes the harmonics of voiced speech from noise, and by a spectral loss it came to make each from the last 20
to 40 ms of it: tones that waver. Source-filter models read a sine of the fundamental frequency beside the noise (Wang
et al., 2019, arXiv 1904.12088). Here a flow makes it from the noise,

    z' = z sigma + mu,    sigma -> 1,    mu -> sin(theta + any constant),

theta being the phase of the recording's fundamental. mu e^(-i theta) is then steady where there is voice: averaged over
windows, from 23 ms to 0.2 s of them, its magnitude is half the window's share of voice. So the flow must remember more
and more of the noise, and know the frequency from the mel. The flows behind it are those of a student, and stay.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastwave import evaluate
from fastwave.models import ClariNetStudent, ClariNetStudentConfig
from fastwave.train.data import Clip
from fastwave.train.options import Objective, Training

__all__ = ["Oscillator", "OscillatorTraining"]

DILATIONS = [2**i for i in range(11)] * 2
WINDOWS = (512, 1024, 2048, 4096)  # samples
BEGINNING = 2048  # samples of a segment, before which there is too little noise


class Oscillator(Objective):
    """How far the first flow is from a steady sine where there is voice, and from silence where there is none.

    Its power counts too, for that of other frequencies; what is then best is a sine a little too weak.
    """

    def __init__(self, model: ClariNetStudent, training: OscillatorTraining):
        super().__init__(model, training)
        model.requires_grad_(False)
        model.flows[0].requires_grad_(True)

    def losses(self, wave: Tensor, mel: Tensor, step: int) -> Iterator[tuple[str, Tensor]]:
        model = self.model
        speech = model.emphasis.undo(wave)
        phase, voiced = fundamental(speech, model.config.mel.sample_rate)
        mu, log_sigma = model.flow_parameters(model.flows[0], torch.randn_like(wave), model.upsampler(mel), False)
        mu, phase, voiced = (v[:, BEGINNING:] for v in (mu, phase, voiced))
        with torch.autocast(wave.device.type, enabled=False):
            unsteady = unsteadiness(mu, phase, voiced)
        self.terms = {
            "unsteadiness": unsteady,
            "power": 0.3 * mu.square().mean() / (voiced.mean() / 2 + 0.05),
            "hum": 6 * (mu.square() * (1 - voiced)).mean(),
            "sigma": log_sigma.square().mean(),
        }
        yield "model", sum(self.terms.values())


def unsteadiness(mu: Tensor, phase: Tensor, voiced: Tensor) -> Tensor:
    """0 where mu is a sine of ``phase``, up to a constant, times ``voiced``; 1 of silence for each of WINDOWS.

    (batch, samples) each -> scalar.
    """
    line = mu * voiced * torch.stack([phase.cos(), phase.sin()])  # (2, batch, samples)
    total = 0.0
    for length in WINDOWS:
        window = torch.hann_window(length, device=mu.device)[None, None] / (length / 2)
        parts = [F.conv1d(part[:, None], window, stride=length // 4) for part in (*line, voiced / 2)]
        amplitude = (parts[0].square() + parts[1].square() + 1e-8).sqrt()
        total = total + (amplitude - parts[2]).square().sum() / (parts[2].square().sum() + 1e-3)
    return total


def fundamental(speech: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Phase of the fundamental, radians, and whether there is one, 0 or 1, by fastwave.evaluate.f0.

    The frequency is interpolated, also where there is no voice.

    Args:
        speech: (batch, samples).
        sample_rate: Hz.

    Returns:
        (batch, samples) each, as ``speech``.
    """
    time = np.arange(speech.shape[1]) / sample_rate
    phases, voices = [], []
    for wave in speech.cpu():
        track = evaluate.f0(wave, sample_rate).numpy()
        at, voiced = np.arange(len(track)) / 100, ~np.isnan(track)
        frequency = np.interp(time, at[voiced], track[voiced]) if voiced.any() else np.zeros_like(time)
        phases.append(2 * math.pi * (np.cumsum(frequency / sample_rate) % 1))
        voices.append(np.interp(time, at, voiced) > 0.5)
    phase, voiced = (torch.from_numpy(np.stack(rows)) for rows in (phases, voices))
    return phase.to(speech), voiced.to(speech)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OscillatorTraining(Training):
    """Trains an oscillator, a flow in front of those of ``start``; needs librosa. fastwave distill goes on from it.

    What it writes is the whole student, whose other flows do not know the sine yet.
    """

    frames: int = 64
    batch: int = 1
    learning_rate: float = 3e-3
    clip_norm: float = 1.0
    optimizer: Literal["soap", "adam"] = "soap"

    model_class = ClariNetStudent
    objective = Oscillator

    def model_config(self, clips: Sequence[Clip]) -> ClariNetStudentConfig:
        """That of ``start``, with one more flow."""
        config = self.first_model().config
        return dataclasses.replace(config, flows=(DILATIONS, *config.flows))

    def take_weights(self, model: ClariNetStudent, start: ClariNetStudent) -> None:
        model.upsampler.load_state_dict(start.upsampler.state_dict())
        model.flows[1:].load_state_dict(start.flows.state_dict())
        model.flows[0].head[-1].bias.data.zero_()  # sigma is about 1

    def check(self) -> None:
        super().check()
        evaluate.require_metrics("librosa")
        if self.start is None:
            raise ValueError("start must be the student whose flows the oscillator goes before, got none")
        if self.config is not None:
            raise ValueError(f"config must be absent, for start has one, got {str(self.config)!r}")
        config = self.first_model().config
        if config.time_reversal or config.first_sample == "zero":
            raise ValueError(f"start must run forwards in time, and make its first sample, got {self.start!r}")
        least = (BEGINNING + max(WINDOWS)) // config.mel.hop_length
        if self.frames <= least:
            raise ValueError(f"frames must be above {least}, got {self.frames}")
