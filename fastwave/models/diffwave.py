"""DiffWave: a waveform out of noise, by a network that guesses the noise in it (Kong et al., 2020, arXiv 2009.09761).

With betas beta_1..beta_T, alpha_t = 1 - beta_t and abar_t = alpha_1 ... alpha_t:

    training, Algorithm 1:   x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise,  t random
                             loss = mean |noise - eps(x_t, t, c)|          (its square in the paper)
    sampling, Algorithm 2:   x_T ~ N(0, I), and for t = T..1
                             x_{t-1} = (x_t - beta_t / sqrt(1 - abar_t) eps(x_t, t, c)) / sqrt(alpha_t) + sigma_t z_t
                             sigma_t^2 = (1 - abar_{t-1}) / (1 - abar_t) beta_t,  z_t ~ N(0, I), none at t = 1

eps is one gated stack, non-causal, whose layers all add a projection of the step to what their convolutions read.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastwave.audio import MelSpec
from fastwave.layers import GatedStack, Upsampler
from fastwave.models.base import ConditionedConfig, ParallelModel, Run, Stage
from fastwave.ops.gated_stack import GatedStackSpec

__all__ = ["DiffWave", "DiffWaveConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffWaveConfig(ConditionedConfig):
    """The shape of a DiffWave; GatedStackSpec says what most fields mean.

    Attributes:
        residual_channels: of the residual path, of z and of the skip sum.
        step_channels: of the embedding of a step.
        noise_schedule: beta_1..beta_T of training.
        fast_schedule: the fewer betas of generation where ``fast`` (appendix B); no step of theirs may have more noise
            than training's last, or less than its first.
        fast: generate along fast_schedule.
        unconditional: the mel is not read: it gives the number and the lengths of the waveforms.
    """

    dilations: Sequence[int]
    residual_channels: int = 64
    kernel_size: int = 3
    step_channels: int = 512
    noise_schedule: Sequence[float] = tuple(np.linspace(1e-4, 0.05, 50).tolist())
    fast_schedule: Sequence[float] = (0.0001, 0.001, 0.01, 0.05, 0.2, 0.5)
    fast: bool = False
    unconditional: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dilations", "noise_schedule", "fast_schedule"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.step_channels < 1:
            raise ValueError(f"step_channels must be at least 1, got {self.step_channels}")
        for name in ("noise_schedule", "fast_schedule"):
            betas = getattr(self, name)
            if not betas or not all(isinstance(beta, float) and 0 < beta < 1 for beta in betas):
                raise ValueError(f"{name} must be one number between 0 and 1 or more, got {betas}")
        trained, own = (self.noise_levels(betas) for betas in (self.noise_schedule, self.schedule))
        if own[0] > trained[0] or own[-1] < trained[-1]:
            raise ValueError(
                f"fast_schedule must have noise levels from {trained[0]:.4g} to {trained[-1]:.4g}, as noise_schedule, "
                f"got {own[0]:.4g} to {own[-1]:.4g}"
            )
        self.stack_spec()

    @classmethod
    def base(cls, **changes) -> DiffWaveConfig:
        """DiffWave BASE: 30 layers of 64 channels, 50 steps or 6 (section 5.1, appendix B), 22.05 kHz."""
        mel = MelSpec.preset("lmnt-com/diffwave")
        return cls(**(dict(mel=mel, upsample_scales=(16, 16), dilations=[2**i for i in range(10)] * 3) | changes))

    @classmethod
    def large(cls, **changes) -> DiffWaveConfig:
        """DiffWave LARGE: 128 channels, 200 steps or 6."""
        values = dict(
            residual_channels=128,
            noise_schedule=np.linspace(1e-4, 0.02, 200).tolist(),
            fast_schedule=(0.0001, 0.001, 0.01, 0.05, 0.2, 0.7),
        )
        return cls.base(**(values | changes))

    @property
    def schedule(self) -> Sequence[float]:
        """The betas of generation."""
        return self.fast_schedule if self.fast else self.noise_schedule

    @staticmethod
    def noise_levels(betas: Sequence[float]) -> np.ndarray:
        """abar of each beta, float64: the share of the signal in the power of x_t."""
        return np.cumprod(1 - np.array(betas))

    def stack_spec(self) -> GatedStackSpec:
        return GatedStackSpec(
            front_relu=True,
            residual_channels=self.residual_channels,
            gate_channels=self.residual_channels,
            skip_channels=self.residual_channels,
            kernel_size=self.kernel_size,
            dilations=self.dilations,
            causal=False,
            cond_channels=0 if self.unconditional else self.mel.n_mels,
            cond_repeat=self.cond_repeat,
            head_channels=(self.residual_channels, 1),
            head_relu=(False, True),
        )


class StepEmbedding(nn.Module):
    """128 sinusoids of the step and two products behind SiLU (section 3.1, Eq. 7): (batch,) -> (batch, channels).

    Between integers the sinusoids are interpolated. As in lmnt-com/diffwave they are float32's, whose angles reach 5e5.
    """

    def __init__(self, steps: int, channels: int):
        super().__init__()
        angles = torch.arange(steps)[:, None] * 10.0 ** (torch.arange(64) * 4.0 / 63.0)
        self.register_buffer("table", torch.cat([angles.sin(), angles.cos()], 1), persistent=False)  # (steps, 128)
        self.projection1 = nn.Linear(128, channels)
        self.projection2 = nn.Linear(channels, channels)

    def forward(self, step: Tensor) -> Tensor:
        low = step.floor()
        below, above = self.table[low.long()], self.table[step.ceil().long()]
        sinusoids = below + (above - below) * (step - low)[:, None]
        return F.silu(self.projection2(F.silu(self.projection1(sinusoids))))


class DiffWave(ParallelModel):
    """DiffWave; its noise is (batch, steps, samples): x_T, then z_T..z_2. See DiffWaveConfig."""

    config_class = DiffWaveConfig

    def __init__(self, config: DiffWaveConfig):
        super().__init__(config)
        spec = config.stack_spec()
        # repetition has no parameters
        self.upsampler = Upsampler(config.upsample_spec(), "nearest" if config.unconditional else config.upsampler)
        self.step_embedding = StepEmbedding(len(config.noise_schedule), config.step_channels)
        self.step_projection = nn.Linear(config.step_channels, spec.layers * spec.residual_channels)
        self.stack = GatedStack(spec)
        with torch.no_grad():
            self.stack.head[0].weight /= math.sqrt(spec.layers)  # of the skip sum, as in lmnt-com/diffwave
            self.stack.head[1].weight.zero_()
            self.stack.head[1].bias.zero_()
        levels = torch.from_numpy(config.noise_levels(config.noise_schedule)).float()
        self.register_buffer("levels", levels, persistent=False)  # abar_1..abar_T

    @property
    def noise_kinds(self) -> tuple[str, ...]:
        return ("normal",) * len(self.config.schedule)

    def with_schedule(self, schedule: Literal["full", "fast"] | Sequence[float]) -> DiffWave:
        """This model, its weights shared, with another schedule of generation: one of its own two, or other betas.

        Raises:
            ValueError: no such schedule; or betas that DiffWaveConfig refuses.
        """
        if not isinstance(schedule, str):
            changes = dict(fast=True, fast_schedule=schedule)
        elif schedule in ("full", "fast"):
            changes = dict(fast=schedule == "fast")
        else:
            raise ValueError(f"schedule must be 'full', 'fast' or betas, got {schedule!r}")
        model = copy.copy(self)
        model.config = dataclasses.replace(self.config, **changes)
        return model

    def stages(self) -> list[Stage]:
        named = dict(condition=None) if self.config.unconditional else {}
        return [Stage(stack=self.stack, u=u[None], **named) for u in self.step_vectors(self.aligned_steps().flip(0))]

    def aligned_steps(self) -> Tensor:
        """The step of training, counted from 0, that has the sqrt(abar) of each of the schedule's: float32 (steps,).

        Where the schedule is not that of training, it lies between two of them (appendix B).
        """
        trained = np.sqrt(self.config.noise_levels(self.config.noise_schedule))
        own = np.sqrt(self.config.noise_levels(self.config.schedule))
        steps = np.interp(own, trained[::-1], np.arange(len(trained))[::-1])
        return torch.from_numpy(steps).to(self.levels.device, torch.float32)

    def synthesize(self, noise: Tensor, run: Run) -> Tensor:
        """The reverse process (Algorithm 2), clamped to [-1, 1] at every step as in lmnt-com/diffwave."""
        betas = np.array(self.config.schedule)
        levels = self.config.noise_levels(betas)
        sigmas = np.sqrt((1 - np.append(1, levels[:-1])) / (1 - levels) * betas)
        steps = np.stack([np.sqrt(1 - betas), betas / np.sqrt(1 - levels), sigmas], 1)[::-1].tolist()
        x, later = noise.tensor_split([1], 1)
        for i, (scale, share, sigma) in enumerate(steps):
            eps, x, later = run(i, x, later)
            x = (x - share * eps) / scale
            if i + 1 < len(steps):
                z, later = later.tensor_split([1], 1)
                x = x + sigma * z
            x = x.clamp(-1, 1)
        return x

    def forward(self, x: Tensor, step: Tensor, mel: Tensor) -> Tensor:
        """eps, the noise in x: (batch, samples).

        Args:
            x: (batch, samples), samples = frames * hop_length.
            step: (batch,), or (1,) for all rows, from 0 to T - 1: integers, or numbers between them.
            mel: (batch, n_mels, frames + 2 context).
        """
        self.check_fit("x", x, mel)
        self.check_step(step, len(x))
        c = None if self.config.unconditional else self.upsampler(mel)
        return self.stack(x[:, None], c, u=self.step_vectors(step))[:, 0]

    def check_step(self, step: Tensor, batch: int) -> None:
        """ValueError unless ``step`` is as ``forward`` takes it."""
        last = len(self.levels) - 1
        if not isinstance(step, Tensor):
            raise ValueError(f"step must be a tensor, got {type(step).__name__}")
        if step.shape not in ((batch,), (1,)) or not ((step >= 0) & (step <= last)).all():
            raise ValueError(f"step must be {batch} numbers between 0 and {last}, got {step.tolist()}")

    def step_vectors(self, step: Tensor) -> Tensor:
        """What each layer adds to its convolution's input, (batch, layers, residual_channels)."""
        spec = self.stack.spec
        return self.step_projection(self.step_embedding(step)).unflatten(1, (spec.layers, spec.residual_channels))

    def diffuse(self, wave: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """x_t of each row's step (batch,), from wave and noise (batch, samples) (Eq. 4)."""
        level = self.levels[step][:, None]
        return level.sqrt() * wave + (1 - level).sqrt() * noise

    def loss(self, wave: Tensor, mel: Tensor) -> Tensor:
        """Mean distance between the noise and what is taken for it, at a random step for each row."""
        self.check_fit("wave", wave, mel)
        step = torch.randint(len(self.levels), wave.shape[:1], device=wave.device)
        noise = torch.randn_like(wave)
        return (noise - self(self.diffuse(wave, noise, step), step, mel)).abs().mean()
