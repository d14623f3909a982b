"""What a parallel model's stacks reach by themselves: python -m benchmarks.stacks --case NAME [--dtype D] [--threads N]

Each stack that differs from the others in its sizes, on given columns of x and c: the median and the best of several
calls in a row, and what share of the machine's limit these are.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import torch

from benchmarks.cases import CASES
from benchmarks.ceilings import measure_ceilings, stack_work
from benchmarks.workloads import Generation, Run, _typed
from fastwave.models.base import Stage
from fastwave.ops.gated_stack import GatedStackSpec, gated_stack
from fastwave.ops.rounding import DTYPES
from fastwave.pack import pack_gated_stack

__all__ = ["main"]

COLUMNS = 960  # of a first call
SECONDS = 0.2  # that each of the timed ones takes


def call(stage: Stage, spec: GatedStackSpec, columns: int, threads: int) -> Run:
    """One call of a stage's stack."""
    weights = pack_gated_stack(stage.stack.weights(), spec)
    x, c = (torch.randn(1, channels, columns) for channels in (spec.in_channels, spec.cond_channels))
    named = {"c": c[..., : columns // spec.cond_repeat].contiguous()} if spec.cond_channels else {}
    if spec.epilogue != "none":
        named["y"] = torch.randn(1, spec.out_channels, columns)
    return lambda: gated_stack(x, weights, spec, threads=threads, **named)


def _time(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stacks", description=__doc__.splitlines()[0])
    names = [case.name for case in CASES]
    parser.add_argument("--case", choices=names, required=True, help="a parallel model, mel to waveform")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the products (float32)")
    parser.add_argument("--threads", type=int, default=2, help="(2)")
    parser.add_argument("--repeats", type=int, default=15, help="timed calls of each (15)")
    options = parser.parse_args(arguments)
    workload = CASES[names.index(options.case)].make()
    if not isinstance(workload, Generation):
        parser.error(f"--case must be a parallel model, mel to waveform, got {options.case!r}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ceilings = measure_ceilings(options.threads)
    stages = {_typed(stage.stack.spec, options.dtype): stage for stage in workload.model.stages()}
    for spec, stage in stages.items():
        if not spec.layers:
            continue  # a 1x1 convolution
        run = call(stage, spec, COLUMNS, options.threads)
        run()
        columns = COLUMNS * math.ceil(SECONDS / _time(run))
        run = call(stage, spec, columns, options.threads)
        run()
        least = max(ceilings.least(stack_work(spec), 1))
        times = [_time(run) / columns for _ in range(options.repeats)]
        sizes = f"{spec.layers} x {spec.residual_channels}, of {spec.in_channels} + {spec.cond_channels} channels"
        median, best = (f"{1e6 * took:.2f} us ({least / took:.0%})" for took in (statistics.median(times), min(times)))
        print(f"{options.case} {options.dtype} {options.threads}: {sizes}: a column {median}, best {best}", flush=True)


if __name__ == "__main__":
    main()
