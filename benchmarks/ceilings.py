"""What one core can do at best, measured; and the least work that a result takes, counted."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from pathlib import Path

import torch

from fastwave import _cpu
from fastwave.ops.custom import capsule
from fastwave.ops.gated_stack import GatedStackSpec

__all__ = ["Ceilings", "Work", "measure_ceilings", "sampler_work", "stack_work"]

USUAL_CACHES = {"l2": 2**20, "l3": 2**25}  # bytes, where the system does not tell
TRIALS = 50  # of about a millisecond; the best counts: whatever else the machine does only lowers a ceiling
TRANSCENDENTAL = 20  # floating-point operations of an exp, a tanh or a sigmoid
AHEAD = 8  # samples: a tap at least that old is a matrix product over several of them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Of one core, in float32.

    Attributes:
        operations: floating-point operations per second, a multiply-add being two.
        caches: bytes that each cache holds, from the second level on.
        bandwidth: bytes read per second from each of them, and from memory.
    """

    operations: float
    caches: dict[str, int]
    bandwidth: dict[str, float]

    def seconds(self, work: Work) -> float:
        """The least time that the work takes: weights streamed from where they all fit, then the arithmetic."""
        level = next((name for name, size in self.caches.items() if work.weights <= size), "memory")
        return work.streamed / self.bandwidth[level] + work.operations / self.operations


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Of one sample, on average.

    Attributes:
        operations: floating-point operations on data at hand.
        streamed: bytes of weights that are read for this sample alone; the arithmetic on them hides behind the reading.
        weights: bytes of all weights that take turns in the cache.
    """

    operations: float
    streamed: float = 0
    weights: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            operations=self.operations + other.operations,
            streamed=self.streamed + other.streamed,
            weights=self.weights + other.weights,
        )


def find_caches() -> dict[str, int]:
    """Bytes of the first core's caches, {"l2": ..., "l3": ...}, as Linux lists them."""
    caches = {}
    for size in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")):
        level = int((size.parent / "level").read_text())
        if level > 1:
            caches[f"l{level}"] = int(size.read_text().strip().removesuffix("K")) * 2**10
    return caches or USUAL_CACHES


def measure_ceilings() -> Ceilings:
    """Measures this core: multiply-adds on registers, and reads of buffers of half of each cache and of far more."""

    def best(run, amount: float) -> float:
        elapsed = []
        for _ in range(TRIALS):
            start = time.perf_counter()
            run()
            elapsed.append(time.perf_counter() - start)
        return amount / min(elapsed)

    rounds = 10**5
    operations = best(lambda: _cpu.peak(rounds), 2 * _cpu.peak(rounds))
    caches, bandwidth = find_caches(), {}
    buffers = {level: size // 2 for level, size in caches.items()} | {"memory": 8 * max(caches.values())}
    for level, size in buffers.items():
        data, times = torch.ones(size // 512 * 128), max(1, 2**27 // size)
        bandwidth[level] = best(lambda data=data, times=times: _cpu.read(capsule(data), times), data.nbytes * times)
    return Ceilings(operations=operations, caches=caches, bandwidth=bandwidth)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product:
    """A weight matrix: its multiply-adds for a column, columns per sample, and how old in samples its input is."""

    size: int
    rate: float = 1
    delay: float = 0


def stack_products(spec: GatedStackSpec) -> list[Product]:
    """The matrix products of a gated stack, sample by sample, each at the lowest rate that gives the result.

    front: R in_channels width. Each layer: k taps of 2G R (or k of R and one of 2G R, where separable); conditioning,
    2G cond_channels once per column of c; residual, R G, but in a last layer that only the skip leaves; skip, S G.
    Head: as its widths say.
    """
    r, g, s = spec.residual_channels, spec.gate_channels, spec.skip_channels
    products = [Product(size=r * spec.in_channels * spec.front_width)]
    for layer, dilation in enumerate(spec.dilations):
        tap = r if spec.separable else 2 * g * r
        products += [Product(size=tap, delay=j * dilation) for j in range(spec.kernel_size)]
        if spec.separable:
            products.append(Product(size=2 * g * r))
        products.append(Product(size=2 * g * spec.cond_channels, rate=1 / spec.cond_repeat, delay=math.inf))
        if layer + 1 < spec.layers or not s:
            products.append(Product(size=r * g))
        products.append(Product(size=s * g))
    widths = [s or r, *spec.head_channels]
    return products + [Product(size=i * o) for i, o in itertools.pairwise(widths)]


def stack_work(spec: GatedStackSpec) -> Work:
    """Work of gated_stack: the multiply-adds of stack_products, and the transcendental functions.

    Those are the two of every gate and, in a flow, one exp per output; additions, biases and scales ride along with
    the multiply-adds.
    """
    multiply_adds = sum(p.size * p.rate for p in stack_products(spec))
    exps = 0 if spec.epilogue == "none" else spec.out_channels
    functions = 2 * spec.layers * spec.gate_channels + exps
    return Work(operations=2 * multiply_adds + TRANSCENDENTAL * functions)


def sampler_work(spec: GatedStackSpec) -> Work:
    """Work of wavenet_sample for one utterance.

    What waits for the sample before (front, young taps, residual, skip, head) reads its weights for each sample; taps
    at least AHEAD samples old and conditioning are matrix products over several samples. A one-hot input picks one
    column of the front. The draw is left out.
    """
    one_channel = dataclasses.replace(spec, in_channels=1)
    products = stack_products(one_channel)
    streamed = [p for p in products if p.delay < AHEAD]
    operations = stack_work(one_channel).operations - 2 * sum(p.size for p in streamed)
    return Work(
        operations=operations,
        streamed=4 * sum(p.size for p in streamed),
        weights=4 * sum(p.size for p in products),
    )
