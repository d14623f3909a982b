"""BogiHsu/WG-WaveNet: ``Model``.

What differs from ours: one convolution makes residual and skip; the conditionings have biases; of n frames the peer
makes n - 1 times the hop, where we replicate the last one.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from fastwave.audio import MelSpec
from fastwave.converters.nvidia_waveglow import coupling_table
from fastwave.converters.state_dict import Checkpoint, Hparams, expand, make
from fastwave.models import WGWaveNet, WGWaveNetConfig

__all__ = ["LIVE", "convert"]

NAME = "BogiHsu/WG-WaveNet"
LIVE = ()
UPSAMPLER = "upsample.layers."  # a convolution and a ReLU; then a repetition, a convolution and a ReLU in turn


def convert(checkpoint: Any, hparams: Hparams) -> WGWaveNet:
    """A WG-WaveNet; hparams are the attributes of hparams.py, of which up_scale is needed where it is not its own."""
    checkpoint = Checkpoint(checkpoint, inside=("model", "state_dict"))
    flows = checkpoint.count("convinv.")
    first, *stages = checkpoint.indices(UPSAMPLER) or [0]
    table = expand({f"upsampler.convs.{i}.*": f"{UPSAMPLER}{stage}.*" for i, stage in enumerate(stages)})
    table |= expand({"upsampler.pairs.*": f"{UPSAMPLER}{first}.*"})
    table |= expand({"convs.{i}.weight": "convinv.{i}.conv.weight"}, flows)
    table |= coupling_table(checkpoint, ours="coupling.", theirs="WN.")
    table |= coupling_table(checkpoint, ours="post_filter.", theirs="PF.")
    checkpoint.check_keys(table)
    sizes = stack_sizes(checkpoint, hparams) | front_end(checkpoint, hparams, len(stages))
    config = WGWaveNetConfig(flows=flows, sigma=hparams.get("sigma", 0.6), **sizes)
    model = make(WGWaveNet, config)
    checkpoint.load(model, table)
    return model


def stack_sizes(checkpoint: Checkpoint, hparams: Hparams) -> dict:
    """The coupling, and the post-filter, which has its kernel size."""
    group, _, _ = checkpoint.shape("convinv.0.conv.weight", 3)
    _, channels, kernel = checkpoint.shape("WN.in_layers.0.weight", 3)
    _, post_channels, _ = checkpoint.shape("PF.in_layers.0.weight", 3)
    layers, post_layers = (checkpoint.count(f"{part}.in_layers.") for part in ("WN", "PF"))
    hparams.check(n_flows=checkpoint.count("convinv."), n_group=group, n_layers=layers, n_channels=channels)
    hparams.check(kernel_size=kernel, PF_n_layers=post_layers, PF_n_channels=post_channels)
    return dict(
        group=group,
        layers=layers,
        channels=channels,
        post_layers=post_layers,
        post_channels=post_channels,
        kernel_size=kernel,
    )


def front_end(checkpoint: Checkpoint, hparams: Hparams, stages: int) -> dict:
    """The mel and its upsampler, which has so many stages."""
    preset = MelSpec.preset(NAME)
    bands, _, _ = checkpoint.shape(f"{UPSAMPLER}0.weight", 3)
    scales = hparams.get("up_scale", [2, 5, 2, 5, 2])
    if len(scales) != stages or not all(isinstance(scale, int) for scale in scales):
        raise ValueError(f"hparams up_scale must be {stages} integers, as in the tensors, got {scales}")
    hop = math.prod(scales)
    shift = hparams.get("frame_shift", hop)
    if shift != hop:
        raise ValueError(f"hparams frame_shift must be {hop}, the product of up_scale, got {shift}")
    hparams.check(num_mels=bands)
    low, reference = hparams.get("min_level_db", -100.0), hparams.get("ref_level_db", 20.0)
    mel = dataclasses.replace(
        preset,
        n_mels=bands,
        hop_length=hop,
        sample_rate=hparams.get("sample_rate", preset.sample_rate),
        n_fft=2 * (hparams.get("num_freq", 513) - 1),
        win_length=hparams.get("frame_length", preset.win_length),
        preemphasis=hparams.get("preemphasis", preset.preemphasis),
        log_range=(low + reference, reference),
        fmin=hparams.get("fmin", preset.fmin),
        fmax=hparams.get("fmax", preset.fmax),
    )
    return dict(mel=mel, upsample_scales=scales)
