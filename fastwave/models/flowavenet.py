"""FloWaveNet: a flow of context blocks (Kim et al., 2018, arXiv 1811.02155, section 3).

Each block squeezes time by two into channels, so that its columns see twice as far as those of the block before. c is
the upsampled mel, squeezed as often.

for each flow:     x <- scale . (x + loc)                    activation norm
                   mu, log sigma = WaveNet(x_a, c_a)         affine coupling of the halves of x
                   x_b <- (x_b - mu) / sigma
                   x <- (x_b, x_a);   c <- (c_b, c_a)        change of order
every few blocks:  mu, log sigma = WaveNet(x_a, c)           half of the channels leaves
                   eps = (x_b - mu) / sigma;   x <- x_a

log p(x) = log N(z; 0, I) + sum of log N(x_b; mu, sigma^2) over what left + log-determinant of the flows
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastwave.flows import phases, squeeze, unsqueeze
from fastwave.layers import GatedStack, Upsampler
from fastwave.models.base import ConditionedConfig, ParallelModel, Run, Stage
from fastwave.ops.gated_stack import GatedStackSpec, gated_stack_ref

__all__ = ["FloWaveNet", "FloWaveNetConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FloWaveNetConfig(ConditionedConfig):
    """The shape of a FloWaveNet; the defaults are the paper's.

    Attributes:
        blocks: context blocks; hop_length must be a multiple of 2 ** blocks.
        flows: of each block; even, so that both halves of x and of the mel's bands take turns.
        blocks_per_split: half of the channels leaves behind so many blocks, but not behind the last.
        dilations: of the layers of each coupling's WaveNet.
        prior_dilations: of the layers of the WaveNet that predicts what leaves.
        channels: of the WaveNets, residual, gate and skip.
        kernel_size: of the WaveNets, front convolution included.
    """

    upsample_scales: Sequence[int] = (16, 16)
    blocks: int = 8
    flows: int = 6
    blocks_per_split: int = 4
    dilations: Sequence[int] = (1, 2)
    prior_dilations: Sequence[int] = (1, 2)
    channels: int = 256
    kernel_size: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dilations", "prior_dilations"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("blocks", "flows", "blocks_per_split"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.flows % 2:
            raise ValueError(f"flows must be even, got {self.flows}")
        if self.mel.n_mels % 2:
            raise ValueError(f"n_mels must be even, for a coupling reads half of the bands, got {self.mel.n_mels}")
        if self.cond_repeat != 1:
            raise ValueError(f"cond_repeat must be 1, got {self.cond_repeat}")
        if self.mel.hop_length % 2**self.blocks:
            raise ValueError(
                f"hop_length must be a multiple of 2 ** blocks = {2**self.blocks}, got {self.mel.hop_length}"
            )
        self.block_specs()

    def block_specs(self) -> list[tuple[GatedStackSpec, GatedStackSpec | None]]:
        """Of each block, its couplings' stack, and its prior's where half of the channels leaves behind it.

        Their epilogue is the direction of synthesis.
        """
        specs, channels, bands = [], 1, self.mel.n_mels
        for block in range(1, self.blocks + 1):
            channels, bands = 2 * channels, 2 * bands
            coupling, prior = self.stack_spec(channels, bands // 2, self.dilations), None
            if block % self.blocks_per_split == 0 and block < self.blocks:
                prior = self.stack_spec(channels, bands, self.prior_dilations)
                channels //= 2
            specs.append((coupling, prior))
        return specs

    def stack_spec(self, channels: int, cond_channels: int, dilations: Sequence[int]) -> GatedStackSpec:
        """A stack that reads one half of the channels, and transforms the other."""
        return GatedStackSpec(
            in_channels=channels // 2,
            front_width=self.kernel_size,
            front_causal=False,
            front_relu=True,
            residual_channels=self.channels,
            gate_channels=self.channels,
            skip_channels=self.channels,
            kernel_size=self.kernel_size,
            dilations=dilations,
            causal=False,
            cond_channels=cond_channels,
            head_channels=(self.channels, channels),
            head_relu=(True, True),
            epilogue="affine",
        )


def log_normal(z: Tensor) -> Tensor:
    """log N(z; 0, 1), each element."""
    return -0.5 * (math.log(2 * math.pi) + z.square())


class ActNorm(nn.Module):
    """An offset and a scale of each channel (Glow, Kingma and Dhariwal, 2018, section 3.1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, channels, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Makes of x (batch, channels, columns) channels of mean 0 and variance 1."""
        std, mean = torch.std_mean(x, (0, 2), keepdim=True)
        self.loc.copy_(-mean)
        self.scale.copy_(1 / (std + 1e-6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """scale . (x + loc), and its log-determinant, the sum of a batch."""
        return self.scale * (x + self.loc), self.scale.abs().log().sum() * len(x) * x.shape[2]

    def inverse(self, x: Tensor) -> Tensor:
        return x / self.scale - self.loc


class AffineStack(GatedStack):
    """The WaveNet of mu and log sigma, which are 0 at first."""

    def __init__(self, spec: GatedStackSpec):
        super().__init__(spec)
        for parameter in self.head[-1].parameters():
            nn.init.zeros_(parameter)

    def normalize(self, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """(y - mu) / sigma, which the epilogue undoes, and log sigma."""
        spec = dataclasses.replace(self.spec, epilogue="none")
        mu, log_sigma = gated_stack_ref(x, self.weights(), spec, c=c).chunk(2, 1)
        return (y - mu) * (-log_sigma).exp(), log_sigma


class Flow(nn.Module):
    """Activation norm, affine coupling, change of order."""

    def __init__(self, spec: GatedStackSpec):
        super().__init__()
        self.actnorm, self.coupling = ActNorm(2 * spec.in_channels), AffineStack(spec)

    def forward(self, x: Tensor, c: Tensor, initialize: bool) -> tuple[Tensor, Tensor]:
        """x (batch, channels, columns) -> as x, and the log-determinant, the sum of a batch."""
        if initialize:
            self.actnorm.initialize(x)
        x, logdet = self.actnorm(x)
        x_a, x_b = x.chunk(2, 1)
        x_b, log_sigma = self.coupling.normalize(x_a, x_b, c)
        return torch.cat([x_b, x_a], 1), logdet - log_sigma.sum()


class ContextBlock(nn.Module):
    """Flows on squeezed channels; with a prior, half of the channels leaves behind them."""

    def __init__(self, flows: int, coupling: GatedStackSpec, prior: GatedStackSpec | None):
        super().__init__()
        self.flows = nn.ModuleList(Flow(coupling) for _ in range(flows))
        self.prior = None if prior is None else AffineStack(prior)

    def forward(self, x: Tensor, c: Tensor, initialize: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """x (batch, channels, columns) and c of half as many columns -> x of as many, and eps of what leaves.

        And, the sums of a batch, log p of what leaves and the flows' log-determinant.
        """
        x = squeeze(x, 2)
        log_p = logdet = x.new_zeros(())
        for i, flow in enumerate(self.flows):
            x, flow_logdet = flow(x, c.chunk(2, 1)[i % 2], initialize)
            logdet = logdet + flow_logdet
        if self.prior is None:
            return x, None, log_p, logdet
        x, leaving = x.chunk(2, 1)
        eps, log_sigma = self.prior.normalize(x, leaving, c)
        return x, eps, (log_normal(eps) - log_sigma).sum(), logdet


class FloWaveNet(ParallelModel):
    """The flow; its noise is z of ``forward``, (batch, samples). See FloWaveNetConfig.

    Activation norms, squeezes and the change of order are plain PyTorch in generation too.
    """

    config_class = FloWaveNetConfig
    noise_kinds = ("normal",)

    def __init__(self, config: FloWaveNetConfig):
        super().__init__(config)
        self.upsampler = Upsampler(config.upsample_spec(), config.upsampler)
        self.blocks = nn.ModuleList(ContextBlock(config.flows, *specs) for specs in config.block_specs())
        self.register_buffer("initialized", torch.tensor(False))  # the activation norms, from data

    def stages(self) -> list[Stage]:
        def condition(c: Tensor, group: int, half: int) -> Tensor:
            return phases(c.chunk(2, 1)[half], group)

        stages = []
        for i, block in reversed(list(enumerate(self.blocks, 1))):
            group = 2**i
            if block.prior is not None:
                stages.append(Stage(stack=block.prior, group=group, condition=functools.partial(phases, group=group)))
            for j, flow in reversed(list(enumerate(block.flows))):
                half = functools.partial(condition, group=group, half=j % 2)
                stages.append(Stage(stack=flow.coupling, group=group, condition=half))
        return stages

    def synthesize(self, noise: Tensor, run: Run) -> Tensor:
        x, later = noise, []  # later: what left, and joins again
        for block in self.blocks:
            x, *later = (squeeze(part, 2) for part in (x, *later))
            if block.prior is not None:
                x, eps = x.chunk(2, 1)
                later.append(eps)
        stage = itertools.count()
        for block in reversed(self.blocks):
            if block.prior is not None:
                joining, x, *later = run(next(stage), x, *later[:-1], y=later[-1])
                x = torch.cat([x, joining], 1)
            for flow in reversed(block.flows):
                x_b, x_a = x.chunk(2, 1)
                x_b, x_a, *later = run(next(stage), x_a, *later, y=x_b)
                x = flow.actnorm.inverse(torch.cat([x_a, x_b], 1))
            x, *later = (unsqueeze(part, 2) for part in (x, *later))
        return x

    def forward(self, wave: Tensor, mel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """wave (batch, samples), mel (batch, n_mels, frames) -> z as wave, log p and logdet in nats per sample.

        Their sum is the log-likelihood. As in the public implementation log p holds what left at its own mean and
        sigma, and logdet the flows alone; z holds its eps, so the log-determinant of z in wave is, per sample,
        log p + logdet - log N(z; 0, I).

        The first forward in training initialises the activation norms from its batch.
        """
        self.check_fit("wave", wave, mel)
        c = self.upsampler(mel)
        initialize = self.training and not self.initialized
        x, left = wave[:, None], []
        log_p = logdet = x.new_zeros(())
        for i, block in enumerate(self.blocks, 1):
            x, eps, block_log_p, block_logdet = block(x, squeeze(c, 2**i), initialize)
            left.append(eps)
            log_p, logdet = log_p + block_log_p, logdet + block_logdet
        if initialize:
            self.initialized.fill_(True)
        log_p = log_p + log_normal(x).sum()
        for eps in reversed(left):
            x = unsqueeze(x if eps is None else torch.cat([x, eps], 1), 2)
        return x[:, 0], log_p / wave.numel(), logdet / wave.numel()

    def inverse(self, z: Tensor, mel: Tensor) -> Tensor:
        """The wave of ``forward``'s z, (batch, samples)."""
        self.check_fit("z", z, mel)
        return self.synthesize(z[:, None], self.reference_run(self.upsampler(mel)))[:, 0]

    def loss(self, wave: Tensor, mel: Tensor) -> Tensor:
        """The negative log-likelihood in nats per sample."""
        _, log_p, logdet = self(wave, mel)
        return -(log_p + logdet)
