"""What each part of a stack takes: python -m benchmarks.parts --case NAME [--dtype D] [--threads N] [--repeats N]

A stack is timed in turns with stacks that lack a part; what they take less is the part's time. Beside it stands the
least that the part's reading of weights and its arithmetic take at the machine's ceilings, each by itself. A sampler is
timed in turns with a loop that reads as many bytes as it must read for a sample, and does nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from benchmarks.cases import CASES
from benchmarks.ceilings import measure_ceilings
from benchmarks.run import SECONDS, _sized, _time
from benchmarks.workloads import Sampler, Stacks
from fastwave import _cpu
from fastwave.ops.custom import capsule
from fastwave.ops.gated_stack import GatedStackSpec
from fastwave.ops.rounding import DTYPES

__all__ = ["PARTS", "main", "measure"]

WHOLE, REST, READING = "whole", "front, newest tap, gate, residual", "reading alone"
PANEL = 16  # rows of weights that the kernels multiply at once: the least skip that a stack has

PARTS: dict[str, Callable[[GatedStackSpec], GatedStackSpec]] = {
    "conditioning": lambda spec: dataclasses.replace(spec, cond_channels=0, cond_repeat=1),
    "past taps": lambda spec: dataclasses.replace(spec, kernel_size=1),
    "skip": lambda spec: dataclasses.replace(spec, skip_channels=PANEL),
    "head": lambda spec: dataclasses.replace(spec, head_channels=spec.head_channels[-1:], head_relu=(True,)),
}


def measure(workload: Sampler | Stacks, *, dtype: str, threads: int, repeats: int, seconds: float) -> dict[str, dict]:
    """Microseconds of a sample of all rows.

    Returns:
        For the whole and each part what it ``took``, and the least of ``reading`` and of ``arithmetic``; for "reading
        alone" only the first.
    """
    torch.set_num_threads(threads)
    ceilings = measure_ceilings(threads)
    loads = {WHOLE: workload} | {name: workload.of(change) for name, change in PARTS.items()}
    _, samples = _sized(lambda n: workload.kernels(n, dtype, threads), workload.unit, seconds)
    runs = {name: load.kernels(samples, dtype, threads) for name, load in loads.items()}
    streamed = workload.work(dtype).streamed
    with ThreadPoolExecutor(threads) as pool:
        if streamed:
            runs[READING] = _reading(pool, threads, streamed, workload.batch, samples)
        elapsed: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, run in runs.items():
                elapsed[name].append(_time(run))
    takes = {name: {"took": 1e6 * statistics.median(times) / samples} for name, times in elapsed.items()}
    for name, load in loads.items():
        reading, arithmetic = ceilings.least(load.work(dtype), workload.batch)
        takes[name] |= {"reading": 1e6 * reading, "arithmetic": 1e6 * arithmetic}
    whole = takes[WHOLE]
    parts = {name: {key: whole[key] - takes[name][key] for key in whole} for name in PARTS}
    rest = {key: whole[key] - sum(part[key] for part in parts.values()) for key in whole}
    alone = {READING: takes[READING]} if streamed else {}
    return {WHOLE: whole, **parts, REST: rest, **alone}


def _reading(pool: ThreadPoolExecutor, threads: int, streamed: float, batch: int, samples: int) -> Callable[[], object]:
    """Reads on all threads, as often as there are samples, what a sample must read; threads share rows, or a row."""
    share = streamed if batch >= threads else streamed / threads
    weights = [torch.ones(math.ceil(share / 512) * 128) for _ in range(threads)]
    return lambda: list(pool.map(lambda own: _cpu.read(capsule(own), samples), weights))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parts", description="Times the parts of a stack.")
    names = [case.name for case in CASES]
    parser.add_argument("--case", choices=names, required=True, help="a sampler, or stacks by themselves")
    parser.add_argument("--dtype", choices=DTYPES, help="only this type")
    parser.add_argument("--threads", type=int, help="only so many")
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each (15)")
    options = parser.parse_args(arguments)
    case = CASES[names.index(options.case)]
    workload = case.make()
    if not isinstance(workload, Sampler | Stacks):
        parser.error(f"--case must be a sampler, or stacks by themselves, got {options.case!r}")
    for threads in (options.threads,) if options.threads else case.threads:
        for dtype in (options.dtype,) if options.dtype else case.dtypes:
            takes = measure(workload, dtype=dtype, threads=threads, repeats=options.repeats, seconds=SECONDS)
            print(f"{case.name} {dtype} {threads}: share, microseconds a sample, the least of reading, of arithmetic")
            for name, times in takes.items():
                share = times["took"] / takes[WHOLE]["took"]
                columns = " ".join(f"{time:8.2f}" for time in times.values())
                print(f"    {name:34} {share:5.0%} {columns}", flush=True)


if __name__ == "__main__":
    main()
