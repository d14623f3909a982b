"""NVIDIA/waveglow: ``WaveGlow``.

What differs from ours: one convolution conditions all layers of a coupling (in older checkpoints one each), one makes
residual and skip; the hop is 256, a quarter of the upsampling kernel, whatever the configuration says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from fastwave.audio import MelSpec
from fastwave.converters.state_dict import Checkpoint, Hparams, expand, make
from fastwave.models import WaveGlow, WaveGlowConfig

__all__ = ["LIVE", "convert", "coupling_sizes", "coupling_table", "flat", "flow_sizes", "front_end"]

NAME = "NVIDIA/waveglow"
LIVE = ()
SECTIONS = ("waveglow_config", "data_config", "train_config")  # of config.json


def convert(checkpoint: Any, hparams: Hparams) -> WaveGlow:
    """A WaveGlow; hparams are config.json's, or those of its waveglow_config alone. The tensors tell the sizes."""
    checkpoint = Checkpoint(checkpoint, inside=("model", "state_dict"))
    hparams = flat(hparams, SECTIONS)
    table = expand({"upsampler.*": "upsample.*"})
    for k in range(checkpoint.count("convinv.")):
        table[f"flow.convs.{k}.weight"] = f"convinv.{k}.conv.weight"
        table |= coupling_table(checkpoint, ours=f"flow.couplings.{k}.", theirs=f"WN.{k}.")
    checkpoint.check_keys(table)

    _, bands, upsample = checkpoint.shape("upsample.weight", 3)
    _, channels, kernel = checkpoint.shape("WN.0.in_layers.0.weight", 3)
    config = WaveGlowConfig(
        mel=front_end(hparams, NAME, bands, upsample // 4),
        upsample_kernel=upsample,
        **flow_sizes(checkpoint, hparams, "n_group"),
        **coupling_sizes(checkpoint, hparams, channels, kernel),
    )
    model = make(WaveGlow, config)
    checkpoint.load(model, table)
    return model


def flat(hparams: Hparams, sections: Sequence[str]) -> Hparams:
    """What the sections of a config.json hold, beside what stands outside them."""
    for section in sections:
        hparams = Hparams(hparams.values | hparams.section(section).values)
    return hparams


def coupling_table(checkpoint: Checkpoint, ours: str, theirs: str) -> dict[str, str]:
    """A gated stack from the ``WN`` whose keys begin with ``theirs``."""
    layers = checkpoint.count(f"{theirs}in_layers.")
    cond = "cond_layers.{i}" if checkpoint.has(f"{theirs}cond_layers.") else "cond_layer"
    part = "" if "{i}" in cond else f"[{{i}}/{layers}]"
    table = {
        "front.*": "start.*",
        "conv.{i}.weight": "in_layers.{i}.weight",
        "conv.{i}.bias": f"in_layers.{{i}}.bias + {cond}.bias{part}",
        "cond.{i}.weight": f"{cond}.weight{part}",
        "skip.{i}.*": "res_skip_layers.{i}.*[1/2]",
        "head.0.*": "end.*",
    }
    residual = expand({"residual.{i}.*": "res_skip_layers.{i}.*[0/2]"}, layers - 1, ours, theirs)
    last = expand({f"skip.{layers - 1}.*": f"res_skip_layers.{layers - 1}.*"}, 0, ours, theirs)
    return expand(table, layers, ours, theirs) | residual | last


def flow_sizes(checkpoint: Checkpoint, hparams: Hparams, group: str) -> dict:
    """The flow; ``group`` is the project's name of its group."""
    flows = checkpoint.count("convinv.")
    widths = [checkpoint.shape(f"convinv.{k}.conv.weight", 3)[0] for k in range(flows)]
    sizes = dict(flows=flows, group=widths[0], early_every=flows)
    early = next((k for k in range(flows) if widths[k] != widths[0]), None)
    if early is not None:
        sizes |= dict(early_every=early, early_size=widths[0] - widths[early])
        hparams.check(n_early_every=early, n_early_size=sizes["early_size"])
    hparams.check(**{"n_flows": flows, group: widths[0]})
    return sizes | dict(sigma=hparams.get("sigma", 1.0))


def coupling_sizes(checkpoint: Checkpoint, hparams: Hparams, channels: int, kernel: int) -> dict:
    """The couplings' stacks."""
    layers = checkpoint.count("WN.0.in_layers.")
    hparams.section("WN_config").check(n_layers=layers, n_channels=channels, kernel_size=kernel)
    return dict(layers=layers, channels=channels, kernel_size=kernel)


def front_end(hparams: Hparams, name: str, bands: int, hop: int) -> MelSpec:
    """The preset ``name`` with what hparams say of it."""
    hparams.check(n_mel_channels=bands, hop_length=hop)
    preset = MelSpec.preset(name)
    return dataclasses.replace(
        preset,
        n_mels=bands,
        hop_length=hop,
        sample_rate=hparams.get("sampling_rate", preset.sample_rate),
        n_fft=hparams.get("filter_length", preset.n_fft),
        win_length=hparams.get("win_length", preset.win_length),
        fmin=hparams.get("mel_fmin", preset.fmin),
        fmax=hparams.get("mel_fmax", preset.fmax),
    )
