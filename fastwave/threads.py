"""How many threads a call of an op is worth. What they compute does not depend on it."""

from __future__ import annotations

import os

from fastwave.ops.gated_stack import GatedStackSpec

__all__ = ["check_threads", "choose_threads"]

SPLIT_BYTES = 16 * 1024  # of weights that a thread reads between two meetings, for the meeting to pay
SPLIT_PRODUCTS = 200_000  # multiply-adds that it does, likewise
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def check_threads(threads: int | None) -> int | None:
    """threads itself, None or at least 1; else ValueError."""
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    return threads


def choose_threads(threads: int | None, batch: int, spec: GatedStackSpec, *, sampling: bool) -> int:
    """What the caller asked for, or where that is None: rows of the batch side by side, then a row's own products.

    Between two meetings of its threads a sampler reads a layer's weights, and a parallel stack makes 96 columns of one
    layer or of several.
    """
    if threads is not None:
        return threads
    weights = 2 * spec.gate_channels * spec.residual_channels
    per_row = weights * ITEM_BYTES[spec.dtype] // SPLIT_BYTES if sampling else 96 * weights // SPLIT_PRODUCTS
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(processors, batch * max(1, per_row)))
