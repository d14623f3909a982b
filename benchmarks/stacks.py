"""What a parallel model's stacks reach by themselves: python -m benchmarks.stacks --case NAME [--dtype D] [--threads N]

Each stack that differs from the others in its sizes, on given columns of x and c, in turns with the machine's limit:
multiply-adds on registers, for as long as the call's own would take at the ceilings, on as many cores. The machine's
other work weighs on both. A share of the medians of these, and one of the best call and the ceilings.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import torch

from benchmarks.cases import CASES
from benchmarks.ceilings import Cores, computing, measure_ceilings, stack_work
from benchmarks.workloads import Generation, Run, _typed
from fastwave.models.base import ParallelModel, Stage
from fastwave.ops.gated_stack import GatedStackSpec, gated_stack
from fastwave.ops.rounding import DTYPES
from fastwave.pack import pack_gated_stack

__all__ = ["main"]

COLUMNS = 480  # of a first call
SECONDS = 0.2  # that each of the timed ones takes


def call(model: ParallelModel, stage: Stage, spec: GatedStackSpec, columns: int, threads: int) -> Run:
    """One call of a stage's stack."""
    weights = pack_gated_stack(stage.stack.weights(), spec)
    x, named = torch.randn(1, spec.in_channels, columns), {}
    if spec.cond_channels:
        mel = model.config.mel
        with torch.inference_mode():
            c = model.condition(torch.randn(1, mel.n_mels, math.ceil(columns * stage.group / mel.hop_length)))
        named["c"] = stage.condition(c)[:, :, : columns // spec.cond_repeat].contiguous()
    if spec.epilogue != "none":
        named["y"] = torch.randn(1, spec.out_channels, columns)
    return lambda: gated_stack(x, weights, spec, threads=threads, **named)


def seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stacks", description=__doc__.splitlines()[0])
    names = [case.name for case in CASES]
    parser.add_argument("--case", choices=names, required=True, help="a parallel model, mel to waveform")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the products (float32)")
    parser.add_argument("--threads", type=int, default=2, help="(2)")
    parser.add_argument("--repeats", type=int, default=25, help="timed calls of each (25)")
    options = parser.parse_args(arguments)
    workload = CASES[names.index(options.case)].make()
    if not isinstance(workload, Generation):
        parser.error(f"--case must be a parallel model, mel to waveform, got {options.case!r}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ceilings, cores = measure_ceilings(options.threads), Cores(options.threads)
    stages = {_typed(stage.stack.spec, options.dtype): stage for stage in workload.model.stages()}
    for spec, stage in stages.items():
        if not spec.layers:
            continue  # a 1x1 convolution
        run = call(workload.model, stage, spec, COLUMNS, options.threads)
        run()
        columns = COLUMNS * math.ceil(SECONDS / seconds(run))
        run = call(workload.model, stage, spec, columns, options.threads)
        run()
        least = columns * max(ceilings.least(stack_work(spec), 1))
        limit, _ = computing(options.dtype, least * ceilings.operations[options.dtype] / options.threads)
        limits, times = zip(*((cores.seconds(limit), seconds(run)) for _ in range(options.repeats)), strict=True)
        median, best = statistics.median(times), min(times)
        sizes = f"{spec.layers} x {spec.residual_channels}, of {spec.in_channels} + {spec.cond_channels} channels"
        print(
            f"{options.case} {options.dtype} {options.threads}: {sizes}: a column {1e6 * median / columns:.2f} us "
            f"({statistics.median(limits) / median:.0%} of the limit in turns), "
            f"best {1e6 * best / columns:.2f} us ({least / best:.0%} of the ceilings)",
            flush=True,
        )


if __name__ == "__main__":
    main()
