"""ksw0306/FloWaveNet: ``Flowavenet``.

What differs from ours: its WaveNets are those of ksw0306/ClariNet, but that it multiplies what comes out by
exp(3 scale), and that log sigma is before mu in a coupling's. It squeezes the conditioning by two in every block, which
leaves the bits of a phase in reverse.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from fastwave.audio import MelSpec
from fastwave.converters.ksw0306_clarinet import STACK, upsample_table, upsampler_sizes
from fastwave.converters.state_dict import Checkpoint, Hparams, expand, make
from fastwave.layers import GatedStack
from fastwave.models import FloWaveNet, FloWaveNetConfig

__all__ = ["LIVE", "convert"]

NAME = "ksw0306/FloWaveNet"
LIVE = ()

WAVENET = STACK | {"scale": "final_conv.3.scale"}
ACTNORM = {"actnorm.loc": "actnorm.loc", "actnorm.scale": "actnorm.scale"}


def convert(checkpoint: Any, hparams: Hparams) -> FloWaveNet:
    """hparams are the arguments of the peer's class or of its train.py; the tensors tell them all."""
    checkpoint = Checkpoint(checkpoint)
    blocks, flows = checkpoint.count("blocks."), checkpoint.count("blocks.0.flows.")
    layers = checkpoint.count("blocks.0.flows.0.coupling.net.res_blocks.")
    prior_layers = 2  # where there are no priors
    blocks_per_split = max(blocks, hparams.get("block_per_split", blocks))
    if priors := [i for i in range(blocks) if checkpoint.has(f"blocks.{i}.prior.")]:
        prior_layers = checkpoint.count(f"blocks.{priors[0]}.prior.res_blocks.")
        blocks_per_split = priors[0] + 1

    table = upsample_table(checkpoint)
    for i in range(blocks):
        for j in range(flows):
            flow = f"{i}.flows.{j}."
            table |= expand(ACTNORM, ours=flow, theirs=f"blocks.{flow}")
            table |= expand(WAVENET, layers, f"{flow}coupling.", f"blocks.{flow}coupling.net.")
    for i in range(blocks_per_split - 1, blocks - 1, blocks_per_split):
        table |= expand(WAVENET, prior_layers, f"{i}.prior.", f"blocks.{i}.prior.")
    checkpoint.check_keys(table)

    channels, _, kernel_size = checkpoint.shape("blocks.0.flows.0.coupling.net.res_blocks.0.filter_conv.conv.weight", 3)
    _, bands, _ = checkpoint.shape("blocks.0.flows.0.coupling.net.res_blocks.0.filter_conv_c.weight", 3)
    hparams.check(in_channel=1, cin_channel=bands, cin_channels=bands, n_block=blocks, n_flow=flows, n_layer=layers)
    hparams.check(affine=True, block_per_split=blocks_per_split)
    hparams.choose("causal", "no", ["no"])
    upsampler = upsampler_sizes(checkpoint, hparams)
    hop = math.prod(upsampler["upsample_scales"])
    config = FloWaveNetConfig(
        mel=dataclasses.replace(MelSpec.preset(NAME), n_mels=bands, hop_length=hop),
        blocks=blocks,
        flows=flows,
        blocks_per_split=blocks_per_split,
        dilations=[2**n for n in range(layers)],
        prior_dilations=[2**n for n in range(prior_layers)],
        channels=channels,
        kernel_size=kernel_size,
        **upsampler,
    )
    model = make(FloWaveNet, config)
    checkpoint.load(model.upsampler, table)
    checkpoint.load(model.blocks, table)
    for i, block in enumerate(model.blocks, 1):
        for j, flow in enumerate(block.flows):
            scale = table[f"{i - 1}.flows.{j}.coupling.scale"]
            fold(flow.coupling, checkpoint, scale, squeezes=i, log_sigma_first=True)
        if block.prior is not None:
            fold(block.prior, checkpoint, table[f"{i - 1}.prior.scale"], squeezes=i, log_sigma_first=False)
    model.initialized.fill_(True)
    return model


@torch.no_grad()
def fold(stack: GatedStack, checkpoint: Checkpoint, scale: str, squeezes: int, log_sigma_first: bool) -> None:
    """Puts into the head's weights its scale and the order of its halves, into the conditioning's that of its bits."""
    last = stack.head[-1]
    factor = (3 * checkpoint.take(scale, (1, len(last.bias), 1)).double()).exp().flatten()
    shift = len(factor) // 2 if log_sigma_first else 0
    last.weight.copy_((last.weight * factor[:, None, None]).roll(shift, 0))
    last.bias.copy_((last.bias * factor).roll(shift))
    for conv in stack.cond:
        bits = conv.weight.unflatten(1, (-1, *[2] * squeezes))  # (rows, bands, lowest bit, ..., highest bit, 1)
        conv.weight.copy_(bits.permute(0, 1, *range(squeezes + 1, 1, -1), -1).reshape(conv.weight.shape))
