"""What every model shares: a configuration, a folder on disk, and the checks of what a caller hands in.

A parallel model, which makes all samples at once, says in ``stages`` which gated stacks it runs, and in ``synthesize``
what happens between them. That is enough for its reference (ParallelModel.generate) and for the kernels (Vocoder).
"""

from __future__ import annotations

import abc
import dataclasses
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastwave import audio, checkpoint, noise
from fastwave.audio import MelSpec
from fastwave.emphasis import PLAIN, Emphasis
from fastwave.layers import GatedStack
from fastwave.ops.upsample import UpsampleSpec

__all__ = ["ConditionedConfig", "Model", "ParallelModel", "Run", "Stage", "load"]

MODELS: dict[str, type[Model]] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionedConfig:
    """What a model makes its conditioning of; UpsampleSpec says what most fields mean.

    Attributes:
        mel: the front end whose mels the model understands.
        upsampler: "transposed", "stretched" or "nearest" (fastwave.layers.Upsampler).
        upsample_scales, cond_repeat: frames are upsampled by each scale, then each column is repeated: together
            hop_length.
        emphasis: of the speech that the model learns. Noise, samples and densities are of what it learns; what
            ``generate`` returns is speech.
    """

    mel: MelSpec
    upsampler: str = "transposed"
    upsample_scales: Sequence[int]
    upsample_freq_kernel: int = 3
    upsample_slope: float = 0.4
    upsample_context: int = 0
    upsample_context_conv: bool = False
    cond_repeat: int = 1
    emphasis: Emphasis = PLAIN

    def __post_init__(self) -> None:
        object.__setattr__(self, "upsample_scales", tuple(self.upsample_scales))
        columns = self.upsample_spec().columns_per_frame * self.cond_repeat
        if columns != self.mel.hop_length:
            hop = self.mel.hop_length
            raise ValueError(f"upsample_scales and cond_repeat must multiply to hop_length {hop}, got {columns}")

    def upsample_spec(self) -> UpsampleSpec:
        return UpsampleSpec(
            n_mels=self.mel.n_mels,
            scales=self.upsample_scales,
            freq_kernel=self.upsample_freq_kernel,
            slope=self.upsample_slope,
            context=self.upsample_context,
            context_conv=self.upsample_context_conv,
        )


class Model(nn.Module):
    """Base of the models. A subclass names its ``config_class`` and its noise, and implements ``generate``."""

    config_class: type
    noise_kinds: tuple[str, ...]

    def __init_subclass__(cls) -> None:
        MODELS[cls.__name__] = cls

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.emphasis = getattr(config, "emphasis", PLAIN)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes config.json and model.safetensors into ``folder``."""
        config = checkpoint.config_to_dict(self.config)
        checkpoint.save_folder(folder, type(self).__name__, config, self.state_dict())

    @property
    def context(self) -> int:
        """Frames of mel on either side that the upsampler eats."""
        return self.upsampler.spec.context

    @property
    def condition_rate(self) -> int:
        """Conditioning columns to a frame of mel."""
        return self.upsampler.spec.columns_per_frame

    @property
    def condition_reach(self) -> tuple[int, int]:
        """Frames before a frame, and after it, that its conditioning depends on."""
        spec = self.upsampler.spec
        return spec.reach, 0 if spec.causal else spec.reach

    @property
    def noise_rate(self) -> int:
        """Columns of noise to a frame of mel."""
        return self.config.mel.hop_length

    def with_context(self, mel: Tensor) -> Tensor:
        """mel with its edge frames replicated where the upsampler eats context."""
        return F.pad(mel, (self.context, self.context), "replicate") if self.context else mel

    def check_fit(self, name: str, x: Tensor, mel: Tensor, group: int = 1) -> None:
        """ValueError unless mel is (batch, n_mels, frames + 2 context), and ``x``, called ``name``, has its samples.

        These are (batch, frames * hop_length), or with so many to a column (batch, group, columns).
        """
        for argument, value in ((name, x), ("mel", mel)):
            if not isinstance(value, Tensor):
                raise ValueError(f"{argument} must be a tensor, got {type(value).__name__}")
        spec, context = self.config.mel, 2 * self.context
        more = f" + {context} of context" if context else ""
        if mel.ndim != 3 or mel.shape[1] != spec.n_mels or mel.shape[2] <= context:
            raise ValueError(f"mel must be (batch, {spec.n_mels}, frames{more}), got {tuple(mel.shape)}")
        frames = mel.shape[2] - context
        samples = frames * spec.hop_length
        shape = (len(mel), samples) if group == 1 else (len(mel), group, samples // group)
        if x.shape != shape:
            raise ValueError(f"{name} must be {shape}, as mel has {frames} frames{more}, got {tuple(x.shape)}")

    def condition(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Conditioning columns of mel (batch, n_mels, frames), (batch, channels, columns).

        With ``lengths``, the frames of each row, every row is upsampled alone and zeros follow: an upsampler that saw
        the padding would leak it into the row's last columns.
        """
        if lengths is None:
            return self.upsampler(self.with_context(mel))
        batch, _, frames = mel.shape
        if lengths.shape != (batch,) or lengths.is_floating_point() or lengths.min() < 1 or lengths.max() > frames:
            raise ValueError(f"lengths must be {batch} integers from 1 to {frames}, got {lengths.tolist()}")
        rows = [self.condition(mel[row : row + 1, :, :length]) for row, length in enumerate(lengths.tolist())]
        columns = frames * rows[0].shape[2] // int(lengths[0])
        return torch.cat([F.pad(row, (0, columns - row.shape[2])) for row in rows])

    def noise(self, mel: Tensor, noise_tensor: Tensor | None, seed: int) -> Tensor:
        """The caller's noise, checked, or that of the seed: (batch, noise channels, frames * noise_rate)."""
        audio.check_mel(mel, self.config.mel)
        batch, _, frames = mel.shape
        shape = (batch, len(self.noise_kinds), frames * self.noise_rate)
        if noise_tensor is None:
            return noise.draw(self.noise_kinds, seed, batch, 0, shape[2]).to(mel)
        if not isinstance(noise_tensor, Tensor):
            raise ValueError(f"noise must be a tensor, got {type(noise_tensor).__name__}")
        own = (shape[0], shape[2]) if shape[1] == 1 else shape
        if tuple(noise_tensor.shape) not in (own, shape):
            raise ValueError(f"noise must be {own}, got {tuple(noise_tensor.shape)}")
        if not torch.isfinite(noise_tensor).all():
            raise ValueError("noise must be finite, got NaN or infinity")
        return noise_tensor.to(mel).reshape(shape)

    def speech(self, samples: Tensor, lengths: Tensor | None) -> Tensor:
        """Speech of the samples that the model made, (batch, frames * hop_length); zeros after ``lengths`` frames."""
        wave = self.emphasis.undo(samples)
        if lengths is None:
            return wave
        end = lengths * self.config.mel.hop_length
        return wave.masked_fill(torch.arange(wave.shape[1], device=wave.device) >= end[:, None], 0)


def check_temperature(temperature: float) -> None:
    """ValueError for one that noise cannot be scaled by."""
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")


def as_it_is(conditioning: Tensor) -> Tensor:
    """The condition of a stage that reads the model's conditioning as it is."""
    return conditioning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One use of a gated stack in a parallel model.

    Attributes:
        stack: or what has its spec, weights and call; several stages may share one, whose weights are then packed once.
        group: samples that a column of the stage stands for.
        condition: the stage's conditioning from the model's (batch, channels, columns), of any part of the utterance
            that begins and ends at a column of the stage; None: the stage has none.
        u: (1, layers, residual_channels), the op's.
        reverse: the stage runs backwards in time.
    """

    stack: GatedStack
    group: int = 1
    condition: Callable[[Tensor], Tensor] | None = as_it_is
    u: Tensor | None = None
    reverse: bool = False


# run(i, x, *others, y=None) -> (output, x, *others): stage i on x (batch, channels, columns), and on what its epilogue
# transforms, y. The columns of ``others`` belong to those of x. What comes back belongs together likewise; in a stream
# it comes later than what went in, by the columns that the stage looks ahead.
Run = Callable[..., tuple[Tensor, ...]]


class ParallelModel(Model, abc.ABC):
    """Base of the models that make all samples at once. A subclass implements ``stages`` and ``synthesize``."""

    @abc.abstractmethod
    def stages(self) -> list[Stage]:
        """The stacks in the order of use."""

    @abc.abstractmethod
    def synthesize(self, noise: Tensor, run: Run) -> Tensor:
        """noise (batch, noise channels, columns) to a waveform (batch, 1, samples).

        Between the stages only what treats every column by itself: the noise may be a part of an utterance's.
        """

    def reference_run(self, conditioning: Tensor, samples: Tensor | None = None) -> Run:
        """``run`` in plain PyTorch, differentiable, on the columns of ``condition`` and rows of so many samples."""
        stages = self.stages()

        def run(i: int, x: Tensor, *others: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
            stage = stages[i]
            c = None if stage.condition is None else stage.condition(conditioning)
            n = None if samples is None else samples // stage.group
            return stage.stack(x, c, u=stage.u, y=y, lengths=n, reverse=stage.reverse), x, *others

        return run

    @torch.inference_mode()
    def generate(
        self,
        mel: Tensor,
        *,
        noise: Tensor | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """A waveform from a mel in plain PyTorch: the reference of the kernels.

        Args:
            mel: (batch, n_mels, frames).
            noise: the latent, in the layout of ``forward``'s (see the model); from ``seed`` where None.
            temperature: factor on the noise.
            lengths: (batch,) frames of each row; zeros after them.

        Returns:
            (batch, frames * hop_length).
        """
        check_temperature(temperature)
        noise = self.noise(mel, noise, seed) * temperature
        conditioning = self.condition(mel, lengths)
        samples = None if lengths is None else lengths * self.config.mel.hop_length
        return self.speech(self.synthesize(noise, self.reference_run(conditioning, samples))[:, 0], lengths)


def load(folder: str | os.PathLike) -> Model:
    """The model that ``save`` wrote into ``folder``, in float32 on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: a file is corrupt, names an unknown model, or its tensors do not fit its configuration.
    """
    name, config, tensors = checkpoint.load_folder(folder)
    if name not in MODELS:
        raise ValueError(f"{folder} holds a {name!r}; known models are {', '.join(MODELS)}")
    model = MODELS[name](checkpoint.config_from_dict(MODELS[name].config_class, config))
    try:
        model.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    except RuntimeError as error:
        raise ValueError(f"{folder} does not fit its configuration: {' '.join(str(error).split())}") from None
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{folder} has non-finite values in {key}")
    return model.eval()
