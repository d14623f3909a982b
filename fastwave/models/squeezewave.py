"""SqueezeWave (Zhai et al., 2020, arXiv 2001.05685): a WaveGlow of few, long columns and separable convolutions.

x = the wave, 128 or 256 samples to a column                                   (section 3.1)
for each flow, 12 of them:
    before every second but the first, 16 channels leave x and are part of z
    x <- W x
    mu, log sigma = WN(x_a, mel);   x_b <- x_b . sigma + mu
z = what has left, and x

WN: h = F x_a, and in every layer h <- h + R (tanh(a_filter) . sigmoid(a_gate)), with
    a = W (D * norm(h)) + A mel                                                (section 3.2)

D is a convolution of each channel by itself, W a product; a column of the mel serves all columns of its frame.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn
from torch.nn import functional as F

from fastwave.layers import GatedStack, Upsampler
from fastwave.models.glow import GlowConfig, GlowVocoder
from fastwave.ops.gated_stack import GatedStackSpec, GatedStackWeights
from fastwave.ops.upsample import UpsampleSpec

__all__ = ["SqueezeWave", "SqueezeWaveConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SqueezeWaveConfig(GlowConfig):
    """The shape of a SqueezeWave (GlowConfig); the defaults are its 128L.

    The paper's four models (table 1) have 128 channels (S) or 256 (L), and at 16,384 samples 64 columns (group=256) or
    128 (group=128).
    """

    group: int = 128
    early_every: int = 2
    early_size: int = 16

    def stack_specs(self) -> list[GatedStackSpec]:
        return [
            GatedStackSpec(
                in_channels=width // 2,
                residual_channels=self.channels,
                gate_channels=self.channels,
                skip_channels=0,
                kernel_size=self.kernel_size,
                dilations=[1] * self.layers,
                causal=False,
                residual_scale=1.0,
                cond_channels=self.mel.n_mels,
                cond_repeat=self.mel.hop_length // self.group,
                separable=True,
                head_channels=(width,),
                head_relu=(False,),
                epilogue="inverse",
            )
            for width in self.widths()
        ]


class NormalizedStack(GatedStack):
    """A separable stack with batch normalisation in front of each depthwise convolution.

    ``weights`` folds it in. The two differ in the outer columns of every layer: the convolution's zero padding lies
    behind the normalisation, and before what is folded.
    """

    def __init__(self, spec: GatedStackSpec):
        super().__init__(spec)
        self.norm = nn.ModuleList(nn.BatchNorm1d(spec.residual_channels) for _ in spec.dilations)

    def before_epilogue(self, x: Tensor, c: Tensor) -> Tensor:
        """The network as it is trained: mu and log sigma, (batch, head_channels[-1], time)."""
        spec = self.spec
        h = self.front(x)
        for layer, dilation in enumerate(spec.dilations):
            v = F.pad(self.norm[layer](h), (spec.kernel_size // 2 * dilation,) * 2)
            a = self.conv[layer](self.depthwise[layer](v))
            a = a + self.cond[layer](c).repeat_interleave(spec.cond_repeat, -1)
            a_filter, a_gate = a.chunk(2, 1)
            h = h + self.residual[layer](a_filter.tanh() * a_gate.sigmoid())
        return self.head[0](h)

    def weights(self) -> GatedStackWeights:
        weights = super().weights()
        scale = [norm.weight / (norm.running_var + norm.eps).sqrt() for norm in self.norm]
        shift = [norm.bias - norm.running_mean * s for norm, s in zip(self.norm, scale, strict=True)]
        taps, bias = weights.depthwise, weights.depthwise_bias
        return dataclasses.replace(
            weights,
            depthwise=[w * s[:, None] for w, s in zip(taps, scale, strict=True)],
            depthwise_bias=[b + w.sum(1) * s for b, w, s in zip(bias, taps, shift, strict=True)],
        )


class SqueezeWave(GlowVocoder):
    """SqueezeWave (GlowVocoder). See SqueezeWaveConfig.

    ``generate`` runs the stacks with their normalisation folded in, as the authors' inference does; ``forward`` and
    ``inverse``, each other's inverses, run them as they were trained.
    """

    config_class = SqueezeWaveConfig

    def __init__(self, config: SqueezeWaveConfig):
        # the mel as it is
        super().__init__(
            config, Upsampler(UpsampleSpec(n_mels=config.mel.n_mels, scales=()), "nearest"), NormalizedStack
        )

    def stage_condition(self, conditioning: Tensor) -> Tensor:
        return conditioning

    def inverse(self, z: Tensor, mel: Tensor) -> Tensor:
        self.check_fit("z", z, mel, self.config.group)
        stacks, c = self.flow.inverse_stacks(), self.upsampler(mel)

        def run(i: int, x: Tensor, *others: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
            if y is None:
                return stacks[i](x), x, *others
            mu, log_sigma = stacks[i].before_epilogue(x, c).chunk(2, 1)
            return (y - mu) * (-log_sigma).exp(), x, *others

        return self.synthesize(z, run)[:, 0]
