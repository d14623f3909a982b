"""What the processor can do at best, measured; and the least work that a result takes, counted."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from fastwave import _cpu
from fastwave.ops.custom import capsule
from fastwave.ops.gated_stack import GatedStackSpec
from fastwave.ops.rounding import DTYPES

__all__ = ["Ceilings", "Cores", "Work", "computing", "measure_ceilings", "sampler_work", "stack_work"]

USUAL_CACHES = {"l2": 2**20, "l3": 2**25}  # bytes, where the system does not tell
OPERATIONS = 2 * 10**8  # of a thread's trial
TRIALS = 30  # of a millisecond or a few; the best counts: whatever else the machine does only lowers a ceiling
TRANSCENDENTAL = 20  # floating-point operations of an exp, a tanh or a sigmoid
GROUP = 8  # rows of a batch that wavenet_sample takes in lockstep, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Of so many cores that work at once.

    Attributes:
        threads: the number of cores.
        operations: of all together per second, in each type; a multiply-add is two.
        caches: bytes that each cache holds, from the second level on; that is one core's own, the others are shared.
        bandwidth: bytes read per second from each of them, and from memory, by all cores together.
    """

    threads: int
    operations: dict[str, float]
    caches: dict[str, int]
    bandwidth: dict[str, float]

    def limit(self, work: Work, batch: int = 1) -> float:
        """Samples per second of a batch at the least, in the kernels' order: rows are split over the threads first.

        Reading and arithmetic may overlap fully, so the longer one counts; each weight is read once for all rows in
        lockstep, and from the fastest cache that can keep it.
        """
        return batch / max(self.least(work, batch))

    def least(self, work: Work, batch: int = 1) -> tuple[float, float]:
        """Seconds of a sample of every row of a batch that reading and that arithmetic take, each by itself."""
        rows = min(GROUP, -(-batch // self.threads))
        groups = -(-batch // rows)
        teams = min(groups, self.threads)  # each has its share of the machine, and reads all the weights
        arithmetic = rows * sum(amount / self.operations[dtype] for dtype, amount in work.operations.items())
        turns = teams * -(-groups // teams)
        return turns * self._reading(work.streamed, teams), turns * arithmetic

    def _reading(self, left: float, teams: int) -> float:
        """The least time in which all cores together read so many bytes, which a team keeps in its caches."""
        elapsed = 0.0
        for level, bandwidth in self.bandwidth.items():
            own = level == next(iter(self.caches))
            held = self.caches.get(level, math.inf) * (self.threads / teams if own else 1)
            elapsed += min(left, held) / bandwidth
            left -= min(left, held)
        return elapsed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Of one sample, on average.

    Attributes:
        operations: in each type.
        streamed: bytes of weights that cannot wait to be read for later samples too.
    """

    operations: dict[str, float]
    streamed: float = 0

    def __add__(self, other: Work) -> Work:
        operations = Counter(self.operations)
        operations.update(other.operations)
        return Work(operations=dict(operations), streamed=self.streamed + other.streamed)

    def __truediv__(self, samples: int) -> Work:
        """Of one sample, where this is the work of so many."""
        operations = {dtype: amount / samples for dtype, amount in self.operations.items()}
        return Work(operations=operations, streamed=self.streamed / samples)


def find_caches() -> dict[str, int]:
    """Bytes of the first core's caches, {"l2": ..., "l3": ...}, as Linux lists them."""
    caches = {}
    for size in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")):
        level = int((size.parent / "level").read_text())
        if level > 1:
            caches[f"l{level}"] = int(size.read_text().strip().removesuffix("K")) * 2**10
    return caches or USUAL_CACHES


class Cores:
    """Threads, each on a core of its own."""

    def __init__(self, threads: int):
        self.threads, self.pool, self.barrier = threads, ThreadPoolExecutor(threads), threading.Barrier(threads)
        self.cores = list(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

    def seconds(self, run: Callable[[int], object]) -> float:
        """From the first start of run(thread), on all of them at once, to the last end."""
        on = random.sample(self.cores, self.threads) if self.threads <= len(self.cores) else [None] * self.threads
        starts, ends = zip(*self.pool.map(functools.partial(self._timed, run), range(self.threads), on), strict=True)
        return max(ends) - min(starts)

    def _timed(self, run: Callable[[int], object], thread: int, core: int | None) -> tuple[float, float]:
        if core is not None:  # threads that wake each other are often left on one core for as short a time as this
            os.sched_setaffinity(0, {core})
        self.barrier.wait()
        start = time.perf_counter()
        run(thread)
        return start, time.perf_counter()


def computing(dtype: str, operations: float) -> tuple[Callable[[int], object], int]:
    """A run of about so many operations, multiply-adds on registers, and how many they are."""
    a_round = 2 * _cpu.peak(1, dtype)
    rounds = round(operations / a_round)
    return lambda thread: _cpu.peak(rounds, dtype), rounds * a_round


def measure_ceilings(threads: int) -> Ceilings:
    """Measures so many cores at once: multiply-adds on registers, and reads of half of each cache and of far more."""
    cores = Cores(threads)

    def reading(size: int) -> tuple[Callable[[int], object], float]:
        data, times = [torch.ones(size // 512 * 128) for _ in range(threads)], max(1, 2**28 // size)
        return lambda thread: _cpu.read(capsule(data[thread]), times), data[0].nbytes * times

    caches = find_caches()
    first, *shared = caches
    sizes = {first: caches[first] // 2} | {level: caches[level] // 2 // threads for level in shared}
    sizes["memory"] = 8 * max(caches.values()) // threads
    measures = {dtype: computing(dtype, OPERATIONS) for dtype in DTYPES}
    measures |= {level: reading(size) for level, size in sizes.items()}
    best = dict.fromkeys(measures, 0.0)
    for _ in range(TRIALS):  # in turns, since another machine may have a share of a core for a while
        for name, (run, amount) in measures.items():
            best[name] = max(best[name], threads * amount / cores.seconds(run))
    operations, bandwidth = ({name: best[name] for name in names} for names in (DTYPES, sizes))
    return Ceilings(threads=threads, operations=operations, caches=caches, bandwidth=bandwidth)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product:
    """A weight matrix: its shape, its type, columns per sample, and how old in samples its input is."""

    rows: int
    depth: int
    dtype: str = "float32"
    rate: float = 1
    delay: float = 0

    @property
    def size(self) -> int:
        """Multiply-adds for a column."""
        return self.rows * self.depth

    @property
    def bytes(self) -> int:
        """Of the weights; an int8 row has a float32 scale."""
        return self.size * getattr(torch, self.dtype).itemsize + (4 * self.rows if self.dtype == "int8" else 0)


def stack_products(spec: GatedStackSpec) -> list[Product]:
    """The matrix products of a gated stack, sample by sample, each at the lowest rate that gives the result.

    front: R in_channels width. Each layer, in the stack's type: k taps of 2G R (or k of R and one of 2G R, where
    separable); conditioning, 2G cond_channels once per column of c; residual, R G, but in a last layer that only the
    skip leaves; skip, S G. Head: as its widths say.
    """
    r, g, s, dtype = spec.residual_channels, spec.gate_channels, spec.skip_channels, spec.dtype
    products = [Product(rows=r, depth=spec.in_channels * spec.front_width)]
    for layer, dilation in enumerate(spec.dilations):
        tap = dict(rows=r, depth=1) if spec.separable else dict(rows=2 * g, depth=r, dtype=dtype)
        products += [Product(delay=j * dilation, **tap) for j in range(spec.kernel_size)]
        if spec.separable:
            products.append(Product(rows=2 * g, depth=r, dtype=dtype))
        columns = dict(rate=1 / spec.cond_repeat, delay=math.inf)
        products.append(Product(rows=2 * g, depth=spec.cond_channels, dtype=dtype, **columns))
        if layer + 1 < spec.layers or not s:
            products.append(Product(rows=r, depth=g, dtype=dtype))
        products.append(Product(rows=s, depth=g, dtype=dtype))
    widths = [s or r, *spec.head_channels]
    return products + [Product(rows=o, depth=i) for i, o in itertools.pairwise(widths)]


def stack_work(spec: GatedStackSpec) -> Work:
    """Work of gated_stack: the multiply-adds of stack_products, and the transcendental functions.

    Those are the two of every gate and, in a flow, one exp per output, in float32; additions, biases, scales and
    rounding ride along with the multiply-adds.
    """
    exps = 0 if spec.epilogue == "none" else spec.out_channels
    operations = Counter(float32=TRANSCENDENTAL * (2 * spec.layers * spec.gate_channels + exps))
    for product in stack_products(spec):
        operations[product.dtype] += 2 * product.size * product.rate
    return Work(operations=dict(operations))


def sampler_work(spec: GatedStackSpec) -> Work:
    """Work of wavenet_sample for one utterance.

    A product whose input is d samples old can be made for d samples at once, and so reads its weights for every d-th;
    conditioning, for any number at once. What reads the sample before, or the current column, reads them for every
    sample. A one-hot input picks one column of the front. The draw is left out.
    """
    one_channel = dataclasses.replace(spec, in_channels=1)
    streamed = sum(product.bytes / max(1, product.delay) for product in stack_products(one_channel))
    return dataclasses.replace(stack_work(one_channel), streamed=streamed)
