"""Times the cases: python -m benchmarks.run --list | --case NAME | --all [--dtype D] [--threads N] [--json] [--save]"""

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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.cases import CASES, Case
from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.workloads import Workload
from fastwave import _cpu
from fastwave.ops.rounding import DTYPES

__all__ = ["RESULTS", "main", "measure", "place", "provenance"]

RESULTS = Path(__file__).parent / "results"
REPEATS = 7
SECONDS = 0.5  # of a timed run, about
PAUSE = 0.05  # seconds before it: threads of the rival before it, PyTorch's or ONNX Runtime's, spin for a while


def _time(run: Callable[[], object]) -> float:
    time.sleep(PAUSE)
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


def measure(workload: Workload, ceilings: Ceilings, *, dtype: str, repeats: int, seconds: float) -> dict:
    """Times a workload and its baselines in turns, ``repeats`` runs of about ``seconds`` each.

    Returns:
        For ``kernels`` and each of ``baselines``: median, min and max of the samples per second, all rows together, the
        median as a multiple of real time, and samples per run. Beside them ``not_measured``: why, for each baseline
        that cannot run here; ``limit``, samples per second of so many cores at their ceilings; ``share`` of it that the
        kernels reach; ``ratios`` of the kernels to each baseline.
    """
    threads, batch = ceilings.threads, workload.batch
    torch.set_num_threads(threads)
    runs = {None: _sized(lambda n: workload.kernels(n, dtype, threads), workload.unit, seconds)}
    not_measured = {}
    for name, make in workload.baselines(threads).items():
        try:
            runs[name] = _sized(make, workload.unit, seconds)
        except (ImportError, RuntimeError) as error:
            not_measured[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    elapsed = {name: [] for name in runs}
    for _ in range(repeats):
        for name, (run, _samples) in runs.items():
            elapsed[name].append(_time(run))
    baselines = {
        name: _summary(batch * samples, elapsed[name], workload.sample_rate) for name, (_, samples) in runs.items()
    }
    ours, limit = baselines.pop(None), ceilings.limit(workload.work(dtype), batch)
    return {
        "kernels": ours,
        "baselines": baselines,
        "not_measured": not_measured,
        "limit": limit,
        "share": ours["samples_per_second"] / limit,
        "ratios": {name: ours["samples_per_second"] / b["samples_per_second"] for name, b in baselines.items()},
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


def provenance() -> dict:
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
    }


def place(result: dict) -> Path:
    """A result's file: a folder per processor and instruction set, a file per case, type and number of threads."""
    folder = re.sub(r"[^a-z0-9]+", "-", f"{result['machine']['cpu']} {result['machine']['isa']}".lower()).strip("-")
    return RESULTS / folder / f"{result['case']}-{result['dtype']}-{result['threads']}.json"


def _line(result: dict) -> str:
    ours, what = result["kernels"], f"{result['case']} {result['dtype']} {result['threads']}"
    ratios = ", ".join(f"{ratio:.2f} x {name}" for name, ratio in result["ratios"].items())
    line = (
        f"{what:28} {ours['samples_per_second']:9,.0f} samples/s ({ours['min']:,.0f} to {ours['max']:,.0f})"
        f"  {ours['real_time_factor']:.2f} x real time  {result['share']:.0%} of the limit {result['limit']:,.0f}"
        f"  {ratios}"
    )
    return "\n".join([line, *(f"    {name}: {why}" for name, why in result["not_measured"].items())])


def _run(case: Case, dtypes: Sequence[str], threads: Sequence[int], repeats: int) -> Iterator[dict]:
    """Results of a case, each with the ceilings of its own minute: other users of a machine's caches come and go."""
    workload = case.make()
    for count in threads:
        for dtype in dtypes:
            ceilings = measure_ceilings(count)
            measured = measure(workload, ceilings, dtype=dtype, repeats=repeats, seconds=SECONDS)
            speed = measured["kernels"]["samples_per_second"]
            yield provenance() | {
                "ceilings": dataclasses.asdict(ceilings),
                "case": case.name,
                "about": case.about,
                "dtype": dtype,
                "threads": count,
                "batch": workload.batch,
                "sample_rate": workload.sample_rate,
                "latency": workload.unit / speed if case.latency else None,
                **measured,
            }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Times the kernels on this machine.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="name the cases, their types and numbers of threads")
    what.add_argument("--case", choices=[case.name for case in CASES], help="time one case")
    what.add_argument("--all", action="store_true", help="time all cases, and save the results")
    parser.add_argument("--dtype", choices=DTYPES, help="only this type")
    parser.add_argument("--threads", type=int, help="only so many, of the kernels and of the baselines")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"timed runs of each ({REPEATS})")
    parser.add_argument("--json", action="store_true", help="print each result as a line of JSON")
    parser.add_argument("--save", action="store_true", help="keep the results in benchmarks/results/")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or (options.threads is not None and options.threads < 1):
        parser.error("--threads and --repeats must be at least 1")
    if options.list:
        for case in CASES:
            print(
                f"{case.name:18} {', '.join(case.dtypes):24} threads {', '.join(map(str, case.threads)):5} {case.about}"
            )
        return

    for case in CASES:
        if options.case not in (None, case.name):
            continue
        # the table's rows, of the types and threads asked for; one case may also be asked for others
        dtypes = [dtype for dtype in case.dtypes if options.dtype in (None, dtype)]
        threads = [count for count in case.threads if options.threads in (None, count)]
        if options.case:
            dtypes, threads = dtypes or [options.dtype], threads or [options.threads]
        try:
            for result in _run(case, dtypes, threads, options.repeats):
                print(json.dumps(result) if options.json else _line(result), flush=True)
                if options.all or options.save:
                    path = place(result)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        except FileNotFoundError as error:
            if options.case:
                parser.error(str(error))
            print(f"{case.name:18} skipped: {error}")


if __name__ == "__main__":
    main()
