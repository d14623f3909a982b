"""The least time that a GPU can take: its ceilings, measured, and the sampler's path, from what the probes say."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time

import torch

from benchmarks.ceilings import GROUP, Work
from fastwave.ops.gated_stack import GatedStackSpec

__all__ = ["Device", "Pipeline", "measure_device"]

PROBED = 256 * 128  # multiply-adds of the product that the probes time
TRIALS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """Attributes:
    operations: per second, in each type, of PyTorch's matrix product; a multiply-add is two.
    bandwidth: bytes that a copy reads and writes per second.
    """

    operations: dict[str, float]
    bandwidth: float

    def limit(self, work: Work) -> float:
        """Samples per second."""
        return 1 / sum(amount / self.operations[dtype] for dtype, amount in work.operations.items())


def measure_device(size: int = 8192, device: str = "cuda") -> Device:
    """Of matrices (size, size), and of one that is sixteen times as long."""

    def best(run) -> float:
        elapsed = []
        for _ in range(TRIALS):
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            torch.cuda.synchronize()
            elapsed.append(time.perf_counter() - start)
        return min(elapsed)

    operations = {}
    for dtype in ("float32", "bfloat16"):
        a = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
        operations[dtype] = 2 * size**3 / best(lambda a=a: a @ a)
    long = torch.ones(16 * size, size, device=device)
    target = torch.empty_like(long)
    return Device(operations=operations, bandwidth=2 * long.nbytes / best(lambda: target.copy_(long)))


class Pipeline:
    """What the sampler's design takes at the least, if hops and products cost what the probes say.

    On the way of a sample are a hop to each block, the current tap and the residual product of each layer, and the
    head. Beside it a block has all the products of its layers to make, from shared memory, for every group of rows.
    """

    def __init__(self, probes: dict[str, float], spec: GatedStackSpec, plan: dict):
        self.probes, self.spec, self.plan = probes, spec, plan
        self.hop = probes["st_async_hop_ns" if "cluster" in plan["kernel"] else "l2_hop_ns"]

    def product(self, multiply_adds: float, dtype: str, place: str) -> float:
        """Nanoseconds of a block."""
        cycles = self.probes[f"{dtype}_from_{place}_cycles"] * multiply_adds / PROBED
        return cycles * 1000 / self.probes["clock_mhz"]

    def limit(self, batch: int) -> float:
        """Samples per second of so many rows."""
        spec, plan = self.spec, self.plan
        r, g, s = spec.residual_channels, spec.gate_channels, spec.skip_channels
        head = sum(i * o for i, o in itertools.pairwise([s or r, *spec.head_channels]))
        way = plan["stages"] * self.hop + self.product(head, "float32", "shared")
        way += spec.layers * self.product(2 * g * r + r * g, spec.dtype, "registers")

        columns = 1 if batch == 1 else GROUP
        groups = math.ceil(math.ceil(batch / columns) / plan["pipelines"])  # of a pipeline
        layers = math.ceil(spec.layers / max(1, plan["stages"] - 1))  # of a block
        of_layer = 2 * g * (spec.kernel_size * r + spec.cond_channels) + (r + s) * g
        busy = groups * layers * self.product(of_layer, spec.dtype, "shared")
        busy *= columns if spec.dtype == "float32" else 1  # a matrix instruction makes eight columns for one's price
        return batch * 1e9 / max(way, busy)
