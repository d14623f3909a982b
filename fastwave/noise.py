"""Noise from a seed: the same (seed, row, sample) is the same number on every device, in any batch, in any chunking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["draw"]

BLOCK = 1024  # samples that one generator fills


def _block(kinds: Sequence[str], seed: int, row: int, block: int) -> np.ndarray:
    """(channels, BLOCK) float32 from a counter-based generator (Philox) keyed by (seed, row), at counter ``block``."""
    key = np.array([seed, row], np.uint64)  # a list would become float64 where seed takes 64 bits
    generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, block]))
    out = np.empty((len(kinds), BLOCK), np.float32)
    for channel, kind in zip(out, kinds, strict=True):
        if kind == "normal":
            generator.standard_normal(out=channel, dtype=np.float32)
        else:
            generator.random(out=channel, dtype=np.float32)
            np.clip(channel, 2**-24, 1 - 2**-24, out=channel)  # open at both ends: their logarithms are taken
    return out


def draw(kinds: Sequence[str], seed: int, batch: int, start: int, samples: int) -> Tensor:
    """Samples [start, start + samples) of the noise of ``seed``, (batch, len(kinds), samples) float32 on the CPU.

    ``kinds`` names each channel: "normal" (standard normal) or "uniform" (in (0, 1)).
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    out = np.empty((batch, len(kinds), samples), np.float32)
    for block in range(start // BLOCK, -(-(start + samples) // BLOCK)):
        first = max(start, block * BLOCK)
        last = min(start + samples, (block + 1) * BLOCK)
        for row in range(batch):
            values = _block(kinds, seed, row, block)
            out[row, :, first - start : last - start] = values[:, first - block * BLOCK : last - block * BLOCK]
    return torch.from_numpy(out)
