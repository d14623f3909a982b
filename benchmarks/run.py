"""Times the cases: python -m benchmarks.run --list | --case NAME | --all [--threads N] [--json FILE]"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.cases import CASES, Case
from benchmarks.ceilings import Ceilings, measure_ceilings
from fastwave import _cpu

__all__ = ["RESULTS", "main", "measure", "provenance", "slug"]

RESULTS = Path(__file__).parent / "results"
REPEATS = 7
SECONDS = 0.5  # of a timed run, about


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _sized(make: Callable[[int], Callable[[], object]], unit: int, seconds: float) -> tuple[Callable[[], object], int]:
    """A run that takes about so long, warm, and its number of samples."""
    units = 1
    while True:
        run = make(units * unit)
        elapsed = min(_time(run), _time(run))
        if elapsed > 0.4 * seconds:
            return run, units * unit
        units = max(units + 1, int(units * min(10, seconds / elapsed)))


def _summary(samples: int, elapsed: list[float], sample_rate: int) -> dict:
    rates = [samples / e for e in elapsed]
    median = samples / statistics.median(elapsed)
    return {
        "samples_per_second": median,
        "min": min(rates),
        "max": max(rates),
        "real_time_factor": median / sample_rate,
        "samples": samples,
    }


def measure(case: Case, ceilings: Ceilings, *, threads: int, repeats: int, seconds: float) -> dict:
    """Times a case and its baseline in turns, ``repeats`` runs of about ``seconds`` each.

    Returns:
        For ``kernels`` and ``baseline``: median, min and max of the samples per second, the median as a multiple of
        real time, and samples per run. Beside them ``limit``, samples per second of so many cores at their ceilings;
        ``share`` of it that the kernels reach; their ``ratio`` to the baseline; ``latency`` in seconds, where the case
        is one of latency.

    Raises:
        FileNotFoundError: the case's voice is not there.
    """
    workload = case.make()
    kernels, samples = _sized(lambda n: workload.kernels(n, threads), workload.unit, seconds)
    baseline, baseline_samples = _sized(workload.baseline, workload.unit, seconds)
    elapsed, baseline_elapsed = [], []
    for _ in range(repeats):
        elapsed.append(_time(kernels))
        baseline_elapsed.append(_time(baseline))
    ours = _summary(samples, elapsed, workload.sample_rate)
    theirs = _summary(baseline_samples, baseline_elapsed, workload.sample_rate)
    limit = threads / ceilings.seconds(workload.work)
    return {
        "about": case.about,
        "kernels": ours,
        "baseline": theirs,
        "latency": workload.unit / ours["samples_per_second"] if case.latency else None,
        "limit": limit,
        "share": ours["samples_per_second"] / limit,
        "ratio": ours["samples_per_second"] / theirs["samples_per_second"],
    }


def _cpu_model() -> str:
    """The processor's name: Linux has it in /proc/cpuinfo, where platform often knows the architecture alone."""
    try:
        match = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this working tree, marked where it has changes; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def provenance(threads: int, ceilings: Ceilings) -> dict:
    """Where, with what and when a result was measured."""
    return {
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "isa": _cpu.isa(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
        "threads": threads,
        "dtype": "float32",
        "ceilings": dataclasses.asdict(ceilings),
    }


def slug(result: dict) -> str:
    """A file name for a result: one per processor, instruction set and number of threads."""
    machine, threads = result["machine"], result["threads"]
    words = f"{machine['cpu']} {machine['isa']} {threads} thread{'s' if threads > 1 else ''}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _line(name: str, case: dict) -> str:
    ours, theirs = case["kernels"], case["baseline"]
    return (
        f"{name:18} {ours['samples_per_second']:10,.0f} samples/s ({ours['min']:,.0f} to {ours['max']:,.0f})"
        f"  {ours['real_time_factor']:.2f} x real time  {case['share']:.0%} of the limit {case['limit']:,.0f}"
        f"  {case['ratio']:.1f} x PyTorch ({theirs['samples_per_second']:,.0f})"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Times the kernels on this machine.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="name the cases")
    what.add_argument("--case", choices=[case.name for case in CASES], help="time one case")
    what.add_argument("--all", action="store_true", help="time all cases, and write benchmarks/results/MACHINE.json")
    parser.add_argument("--threads", type=int, default=1, help="of the kernels and of PyTorch (1)")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"timed runs of each case ({REPEATS})")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    options = parser.parse_args(arguments)
    if options.threads < 1 or options.repeats < 1:
        parser.error("--threads and --repeats must be at least 1")
    if options.list:
        for case in CASES:
            print(f"{case.name:18} {case.about}")
        return

    torch.set_num_threads(options.threads)
    ceilings = measure_ceilings()
    result = provenance(options.threads, ceilings) | {"cases": {}, "skipped": {}}
    bandwidth = ", ".join(f"{level} {value / 1e9:.0f} GB/s" for level, value in ceilings.bandwidth.items())
    cpu, isa = result["machine"]["cpu"], result["machine"]["isa"]
    print(f"{cpu}, {isa}: one core does {ceilings.operations / 1e9:.0f} GFLOP/s, reads from {bandwidth}")
    for case in CASES:
        if options.case not in (None, case.name):
            continue
        try:
            measured = measure(case, ceilings, threads=options.threads, repeats=options.repeats, seconds=SECONDS)
        except FileNotFoundError as error:
            if options.case:
                parser.error(str(error))
            print(f"{case.name:18} skipped: {error}")
            result["skipped"][case.name] = str(error)
            continue
        result["cases"][case.name] = measured
        print(_line(case.name, measured), flush=True)
    path = options.json or (RESULTS / f"{slug(result)}.json" if options.all else None)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
