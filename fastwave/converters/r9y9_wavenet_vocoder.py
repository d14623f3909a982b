"""r9y9/wavenet_vocoder, from version 0.2 on: ``WaveNet``, with either of its upsampling networks.

What differs from ours: gate_channels counts filter and gate together; the skip sum is scaled by sqrt(1 / layers), which
goes through the ReLU into the first matrix of the head; a one-hot model reads class 127 first (of 256).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastwave.audio import MelSpec
from fastwave.converters.live import LiveWaveNet
from fastwave.converters.state_dict import Checkpoint, Hparams, expand, make
from fastwave.emphasis import Emphasis
from fastwave.models import WaveNet, WaveNetConfig

__all__ = ["LIVE", "convert"]

NAME = "r9y9/wavenet_vocoder"
PRESET = MelSpec.preset(NAME)

STACK = {
    "stack.front.*": "first_conv.*",
    "stack.conv.{i}.*": "conv_layers.{i}.conv.*",
    "stack.cond.{i}.weight": "conv_layers.{i}.conv1x1c.weight",
    "stack.residual.{i}.*": "conv_layers.{i}.conv1x1_out.*",
    "stack.skip.{i}.*": "conv_layers.{i}.conv1x1_skip.*",
    "stack.head.0.*": "last_conv_layers.1.*",
    "stack.head.1.*": "last_conv_layers.3.*",
}
SPEAKER = {"stack.speaker.{i}.weight": "conv_layers.{i}.conv1x1g.weight"}
SPEAKERS = {"speakers.weight": "embed_speakers.weight"}
CONTEXT = {"upsampler.context.weight": "upsample_net.conv_in.weight"}

SLOPES = {"none": 1.0, "ReLU": 0.0, "LeakyReLU": 0.01}  # of what follows a stage; LeakyReLU has its own negative_slope
DISTRIBUTIONS = {"Logistic": "mixture_of_logistics", "Normal": "mixture_of_gaussians"}
PREEMPHASIS = {"none": 0.0, "inv_preemphasis": 0.85}  # that ``postprocess`` undoes
FIRST_CLASS = 127  # that incremental_forward starts from, whatever the number of classes


def convert(checkpoint: Any, hparams: Hparams) -> WaveNet:
    """A WaveNet from a checkpoint and the flat keys of egs/*/conf/*.json (or the arguments of the peer's class)."""
    return build(Checkpoint(checkpoint), hparams)


def build(checkpoint: Checkpoint, hparams: Hparams, dilations: Sequence[int] | None = None) -> WaveNet:
    """``dilations`` are a live module's; without them, hparams have ``stacks``."""
    layers = checkpoint.count("conv_layers.")
    context_conv = checkpoint.has("upsample_net.conv_in.")
    up_layers = "upsample_net.upsample.up_layers." if context_conv else "upsample_net.up_layers."
    indices = checkpoint.indices(up_layers) or [1] * context_conv  # conv_in has a stage behind it
    stages = {index: f"{up_layers}{index}.weight" for index in indices}

    table = expand(STACK, layers)
    table |= {f"upsampler.stages.{stage}.weight": key for stage, key in enumerate(stages.values())}
    if context_conv:
        table |= CONTEXT
    if checkpoint.has("conv_layers.0.conv1x1g."):
        table |= expand(SPEAKER, layers)
    if checkpoint.has("embed_speakers."):
        table |= SPEAKERS
    checkpoint.check_keys(table)

    sizes = stack_sizes(checkpoint, hparams, dilations)
    sizes |= head_sizes(checkpoint, hparams)
    sizes |= upsampler_sizes(checkpoint, hparams, stages, context_conv)
    sizes |= dict(emphasis=emphasis(hparams))
    model = make(WaveNet, WaveNetConfig(**sizes))
    checkpoint.load(model, table)
    with torch.no_grad():
        model.stack.head[0].weight.mul_(math.sqrt(1 / layers))
    return model


def stack_sizes(checkpoint: Checkpoint, hparams: Hparams, dilations: Sequence[int] | None) -> dict:
    layers = checkpoint.count("conv_layers.")
    gates, residual, kernel = checkpoint.shape("conv_layers.0.conv.weight", 3)
    skip, _, _ = checkpoint.shape("conv_layers.0.conv1x1_skip.weight", 3)
    hparams.check(layers=layers, residual_channels=residual, gate_channels=gates, skip_out_channels=skip)
    hparams.check(kernel_size=kernel)
    sizes = dict(residual_channels=residual, gate_channels=gates // 2, skip_channels=skip, kernel_size=kernel)
    if checkpoint.has("conv_layers.0.conv1x1g."):
        _, sizes["speaker_channels"], _ = checkpoint.shape("conv_layers.0.conv1x1g.weight", 3)
        hparams.check(gin_channels=sizes["speaker_channels"])
    elif hparams.get("gin_channels", -1) > 0:
        hparams.check(gin_channels=-1)
    if checkpoint.has("embed_speakers."):
        sizes["speakers"], _ = checkpoint.shape("embed_speakers.weight", 2)
        hparams.check(n_speakers=sizes["speakers"])
    if dilations is None:
        stacks = hparams.require("stacks", 1)
        if stacks < 1 or layers % stacks:
            raise ValueError(f"hparams stacks must divide the {layers} layers of the tensors, got {stacks}")
        dilations = [2**i for i in range(layers // stacks)] * stacks
    return sizes | dict(dilations=dilations)


def head_sizes(checkpoint: Checkpoint, hparams: Hparams) -> dict:
    """Input, output distribution, and what its loss needs."""
    channels, _, _ = checkpoint.shape("last_conv_layers.3.weight", 3)
    one_hot = checkpoint.shape("first_conv.weight", 3)[1] > 1
    hparams.check(out_channels=channels, scalar_input=not one_hot)
    hparams.check(input_type="mulaw-quantize" if one_hot else "raw")  # samples of "mulaw" would need expanding
    sizes = dict(train_log_scale_min=hparams.get("log_scale_min", -9.0))  # egs/*/conf
    if one_hot:
        hparams.check(quantize_channels=channels)
        silence = (channels - 1) // 2  # the peer's synthesis starts from it
        return sizes | dict(distribution="softmax", classes=channels, one_hot_input=True, initial_class=silence)
    default = "Normal" if channels == 2 else "Logistic"
    distribution = hparams.choose("output_distribution", default, DISTRIBUTIONS)
    if distribution == "Normal" and channels == 2:
        return sizes | dict(distribution="gaussian")
    if channels % 3:
        raise ValueError(f"out_channels must be a multiple of 3, or 2 of a Normal, got {channels} of a {distribution}")
    classes = hparams.get("quantize_channels", 65536)
    return sizes | dict(distribution=DISTRIBUTIONS[distribution], components=channels // 3, classes=classes)


def upsampler_sizes(checkpoint: Checkpoint, hparams: Hparams, stages: Mapping[int, str], context_conv: bool) -> dict:
    """The upsampling network, and the front end whose frames it takes. ``stages``: places in up_layers, and keys."""
    _, bands, _ = checkpoint.shape("conv_layers.0.conv1x1c.weight", 3)
    hparams.check(cin_channels=bands, num_mels=bands, upsample_conditional_features=bool(stages))
    hop = length(hparams, "hop_size", "frame_shift_ms")
    if not stages:  # the peer's synthesis repeats each frame
        hop = hop or hparams.require("hop_size", 1)
        return dict(mel=mel_spec(hparams, bands, hop), upsampler="nearest", upsample_scales=(), cond_repeat=hop)
    shapes = [checkpoint.shape(key, 4) for key in stages.values()]
    scales, freq_kernel = [shape[3] // 2 for shape in shapes], shapes[0][2]
    if hop not in (None, math.prod(scales)):
        raise ValueError(f"hparams hop_size must be {math.prod(scales)}, the product of the scales, got {hop}")
    params = hparams.section("upsample_params")
    params.check(upsample_scales=scales, cin_channels=bands, freq_axis_kernel_size=freq_kernel)
    params.choose("mode", "nearest", ["nearest"])
    hparams.check(upsample_net="ConvInUpsampleNetwork" if context_conv else "UpsampleNetwork")
    context = hparams.get("cin_pad", 0)
    if context_conv:
        context = checkpoint.shape("upsample_net.conv_in.weight", 3)[2] // 2
        hparams.check(cin_pad=context)
    return dict(
        mel=mel_spec(hparams, bands, math.prod(scales)),
        upsampler="stretched",
        upsample_scales=scales,
        upsample_freq_kernel=freq_kernel,
        upsample_slope=slope(params, list(stages), "upsample_activation"),
        upsample_context=context,
        upsample_context_conv=context_conv,
    )


def emphasis(hparams: Hparams) -> Emphasis:
    """What is done to speech whose mel has been taken."""
    gain = hparams.get("global_gain_scale", 1.0)
    name = hparams.choose("postprocess", "none", PREEMPHASIS) if hparams.get("postprocess", "") else "none"
    return Emphasis(coefficient=PREEMPHASIS[name], gain=gain if gain > 0 else 1.0)


def slope(params: Hparams, places: Sequence[int], name: str) -> float:
    """The slope of the activation ``name`` behind each stage; their places in up_layers tell whether there is one."""
    activation = params.choose(name, "none", SLOPES)
    spacing = 2 if activation == "none" else 3  # repetition, convolution, and the activation
    if list(places) != [1 + spacing * stage for stage in range(len(places))]:
        raise ValueError(
            f"hparams {name} must be the one that the tensors have room for, with convolutions at"
            f" {', '.join(map(str, places))} of up_layers, got {activation}"
        )
    return params.section(f"{name}_params").get("negative_slope", SLOPES[activation])


def length(hparams: Hparams, name: str, milliseconds: str) -> int | None:
    """Samples, given as such or in milliseconds; where neither is positive, None."""
    samples = hparams.get(name, -1)
    if samples <= 0:
        samples = int(hparams.get(milliseconds, -1.0) / 1000 * hparams.get("sample_rate", PRESET.sample_rate))
    return samples if samples > 0 else None


def mel_spec(hparams: Hparams, bands: int, hop: int) -> MelSpec:
    """The peer's front end. The statistics that it normalises with are in none of its JSON files or checkpoints.

    They may be given as ``mel_mean`` and ``mel_std``, a number per band each.
    """
    hparams.choose("window", "hann", ["hann"])
    return dataclasses.replace(
        PRESET,
        sample_rate=hparams.get("sample_rate", PRESET.sample_rate),
        n_fft=hparams.get("fft_size", PRESET.n_fft),
        hop_length=hop,
        win_length=length(hparams, "win_length", "win_length_ms") or PRESET.win_length,
        n_mels=bands,
        fmin=hparams.get("fmin", PRESET.fmin),
        fmax=hparams.get("fmax", PRESET.fmax),
        mean=hparams.get("mel_mean", []) or None,
        std=hparams.get("mel_std", []) or None,
    )


class LiveR9y9(LiveWaveNet):
    """``WaveNet`` of r9y9/wavenet_vocoder."""

    class_name = "WaveNet"
    keys = ("first_conv.", "conv_layers.0.conv1x1_skip.", "last_conv_layers.3.")

    def build(self) -> WaveNet:
        network = getattr(self.module, "upsample_net", None)
        hparams: dict[str, Any] = {"output_distribution": getattr(self.module, "output_distribution", None)}
        if network is None:
            hparams["hop_size"] = 1  # c comes at the sample rate
        else:
            layers = getattr(network, "upsample", network).up_layers
            for layer in layers:
                if isinstance(layer, nn.ReLU | nn.LeakyReLU):
                    negative = {"negative_slope": getattr(layer, "negative_slope", 0.0)}
                    params = dict(upsample_activation="LeakyReLU", upsample_activation_params=negative)
                    hparams["upsample_params"] = params
            if hasattr(network, "indent"):  # what it trims at either end, in samples
                scales = [layer.kernel_size[1] // 2 for layer in layers if isinstance(layer, nn.Conv2d)]
                hparams["cin_pad"] = network.indent // math.prod(scales)
        dilations = [layer.conv.dilation[0] for layer in self.module.conv_layers]
        return build(Checkpoint(self.module.state_dict()), Hparams(hparams), dilations)

    @torch.no_grad()
    def incremental_forward(
        self,
        initial_input: Tensor | None = None,
        c: Tensor | None = None,
        g: Tensor | None = None,
        T: int | None = 100,
        test_inputs: Tensor | None = None,
        tqdm: Callable[[range], Iterable[int]] = lambda x: x,
        softmax: bool = True,
        quantize: bool = True,
        log_scale_min: float = -50.0,
    ) -> Tensor:
        """Samples one waveform per row of c. Arguments, defaults and shapes are the peer's.

        Args:
            initial_input: (batch, channels, 1) or (batch, 1, channels), what the first step reads: zero where None, or
                class 127 of a one-hot model.
            c: (batch, cin_channels, frames, with the context that the upsampling network eats).
            g: speaker ids (batch,) or (batch, 1), or vectors (batch, gin_channels) or (batch, gin_channels, 1).
            T: samples, as many as c makes.
            test_inputs: (batch, channels, n) or (batch, n, channels), what the first n steps read in place of what
                they drew.
            tqdm: wraps the range that is gone through: of blocks of samples here, of samples in the peer.
            softmax, quantize: of a one-hot model. Without ``quantize`` its probabilities come back, or with ``softmax``
                off too its logits; they cannot be fed back here, so test_inputs must go on to the end.
            log_scale_min: unused, as in the peer.

        Returns:
            (batch, 1, T), or one-hot (batch, classes, T) of a one-hot model.

        Raises:
            ValueError: an argument of another shape, or one that the kernels cannot follow, as said above.
        """
        self.refresh()
        columns = self.upsample(c)
        batch, _, available = columns.shape
        forced = None if test_inputs is None else self.steps("test_inputs", test_inputs, batch)
        steps = max(T or 0, 0 if forced is None else forced.shape[1])
        if steps != available:
            raise ValueError(f"T must be {available}, the samples of c, got {steps}")
        one_hot = self.model.config.one_hot_input
        if one_hot and quantize and not softmax:
            raise ValueError("softmax must be True with quantize, got False: a class is drawn from probabilities")
        if one_hot and not quantize and (forced is None or forced.shape[1] < steps):
            raise ValueError("quantize must be True where test_inputs end before T, got False")

        first = self.first_input(initial_input, batch) if forced is None else forced[:, 0]
        noise = self.noise(batch, steps)
        drawn, parameters = self.sample(
            noise,
            columns,
            first=first,
            g=None if g is None else self.speaker_vectors(g, batch),
            forced=None if forced is None else self.amplitudes(forced[:, 1:]),
            return_parameters=forced is not None,
            progress=tqdm,
        )
        if one_hot and not quantize:
            return parameters.softmax(1) if softmax else parameters
        if forced is not None:  # where the op hands back what it was forced to, the peer hands back what it drew
            over = slice(forced.shape[1] - 1)
            redrawn = self.model.distribution.sample(parameters[..., over], noise[..., over])
            drawn[:, over] = redrawn.clamp(-1, 1)
        if one_hot:
            classes = torch.searchsorted(self.table, drawn)
            return F.one_hot(classes, len(self.table)).transpose(1, 2).contiguous().float()
        return drawn[:, None]

    def steps(self, name: str, x: Tensor, batch: int) -> Tensor:
        """What the network reads, (batch, steps, channels), from that or from (batch, channels, steps)."""
        channels = self.model.stack.spec.in_channels
        shape = tuple(x.shape)
        if x.ndim == 3 and shape[1] == channels:
            x = x.transpose(1, 2)
        if x.ndim != 3 or x.shape[2] != channels or x.shape[0] not in (1, batch) or not x.shape[1]:
            raise ValueError(f"{name} must be ({batch}, {channels}, steps), got {shape}")
        return x.float().expand(batch, -1, -1)

    def first_input(self, initial_input: Tensor | None, batch: int) -> Tensor:
        """(batch, channels), what the first step reads."""
        if initial_input is not None:
            steps = self.steps("initial_input", initial_input, batch)
            if steps.shape[1] == 1:
                return steps[:, 0]
            raise ValueError(f"initial_input must be one step, got {steps.shape[1]}")
        channels = self.model.stack.spec.in_channels
        first = torch.zeros(batch, channels)
        if self.model.config.one_hot_input:
            if channels <= FIRST_CLASS:
                raise ValueError(f"initial_input must be given to a model of {channels} classes, got None")
            first[:, FIRST_CLASS] = 1
        return first

    def amplitudes(self, x: Tensor) -> Tensor:
        """(batch, steps, channels) as the waveform that the op takes, (batch, steps)."""
        if not self.model.config.one_hot_input:
            return x[..., 0]
        classes = x.argmax(2)
        if not torch.equal(x, F.one_hot(classes, x.shape[2]).to(x)):
            raise ValueError("test_inputs must be one-hot, got other values than a 1 among 0s")
        return self.table[classes]

    def speaker_vectors(self, g: Tensor, batch: int) -> Tensor:
        """The op's g, (batch, layers, 2 gate_channels)."""
        width = self.model.config.speaker_channels
        given = g.shape
        g = g.flatten(1)[..., None] if g.is_floating_point() else g.flatten()
        if width and (len(g) not in (1, batch) or (g.is_floating_point() and g.shape[1] != width)):
            raise ValueError(f"g must be ids ({batch},) or vectors ({batch}, {width}), got {tuple(given)}")
        return self.model.global_vectors(g).expand(batch, -1, -1)


LIVE = (LiveR9y9,)
