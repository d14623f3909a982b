"""project: what the layers of a gated stack make of their conditioning, for several calls that read the same.

    A_l c + b_l + g_l       l = 1..L, in the letters of fastwave.ops.gated_stack

In a diffusion, say, the mel is the same in every step. A call of gated_stack that is given this in place of c and g
gives the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastwave import _cpu
from fastwave.ops.custom import argument_schema, arguments, capsule, define, require_all_cpu
from fastwave.ops.gated_stack import GatedStackSpec

__all__ = ["project"]


def project(c: Tensor, weights: Tensor, spec: GatedStackSpec, *, g: Tensor | None = None, threads: int = 1) -> Tensor:
    """A_l c + b_l + g_l of every layer; other arguments as of gated_stack.

    Args:
        c: (batch, cond_channels, columns), or (batch, bands, columns, group).

    Returns:
        (batch, panels, columns, 16), in the order in which the kernel reads it: what it is good for is gated_stack
        alone, which takes a window of its columns, too.

    Raises:
        ValueError: as gated_stack; or the stack has no conditioning.
    """
    require_all_cpu({"c": c, "weights": weights}, g=g)
    return torch.ops.fastwave.project(c, weights, g, threads=threads, **arguments(spec))


def _project(c, weights, g, *, threads, **spec):
    out = _fake_project(c, weights, g, threads=threads, **spec)
    _cpu.project(spec, c=capsule(c), weights=capsule(weights), g=capsule(g), out=capsule(out), threads=threads)
    return out


def _fake_project(c, weights, g, *, threads, **spec):
    if c.dim() not in (3, 4):
        raise ValueError(f"c must be (batch, {spec['cond_channels']}, columns), got {tuple(c.shape)}")
    panels = len(spec["dilations"]) * 2 * -(-spec["gate_channels"] // 16)
    return c.new_empty(c.shape[0], panels, c.shape[2], 16)


define(
    "project",
    f"(Tensor c, Tensor weights, Tensor? g, *, int threads, {argument_schema(GatedStackSpec)}) -> Tensor",
    cpu=_project,
    fake=_fake_project,
)
