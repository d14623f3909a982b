"""tianrengao/SqueezeWave: ``SqueezeWave``, with its batch normalisation.

What differs from ours: one convolution conditions all layers of a coupling; the hop is 256, whatever the configuration
says.
"""

from __future__ import annotations

from typing import Any

from fastwave.converters.nvidia_waveglow import coupling_sizes, flat, flow_sizes, front_end
from fastwave.converters.state_dict import Checkpoint, Hparams, expand, make
from fastwave.models import SqueezeWave, SqueezeWaveConfig

__all__ = ["LIVE", "convert"]

NAME = "tianrengao/SqueezeWave"
LIVE = ()
SECTIONS = ("squeezewave_config", "data_config", "train_config")  # of a config_a*_c*.json
HOP = 256

COUPLING = {
    "front.*": "start.*",
    "norm.{i}.*": "in_layers.{i}.0.*",
    "norm.{i}.running_mean": "in_layers.{i}.0.running_mean",
    "norm.{i}.running_var": "in_layers.{i}.0.running_var",
    "depthwise.{i}.*": "in_layers.{i}.1.*",
    "conv.{i}.weight": "in_layers.{i}.2.weight",
    "conv.{i}.bias": "in_layers.{i}.2.bias + cond_layer.bias[{i}/{layers}]",
    "cond.{i}.weight": "cond_layer.weight[{i}/{layers}]",
    "residual.{i}.*": "res_skip_layers.{i}.*",
    "head.0.*": "end.*",
}


def convert(checkpoint: Any, hparams: Hparams) -> SqueezeWave:
    """A SqueezeWave; hparams are those of a configuration file, or of its squeezewave_config alone.

    The tensors tell the sizes.
    """
    checkpoint = Checkpoint(checkpoint, inside=("model", "state_dict"))
    hparams = flat(hparams, SECTIONS)
    table = {}
    for k in range(checkpoint.count("convinv.")):
        layers = checkpoint.count(f"WN.{k}.in_layers.")
        coupling = {ours: theirs.replace("{layers}", str(layers)) for ours, theirs in COUPLING.items()}
        table |= expand(coupling, layers, ours=f"flow.couplings.{k}.", theirs=f"WN.{k}.")
        table[f"flow.convs.{k}.weight"] = f"convinv.{k}.conv.weight"
    checkpoint.check_keys(table)

    _, bands, _ = checkpoint.shape("WN.0.cond_layer.weight", 3)
    channels, _, kernel = checkpoint.shape("WN.0.in_layers.0.1.weight", 3)
    config = SqueezeWaveConfig(
        mel=front_end(hparams, NAME, bands, HOP),
        **flow_sizes(checkpoint, hparams, "n_audio_channel"),
        **coupling_sizes(checkpoint, hparams, channels, kernel),
    )
    model = make(SqueezeWave, config)
    checkpoint.load(model, table)
    return model
