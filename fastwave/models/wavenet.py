"""Autoregressive WaveNet (van den Oord et al., 2016; the Gaussian one: ClariNet, Ping et al., 2018, section 3.1).

    p(x | c) = prod_t p(x_t | x_<t, c)                                            (ClariNet, Eq. 1)
    p(x_t | x_<t, c) = N(mu(x_<t, c), sigma(x_<t, c)^2)                           (section 3.1)

or a mixture of Gaussians or logistics, or a softmax over amplitude classes, in place of the Gaussian.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastwave.audio import MelSpec
from fastwave.distributions import Gaussian, MixtureOfGaussians, MixtureOfLogistics, Softmax
from fastwave.layers import GatedStack, Upsampler
from fastwave.models.base import ConditionedConfig, Model, check_temperature
from fastwave.ops.gated_stack import GatedStackSpec
from fastwave.ops.wavenet_sample import HeadSpec, initial_sampler_state, wavenet_sample_ref

__all__ = ["WaveNet", "WaveNetConfig"]

# ClariNet, section 5: 80 bands at 80 frames a second of 24 kHz speech, scaled to [0, 1]
CLARINET_MEL = MelSpec(sample_rate=24000, n_fft=2048, hop_length=300, win_length=1200)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WaveNetConfig(ConditionedConfig):
    """The shape of a WaveNet; GatedStackSpec and HeadSpec say what most fields mean.

    Attributes:
        distribution: "gaussian", "mixture_of_gaussians", "mixture_of_logistics" or "softmax".
        components: of a mixture.
        classes: amplitude classes of a softmax, or quantisation levels of a mixture of logistics.
        companding: of a softmax, "mulaw" or "linear".
        one_hot_input: a softmax model reads its samples one-hot (else as amplitudes).
        initial_class: the class that a one-hot model reads first; None: all zeros.
        train_log_scale_min: log-scales are clipped from below here in the loss (ClariNet, appendix A).
        speakers, speaker_channels: a table of speaker embeddings, for global conditioning; ``speakers=0`` with
            ``speaker_channels`` takes embeddings from the caller.
    """

    distribution: str = "gaussian"
    components: int = 10
    classes: int = 65536
    companding: str = "mulaw"
    one_hot_input: bool = False
    initial_class: int | None = None
    clamp: float = 1.0
    train_log_scale_min: float = -9.0
    front_width: int = 1
    front_relu: bool = False
    residual_channels: int
    gate_channels: int
    skip_channels: int
    kernel_size: int
    dilations: Sequence[int]
    residual_scale: float = math.sqrt(0.5)
    speakers: int = 0
    speaker_channels: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "dilations", tuple(self.dilations))
        if self.one_hot_input and self.distribution != "softmax":
            raise ValueError(f"one_hot_input needs distribution 'softmax', got {self.distribution!r}")
        if self.initial_class is not None and not (self.one_hot_input and 0 <= self.initial_class < self.classes):
            raise ValueError(f"initial_class must be one of {self.classes} classes of a one-hot input")
        self.head_spec()  # checks distribution and clamp
        self.stack_spec()

    @classmethod
    def clarinet(cls, **changes) -> WaveNetConfig:
        """ClariNet's Gaussian teacher (section 5): 24 kHz, 20 layers of 128 channels, kernel 2, 80 bands, hop 300."""
        values = dict(
            mel=CLARINET_MEL,
            front_width=32,
            front_relu=True,
            residual_channels=128,
            gate_channels=128,
            skip_channels=128,
            kernel_size=2,
            dilations=[2**i for i in range(10)] * 2,
            upsample_scales=(15, 20),
        )
        return cls(**(values | changes))

    def make_distribution(self):
        """The output distribution (fastwave.distributions)."""
        if self.distribution == "gaussian":
            return Gaussian()
        if self.distribution == "mixture_of_gaussians":
            return MixtureOfGaussians(self.components)
        if self.distribution == "mixture_of_logistics":
            return MixtureOfLogistics(self.components, self.classes)
        return Softmax(self.classes, self.companding)

    def head_spec(self) -> HeadSpec:
        return HeadSpec(distribution=self.distribution, clamp=self.clamp)

    def stack_spec(self) -> GatedStackSpec:
        return GatedStackSpec(
            in_channels=self.classes if self.one_hot_input else 1,
            front_width=self.front_width,
            front_relu=self.front_relu,
            residual_channels=self.residual_channels,
            gate_channels=self.gate_channels,
            skip_channels=self.skip_channels,
            kernel_size=self.kernel_size,
            dilations=self.dilations,
            residual_scale=self.residual_scale,
            cond_channels=self.mel.n_mels,
            cond_repeat=self.cond_repeat,
            head_channels=(self.skip_channels, self.make_distribution().n_params),
            head_relu=(True, True),
        )


class WaveNet(Model):
    """A WaveNet vocoder. See WaveNetConfig."""

    config_class = WaveNetConfig

    def __init__(self, config: WaveNetConfig):
        super().__init__(config)
        self.distribution = config.make_distribution()
        self.noise_kinds = self.distribution.noise_kinds
        self.upsampler = Upsampler(config.upsample_spec(), config.upsampler)
        self.stack = GatedStack(config.stack_spec(), config.speaker_channels)
        if config.speakers:
            self.speakers = nn.Embedding(config.speakers, config.speaker_channels)

    def global_vectors(self, speaker: Tensor | None) -> Tensor | None:
        """speaker, ids (batch,) or embeddings (batch, channels, 1), to the stack's g (batch, L, 2G)."""
        if not self.config.speaker_channels:
            if speaker is not None:
                raise ValueError("speaker must be None: this model has no global conditioning")
            return None
        if speaker is None:
            raise ValueError("speaker must be ids (batch,) or embeddings (batch, channels, 1), got None")
        if not speaker.is_floating_point():
            if not self.config.speakers:
                raise ValueError("speaker must be embeddings (batch, channels, 1): this model has no table of speakers")
            if speaker.min() < 0 or speaker.max() >= self.config.speakers:
                raise ValueError(f"speaker must be ids below {self.config.speakers}, got {speaker.tolist()}")
            return self.stack.speaker_vectors(self.speakers(speaker))
        return self.stack.speaker_vectors(speaker.flatten(1))

    def encode(self, wave: Tensor) -> Tensor:
        """(batch, samples) amplitudes as the stack reads them, (batch, in_channels, samples)."""
        if not self.config.one_hot_input:
            return wave[:, None]
        one_hot = nn.functional.one_hot(self.distribution.quantize(wave), self.config.classes)
        return one_hot.transpose(1, 2).to(self.stack.front.weight.dtype)

    def first_input(self) -> Tensor:
        """What the stack reads before there is a sample, (in_channels,)."""
        first = self.stack.front.weight.new_zeros(self.stack.spec.in_channels)
        if self.config.initial_class is not None:
            first[self.config.initial_class] = 1
        return first

    def network(
        self, x: Tensor, conditioning: Tensor, speaker: Tensor | None = None, trace: list[Tensor] | None = None
    ) -> Tensor:
        """The stack itself: x (batch, in_channels, samples) -> parameters; column t reads x[<= t]."""
        return self.stack(x, conditioning, g=self.global_vectors(speaker), trace=trace)

    def forward(
        self, wave: Tensor, mel: Tensor, speaker: Tensor | None = None, trace: list[Tensor] | None = None
    ) -> Tensor:
        """Teacher-forced parameters (batch, n_params, samples): column t is the distribution of wave[t] given wave[<t].

        wave: (batch, frames * hop_length); mel: (batch, n_mels, frames + 2 upsample_context).
        trace: see gated_stack_ref.
        """
        self.check_fit("wave", wave, mel)
        first = self.first_input().expand(len(wave), -1)[..., None].detach()
        delayed = torch.cat([first, self.encode(wave)[..., :-1]], -1)
        return self.network(delayed, self.upsampler(mel), speaker, trace)

    def loss(
        self,
        wave: Tensor,
        mel: Tensor,
        speaker: Tensor | None = None,
        *,
        past: Tensor | None = None,
        beta: float = 0.0,
    ) -> Tensor:
        """Negative log-likelihood in nats per sample; log-scales clipped from below (ClariNet, appendix A).

        Args:
            past: (batch, samples) that the model reads as what came before; ``wave`` where None.
            beta: of a Gaussian: the mean over the samples is weighted by sigma^(2 beta), which has no gradient of its
                own (Seitzer et al., 2022).
        """
        if beta and self.config.distribution != "gaussian":
            raise ValueError(f"beta must be 0 where the distribution is {self.config.distribution!r}, got {beta}")
        past = wave if past is None else past
        self.check_fit("wave", wave, mel)
        self.check_fit("past", past, mel)
        parameters = self(past, mel, speaker)
        if wave.dtype == torch.float32:
            parameters = parameters.float()
        log_scale_min = self.config.train_log_scale_min
        log_prob = self.distribution.log_prob(parameters, wave, log_scale_min)
        if not beta:
            return -log_prob.mean()
        weight = (2 * beta * parameters[:, 1].detach().clamp(min=log_scale_min)).exp()
        return -(weight * log_prob).sum() / weight.sum()

    @torch.inference_mode()
    def generate(
        self,
        mel: Tensor,
        *,
        noise: Tensor | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        lengths: Tensor | None = None,
        speaker: Tensor | None = None,
    ) -> Tensor:
        """Samples a waveform, column by column in plain PyTorch: the reference of the kernels.

        Args:
            mel: (batch, n_mels, frames).
            noise: (batch, noise channels, frames * hop_length); from ``seed`` where None.
            lengths: (batch,) frames of each row; zeros after them.

        Returns:
            (batch, frames * hop_length).
        """
        check_temperature(temperature)
        noise = self.noise(mel, noise, seed)
        conditioning = self.condition(mel, lengths)
        first = self.first_input()
        state = initial_sampler_state(self.stack.spec, len(mel), first, dtype=first.dtype)
        table = self.distribution.decode_table().to(first) if self.config.distribution == "softmax" else None
        samples, _ = wavenet_sample_ref(
            noise,
            self.stack.weights(),
            self.stack.spec,
            self.config.head_spec(),
            state=state,
            c=conditioning,
            g=self.global_vectors(speaker),
            table=table,
            temperature=temperature,
            lengths=None if lengths is None else lengths * self.config.mel.hop_length,
        )
        return self.speech(samples, lengths)
