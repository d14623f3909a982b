"""What WaveGlow and SqueezeWave share: a Glow between columns of speech and noise, conditioned on a mel."""

from __future__ import annotations

import abc
import dataclasses

from torch import Tensor, nn

from fastwave.audio import MelSpec
from fastwave.flows import Glow, flow_nll, squeeze, unsqueeze
from fastwave.layers import GatedStack
from fastwave.models.base import ParallelModel, Run, Stage
from fastwave.ops.gated_stack import GatedStackSpec, ungrouped

__all__ = ["GlowConfig", "GlowVocoder"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlowConfig(abc.ABC):
    """The shape of the flow; a model adds that of its couplings in ``stack_specs``.

    Attributes:
        mel: the front end whose mels the model understands; ``group`` divides its hop_length.
        flows: how many.
        group: samples of a column.
        early_every, early_size: before every ``early_every``-th flow but the first, ``early_size`` channels leave.
        layers, channels, kernel_size: of each coupling's gated stack.
        sigma: of the latent, in the loss; drawn noise is standard normal, so generate with ``temperature=sigma`` or
            less.
    """

    mel: MelSpec
    flows: int = 12
    group: int = 8
    early_every: int = 4
    early_size: int = 2
    layers: int = 8
    channels: int = 256
    kernel_size: int = 3
    sigma: float = 1.0

    def __post_init__(self) -> None:
        for name in ("flows", "group", "early_every", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.mel.hop_length % self.group:
            raise ValueError(f"group must divide hop_length {self.mel.hop_length}, got {self.group}")
        if not self.sigma > 0:
            raise ValueError(f"sigma must be above 0, got {self.sigma}")
        widths = self.widths()
        if widths[-1] < 2 or any(width % 2 for width in widths) or self.early_size < 0:
            raise ValueError(f"group and early_size must leave every flow an even number of channels, got {widths}")
        self.stack_specs()

    def widths(self) -> list[int]:
        """Channels of each flow."""
        return [self.group - self.early_size * (flow // self.early_every) for flow in range(self.flows)]

    @abc.abstractmethod
    def stack_specs(self) -> list[GatedStackSpec]:
        """The gated stack of each flow's coupling, as generation uses it."""


class GlowVocoder(ParallelModel):
    """The flow; its noise is z, (batch, group, columns), what left early first.

    Args:
        config: a GlowConfig.
        upsampler: what ``condition`` applies to the mel.
        stack: of the couplings.
    """

    def __init__(self, config: GlowConfig, upsampler: nn.Module, stack: type[GatedStack] = GatedStack):
        super().__init__(config)
        self.noise_kinds = ("normal",) * config.group
        self.upsampler = upsampler
        self.flow = Glow(config.stack_specs(), stack)

    @property
    def noise_rate(self) -> int:
        return self.config.mel.hop_length // self.config.group

    @abc.abstractmethod
    def stage_condition(self, conditioning: Tensor) -> Tensor:
        """What the stacks read of the conditioning."""

    def stages(self) -> list[Stage]:
        return [
            Stage(
                stack=stack,
                group=self.config.group,
                condition=self.stage_condition if stack.spec.cond_channels else None,
            )
            for stack in self.flow.inverse_stacks()
        ]

    def synthesize(self, noise: Tensor, run: Run) -> Tensor:
        return unsqueeze(self.flow.inverse(noise, run), self.config.group)

    def forward(self, wave: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        """wave (batch, frames * hop_length), mel (batch, n_mels, frames) -> z (batch, group, columns), and
        log |det dz/dwave|, (batch,)."""
        self.check_fit("wave", wave, mel)
        z, log_sigmas, logdets = self.transform(wave, self.upsampler(mel))
        return z, sum(log_sigma.sum((1, 2)) for log_sigma in log_sigmas) + sum(logdets)

    def transform(self, wave: Tensor, conditioning: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """z, and each flow's log sigma and log-determinant of W (fastwave.flows.Glow)."""
        return self.flow(squeeze(wave[:, None], self.config.group), ungrouped(self.stage_condition(conditioning)))

    def inverse(self, z: Tensor, mel: Tensor) -> Tensor:
        """The wave whose ``forward`` is z."""
        self.check_fit("z", z, mel, self.config.group)
        return self.synthesize(z, self.reference_run(self.upsampler(mel)))[:, 0]

    def loss(self, wave: Tensor, mel: Tensor) -> Tensor:
        """Negative log-likelihood in nats per sample, without its constant."""
        return flow_nll(*self(wave, mel), self.config.sigma)
