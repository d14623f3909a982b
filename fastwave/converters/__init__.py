"""Models of public implementations as ours: their checkpoints (convert), and their live modules (accelerate).

One file per repository: a table of names and how its hyper-parameters map to ours. state_dict.py has what they share,
live.py what accelerate() hands back. A new one is a file and a line of SOURCES.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from fastwave.converters import (
    bogihsu_wg_wavenet,
    kan_bayashi_parallel_wavegan,
    ksw0306_clarinet,
    ksw0306_flowavenet,
    lmnt_diffwave,
    nvidia_waveglow,
    r9y9_wavenet_vocoder,
    tianrengao_squeezewave,
)
from fastwave.converters.live import Live
from fastwave.converters.state_dict import read_hparams
from fastwave.models import Model

__all__ = ["SOURCES", "accelerate", "convert"]

PEERS = (
    bogihsu_wg_wavenet,
    kan_bayashi_parallel_wavegan,
    ksw0306_clarinet,
    ksw0306_flowavenet,
    lmnt_diffwave,
    nvidia_waveglow,
    r9y9_wavenet_vocoder,
    tianrengao_squeezewave,
)
SOURCES = {module.NAME: module for module in PEERS}

PathOrTensors = str | os.PathLike | Mapping[str, Any]


def convert(
    checkpoint: PathOrTensors | Mapping[str, PathOrTensors],
    source: str,
    hparams: str | os.PathLike | Mapping[str, Any] | None = None,
) -> Model:
    """A model of fastwave.models with the weights of a public implementation.

    Args:
        checkpoint: a file of torch.save or a .safetensors file, or a state dict; either may hold it under
            ``state_dict``, or where the source's own files do. Keys may begin with ``module.``; weight norm may be
            there in its old or its new form, or folded. Where a model needs two files: ``{"student": ..., "teacher":
            ...}``, ``{"generator": ..., "stats": ...}``.
        source: one of SOURCES, by the name of the repository.
        hparams: the hyper-parameters in its own names: a JSON or YAML file, or a dict. Sizes come from the tensors;
            what both tell must agree.

    Returns:
        The model in float32, in evaluation mode. Its MelSpec is the source's own front end.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: a YAML or HDF5 file without the package that reads it.
        ValueError: keys are missing or unexpected; a tensor is not finite, not of floats or of another shape; hparams
            lack something or contradict the tensors; the file is damaged, or holds more than tensors and plain values.
    """
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    return SOURCES[source].convert(checkpoint, read_hparams(hparams)).eval()


def accelerate(module: nn.Module, *, dtype: str = "float32", threads: int | None = None) -> Live:
    """An object that has the sampling method of a live module, with its name, arguments and result, on the kernels.

    Modules are known by the name of their class and the keys of their state dict; their package is not imported. What
    changes in the module's weights counts from the next call on (fastwave.converters.live.Live). The module may be on
    any device; the arguments of the method must be on the CPU, as its result is. Noise comes from torch's global
    generator, so torch.manual_seed governs it, but all at once and not step by step as in the peers: the same seed
    makes another waveform there.

    Args:
        module: the peer's, not wrapped in anything (of a DataParallel, its ``module``).
        dtype, threads: as in fastwave.Vocoder.

    Raises:
        ValueError: the module is none that is known, or something in it has no counterpart here; an argument is none of
            those said above.
    """
    known = {f"{name}'s {live.class_name}": live for name, peer in SOURCES.items() for live in peer.LIVE}
    for live in known.values():
        if live.recognises(module):
            return live(module, dtype, threads)
    raise ValueError(f"module must be {' or '.join(known)}, got {type(module).__module__}.{type(module).__qualname__}")
