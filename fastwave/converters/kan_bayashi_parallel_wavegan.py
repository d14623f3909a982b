"""kan-bayashi/ParallelWaveGAN: ``ParallelWaveGANGenerator``.

What differs from ours: gate_channels counts filter and gate together; the skip sum is scaled by sqrt(1 / layers), which
goes through the ReLU into the first matrix of the head; mels are normalised by statistics in a file of their own.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastwave.audio import MelSpec
from fastwave.converters.r9y9_wavenet_vocoder import slope
from fastwave.converters.state_dict import Checkpoint, Hparams, expand, make
from fastwave.models import ParallelWaveGAN, ParallelWaveGANConfig

__all__ = ["LIVE", "convert"]

NAME = "kan-bayashi/ParallelWaveGAN"
PRESET = MelSpec.preset(NAME)
LIVE = ()

TABLE = {
    "stack.front.*": "first_conv.*",
    "stack.conv.{i}.*": "conv_layers.{i}.conv.*",
    "stack.cond.{i}.weight": "conv_layers.{i}.conv1x1_aux.weight",
    "stack.residual.{i}.*": "conv_layers.{i}.conv1x1_out.*",
    "stack.skip.{i}.*": "conv_layers.{i}.conv1x1_skip.*",
    "stack.head.0.*": "last_conv_layers.1.*",
    "stack.head.1.*": "last_conv_layers.3.*",
    "upsampler.context.weight": "upsample_net.conv_in.weight",
}
UP_LAYERS = "upsample_net.upsample.up_layers."  # repetitions, convolutions, and activations in turn


def convert(checkpoint: Any, hparams: Hparams) -> ParallelWaveGAN:
    """A generator; ``{"generator": ..., "stats": ...}`` has its statistics too, as ``statistics`` reads them.

    hparams are those of config.yml.
    """
    stats = None
    if isinstance(checkpoint, Mapping) and set(checkpoint) == {"generator", "stats"}:
        checkpoint, stats = checkpoint["generator"], checkpoint["stats"]
    if stats is None:
        message = "stats are not given: mels must be normalised by the statistics of the data that the model learned"
        warnings.warn(message, stacklevel=3)
    if hparams.get("global_gain_scale", 1.0) != 1.0:
        message = "global_gain_scale is not applied: the model makes, and has mels of, waveforms scaled by it"
        warnings.warn(message, stacklevel=3)
    hparams.choose("generator_type", "ParallelWaveGANGenerator", ["ParallelWaveGANGenerator"])
    generator = hparams.section("generator_params")

    checkpoint = Checkpoint(checkpoint, inside=("model", "generator"))
    layers, stages = checkpoint.count("conv_layers."), checkpoint.indices(UP_LAYERS) or [1]
    table = expand(TABLE, layers)
    table |= {f"upsampler.stages.{stage}.weight": f"{UP_LAYERS}{index}.weight" for stage, index in enumerate(stages)}
    checkpoint.check_keys(table)
    sizes = stack_sizes(checkpoint, generator) | upsampler_sizes(checkpoint, generator, stages)
    mel = mel_spec(checkpoint, hparams, math.prod(sizes["upsample_scales"]), stats)
    model = make(ParallelWaveGAN, ParallelWaveGANConfig(mel=mel, **sizes))
    checkpoint.load(model, table)
    with torch.no_grad():
        model.stack.head[0].weight.mul_(math.sqrt(1 / layers))
    return model


def stack_sizes(checkpoint: Checkpoint, hparams: Hparams) -> dict:
    layers = checkpoint.count("conv_layers.")
    gates, residual, kernel = checkpoint.shape("conv_layers.0.conv.weight", 3)
    skip, _, _ = checkpoint.shape("conv_layers.0.conv1x1_skip.weight", 3)
    hparams.check(layers=layers, residual_channels=residual, gate_channels=gates, skip_channels=skip)
    hparams.check(kernel_size=kernel, in_channels=1, out_channels=1)
    stacks = hparams.require("stacks", 1)
    if stacks < 1 or layers % stacks:
        raise ValueError(f"hparams stacks must divide the {layers} layers of the tensors, got {stacks}")
    return dict(
        residual_channels=residual,
        gate_channels=gates // 2,
        skip_channels=skip,
        kernel_size=kernel,
        dilations=[2**i for i in range(layers // stacks)] * stacks,
        causal=hparams.get("use_causal_conv", False),
    )


def upsampler_sizes(checkpoint: Checkpoint, hparams: Hparams, stages: Sequence[int]) -> dict:
    """``stages``: the places of the convolutions in up_layers."""
    shapes = [checkpoint.shape(f"{UP_LAYERS}{index}.weight", 4) for index in stages]
    scales, freq_kernel = [shape[3] // 2 for shape in shapes], shapes[0][2]
    taps, causal = checkpoint.shape("upsample_net.conv_in.weight", 3)[2], hparams.get("use_causal_conv", False)
    if not causal and taps % 2 == 0:
        raise ValueError(f"hparams use_causal_conv must be True, as in the tensors, whose conv_in has {taps} taps")
    context = taps - 1 if causal else taps // 2
    hparams.check(upsample_net="ConvInUpsampleNetwork", aux_context_window=context)
    params = hparams.section("upsample_params")
    params.check(upsample_scales=scales, freq_axis_kernel_size=freq_kernel)
    params.choose("interpolate_mode", "nearest", ["nearest"])
    return dict(
        upsample_scales=scales,
        upsample_freq_kernel=freq_kernel,
        upsample_slope=slope(params, stages, "nonlinear_activation"),
        upsample_context=context,
    )


def mel_spec(checkpoint: Checkpoint, hparams: Hparams, hop: int, stats: Any) -> MelSpec:
    """The peer's front end, with its statistics; as its LJ Speech recipe has it where hparams say nothing of one."""
    _, bands, _ = checkpoint.shape("conv_layers.0.conv1x1_aux.weight", 3)
    hparams.section("generator_params").check(aux_channels=bands)
    hparams.check(num_mels=bands, hop_size=hop)
    if hparams.get("log_base", 10.0) != 10.0:
        raise ValueError(f"hparams log_base must be 10, got {hparams.values['log_base']}")
    hparams.choose("window", "hann", ["hann"])
    mean, std = (None, None) if stats is None else statistics(stats, bands)
    spec = dataclasses.replace(PRESET, hop_length=hop, n_mels=bands, mean=mean, std=std)
    if "sampling_rate" not in hparams.values:
        return spec
    rate, n_fft = hparams.require("sampling_rate", 1), hparams.require("fft_size", 1)
    return dataclasses.replace(
        spec,
        sample_rate=rate,
        n_fft=n_fft,
        win_length=hparams.get("win_length", n_fft),
        fmin=hparams.get("fmin", 0.0),  # null: all there is
        fmax=hparams.get("fmax", rate / 2),
    )


def statistics(source: str | os.PathLike | Mapping[str, Any], bands: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each band.

    Args:
        source: stats.npy, whose rows they are; stats.h5, or a dict, which have them as ``mean`` and ``scale``.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: stats.h5 without h5py.
        ValueError: something else is in it.
    """
    name = "stats" if isinstance(source, Mapping) else str(source)
    if not isinstance(source, Mapping):
        if not Path(source).is_file():
            raise FileNotFoundError(f"no stats at {source}")
        source = _read_h5(name) if Path(source).suffix in (".h5", ".hdf5") else _read_npy(name)
    try:
        mean, scale = (torch.as_tensor(source[key], dtype=torch.float64) for key in ("mean", "scale"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} must have mean and scale: {error!r}") from None
    for key, values in (("mean", mean), ("scale", scale)):
        if values.shape != (bands,) or not values.isfinite().all():
            got = tuple(values.shape) if values.shape != (bands,) else "NaN or infinity"
            raise ValueError(f"{name}: {key} must be {bands} finite numbers, one per band, got {got}")
    return mean.tolist(), scale.tolist()


def _read_npy(path: str) -> Mapping[str, Any]:
    try:
        rows = np.load(path, allow_pickle=False)
        mean, scale = rows
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise ValueError(f"{path} must be an array (2, bands), mean and scale: {error}") from None
    return {"mean": mean, "scale": scale}


def _read_h5(path: str) -> Mapping[str, Any]:
    try:
        import h5py
    except ModuleNotFoundError:
        raise ModuleNotFoundError("h5py is not installed; pip install 'fastwave[convert]' installs it") from None
    try:
        with h5py.File(path, "r") as file:
            return {key: file[key][()] for key in ("mean", "scale") if key in file}
    except OSError as error:
        raise ValueError(f"{path} must be an HDF5 file with mean and scale: {error}") from None
