"""lmnt-com/diffwave: ``DiffWave``, conditional or not.

What differs from ours: the gate's half of the rows comes before the filter's; conditioning has a bias of its own;
residual and skip are one product; the skip sum is divided by sqrt(layers).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from fastwave.audio import MelSpec
from fastwave.converters.state_dict import Checkpoint, Hparams, expand, make
from fastwave.models import DiffWave, DiffWaveConfig

__all__ = ["LIVE", "convert"]

NAME = "lmnt-com/diffwave"
LIVE = ()

LAYER = "residual_layers.{i}."
MODEL = {
    "step_embedding.projection1.*": "diffusion_embedding.projection1.*",
    "step_embedding.projection2.*": "diffusion_embedding.projection2.*",
    "stack.front.*": "input_projection.*",
    "stack.conv.{i}.weight": f"{LAYER}dilated_conv.weight[1/2] | {LAYER}dilated_conv.weight[0/2]",
    "stack.conv.{i}.bias": f"{LAYER}dilated_conv.bias[1/2] | {LAYER}dilated_conv.bias[0/2]",
    "stack.residual.{i}.*": f"{LAYER}output_projection.*[0/2]",
    "stack.skip.{i}.*": f"{LAYER}output_projection.*[1/2]",
    "stack.head.0.*": "skip_projection.*",
    "stack.head.1.*": "output_projection.*",
}
COND = f"{LAYER}conditioner_projection"
CONDITIONING = {
    "stack.conv.{i}.bias": f"{LAYER}dilated_conv.bias[1/2] + {COND}.bias[1/2]"
    f" | {LAYER}dilated_conv.bias[0/2] + {COND}.bias[0/2]",
    "stack.cond.{i}.weight": f"{COND}.weight[1/2] | {COND}.weight[0/2]",
    "upsampler.stages.0.*": "spectrogram_upsampler.conv1.*",
    "upsampler.stages.1.*": "spectrogram_upsampler.conv2.*",
}
CYCLE = 10  # dilation_cycle_length in params.py
SLOPE = 0.4  # of the leaky ReLU behind each upsampling convolution


def convert(checkpoint: Any, hparams: Hparams) -> DiffWave:
    """A DiffWave with the full schedule; ``with_schedule("fast")`` has the other.

    hparams are those of params.py; what they lack comes from the ``params`` in the checkpoint, then from params.py.
    """
    checkpoint = Checkpoint(checkpoint, inside=("model",))
    params = checkpoint.beside.get("params", {})
    hparams = Hparams((params if isinstance(params, Mapping) else {}) | hparams.values)
    layers = checkpoint.count("residual_layers.")
    unconditional = not checkpoint.has("spectrogram_upsampler.")
    hparams.check(unconditional=unconditional)
    table = keys(layers, unconditional)
    checkpoint.check_keys(table)

    channels, _, _ = checkpoint.shape("input_projection.weight", 3)
    _, _, kernel = checkpoint.shape("residual_layers.0.dilated_conv.weight", 3)
    step_channels, _ = checkpoint.shape("diffusion_embedding.projection1.weight", 2)
    cycle = hparams.get("dilation_cycle_length", CYCLE)
    if cycle < 1:
        raise ValueError(f"hparams dilation_cycle_length must be at least 1, got {cycle}")
    hparams.check(residual_layers=layers, residual_channels=channels)
    config = DiffWaveConfig(
        **(repeated(hparams) if unconditional else upsampled(checkpoint, hparams)),
        dilations=[2 ** (i % cycle) for i in range(layers)],
        residual_channels=channels,
        kernel_size=kernel,
        step_channels=step_channels,
        noise_schedule=hparams.get("noise_schedule", list(DiffWaveConfig.noise_schedule)),
        fast_schedule=hparams.get("inference_noise_schedule", list(DiffWaveConfig.fast_schedule)),
        unconditional=unconditional,
    )
    model = make(DiffWave, config)
    checkpoint.load(model, table)
    with torch.no_grad():
        model.stack.head[0].weight /= math.sqrt(layers)
    return model


def keys(layers: int, unconditional: bool) -> dict[str, str]:
    """The table of a model."""
    steps = " | ".join(f"residual_layers.{i}.diffusion_projection.*" for i in range(layers))
    return expand((MODEL if unconditional else MODEL | CONDITIONING) | {"step_projection.*": steps}, layers)


def upsampled(checkpoint: Checkpoint, hparams: Hparams) -> dict:
    """The front end and the upsampler of a conditional model."""
    shapes = [checkpoint.shape(f"spectrogram_upsampler.conv{i}.weight", 4) for i in (1, 2)]
    scales = [shape[3] // 2 for shape in shapes]
    _, bands, _ = checkpoint.shape("residual_layers.0.conditioner_projection.weight", 3)
    hparams.check(n_mels=bands, hop_samples=math.prod(scales))
    return dict(
        mel=front_end(hparams, bands, math.prod(scales)),
        upsampler="transposed",
        upsample_scales=scales,
        upsample_freq_kernel=shapes[0][2],
        upsample_slope=SLOPE,
    )


def repeated(hparams: Hparams) -> dict:
    """The front end of an unconditional model, whose mels are not read."""
    mel = front_end(hparams, hparams.get("n_mels", 80), hparams.get("hop_samples", 256))
    return dict(mel=mel, upsampler="nearest", upsample_scales=(mel.hop_length,))


def front_end(hparams: Hparams, n_mels: int, hop: int) -> MelSpec:
    rate, n_fft = hparams.get("sample_rate", 22_050), hparams.get("n_fft", 1024)
    sizes = dict(sample_rate=rate, n_fft=n_fft, hop_length=hop, win_length=4 * hop, n_mels=n_mels, fmax=rate / 2)
    return dataclasses.replace(MelSpec.preset(NAME), **sizes)
