"""Builds, tests and measures the CUDA kernels on this machine's GPU: ``python -m benchmarks.gpu.run``.

Writes benchmarks/results/gpu-DEVICE.json: what probes.cu and the device's ceilings are, and each workload's samples a
second, all rows together, beside PyTorch's. Needs what ``make test-gpu`` needs.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu.limits import Device, Pipeline, measure_device
from benchmarks.gpu.workloads import CASES, Case
from fastwave.ops.custom import arguments

ROOT = Path(__file__).resolve().parents[2]
REPEATS = 5
SECONDS = 0.1  # of a timed run, at least


def probes() -> dict:
    """What probes.cu measures."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "probes"
        flags = ["-std=c++20", "-O3", "-arch=native", "--expt-relaxed-constexpr", "--fmad=false", f"-I{ROOT / 'csrc'}"]
        subprocess.run(["nvcc", *flags, str(Path(__file__).with_name("probes.cu")), "-o", str(program)], check=True)
        return json.loads(subprocess.run([program], check=True, capture_output=True, text=True).stdout)


def timed(run: Callable[[], object]) -> float:
    """Seconds until the device has done it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def sized(make: Callable[[int], Callable[[], object]], case: Case) -> tuple[Callable[[], object], int]:
    """A run that is warm and long enough, and its samples of a row; a parallel stack's length is the case's own."""
    samples = case.samples
    while True:
        run = make(samples)
        elapsed = min(timed(run), timed(run))
        if case.parallel or elapsed > SECONDS:
            return run, samples
        samples *= 4


def measure(case: Case, device: Device, probed: dict) -> dict:
    """A case on the kernels, in each type, and on its rivals, in turns.

    Returns:
        ``kernels`` and ``baselines``: for each type or rival the median, min and max of the samples a second, all rows
        together, and the bytes of memory that a run takes. Of the kernels also ``share``, of the least time that the
        probes or the ceilings leave, and ``ratios`` to the rivals.
    """
    from fastwave import _cuda  # there only with a CUDA build

    workload = case.make()
    runs = {dtype: sized(lambda n, dtype=dtype: workload.kernels(n, dtype, 1), case) for dtype in case.dtypes}
    missing = {}
    for name, make in workload.baselines(1).items():
        try:
            runs[name] = sized(make, case)
        except RuntimeError as error:
            missing[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    elapsed = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, (run, _samples) in runs.items():
            elapsed[name].append(timed(run))
    results = {}
    for name, (run, samples) in runs.items():
        made = workload.batch * samples
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        results[name] = {
            "samples_per_second": made / statistics.median(elapsed[name]),
            "min": made / max(elapsed[name]),
            "max": made / min(elapsed[name]),
            "bytes": torch.cuda.max_memory_allocated() - before,
        }
    kernels = {dtype: results.pop(dtype) for dtype in case.dtypes}
    for dtype, ours in kernels.items():
        speed = ours["samples_per_second"]
        if case.parallel:
            ours["share"] = speed / device.limit(workload.work(dtype))
            ours["bandwidth_share"] = speed * workload.bytes / device.bandwidth
        else:
            spec = dataclasses.replace(workload.spec, dtype=dtype)
            ours["plan"] = _cuda.wavenet_sample_plan(arguments(spec), workload.batch, 0)
            ours["share"] = speed / Pipeline(probed, spec, ours["plan"]).limit(workload.batch)
        ours["microseconds"] = 1e6 * workload.batch / speed  # of a sample of all rows
        ours["real_time_factor"] = speed / workload.sample_rate
        ours["ratios"] = {name: speed / rival["samples_per_second"] for name, rival in results.items()}
    return {"case": case.name, "batch": workload.batch, "kernels": kernels, "baselines": results, "missing": missing}


def main() -> int:
    subprocess.run(["make", "test-gpu", f"PYTHON={sys.executable}"], cwd=ROOT, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    name, probed, device = torch.cuda.get_device_name(0), probes(), measure_device()
    results = {"device": name, "commit": commit, "probes": probed, "ceilings": dataclasses.asdict(device), "cases": []}
    path = ROOT / "benchmarks" / "results" / f"gpu-{name.lower().replace(' ', '-')}.json"
    for case in CASES:
        results["cases"].append(measure(case, device, probed))
        print(json.dumps(results["cases"][-1]), flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
