"""What a second thread costs where there is one core: python -m benchmarks.one_core [--repeats N]

Sampling one utterance with two threads on a single core, in turns with one thread; prints the median of each and
their ratio. A helper without a core to run on should cost next to nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics

import torch

from benchmarks.run import _sized, _time
from benchmarks.workloads import Sampler
from fastwave.models import WaveNetConfig

SECONDS = 1.0  # of a timed run, about


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_core", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each (9)")
    repeats = parser.parse_args().repeats
    if not hasattr(os, "sched_setaffinity"):
        parser.error("needs Linux, to bind the process to one core")
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})  # threads started later inherit it
    torch.set_num_threads(1)
    sampler = Sampler(WaveNetConfig.clarinet())
    _, samples = _sized(lambda n: sampler.kernels(n, "float32", 1), sampler.unit, SECONDS)
    runs = {threads: sampler.kernels(samples, "float32", threads) for threads in (1, 2)}
    elapsed: dict[int, list[float]] = {threads: [] for threads in runs}
    for _ in range(repeats):
        for threads, run in runs.items():
            elapsed[threads].append(_time(run))
    rates = {threads: samples / statistics.median(seconds) for threads, seconds in elapsed.items()}
    print(f"core {core}, {samples:,} samples a run, medians of {repeats}")
    for threads, rate in rates.items():
        print(f"{threads} thread{'s' * (threads > 1)}: {rate:10,.0f} samples/s")
    print(f"ratio: {rates[2] / rates[1]:.2f}")


if __name__ == "__main__":
    main()
