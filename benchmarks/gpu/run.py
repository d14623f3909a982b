"""Builds, tests and measures the CUDA kernels on this machine's GPU: ``python -m benchmarks.gpu.run``.

Writes benchmarks/results/gpu-DEVICE.json: what probes.cu measures, and the samples a second of wavenet_sample, all rows
of a batch together. Needs what ``make test-gpu`` needs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
TRIALS, SECONDS = 5, 0.5  # of each measurement: how often, and how much sound at 24 kHz
BATCHES = (1, 8, 64)


def probes() -> dict:
    """What probes.cu measures."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "probes"
        flags = ["-std=c++20", "-O3", "-arch=native", "--expt-relaxed-constexpr", "--fmad=false", f"-I{ROOT / 'csrc'}"]
        subprocess.run(["nvcc", *flags, str(Path(__file__).with_name("probes.cu")), "-o", str(program)], check=True)
        return json.loads(subprocess.run([program], check=True, capture_output=True, text=True).stdout)


def samplers() -> list[dict]:
    """wavenet_sample at the sizes of real models, with random weights."""
    import dataclasses

    from fastwave import _cuda, models
    from fastwave.models import WaveNetConfig
    from fastwave.ops.custom import arguments
    from fastwave.ops.wavenet_sample import CUDA_DTYPES, initial_sampler_state, wavenet_sample
    from fastwave.pack import pack_gated_stack

    teacher = WaveNetConfig.clarinet()
    configs = {
        "clarinet-teacher": teacher,
        "64/64": dataclasses.replace(teacher, residual_channels=64, gate_channels=64, skip_channels=64),
        "mixture_of_logistics-k3": dataclasses.replace(
            teacher, distribution="mixture_of_logistics", components=10, kernel_size=3
        ),
    }
    results = []
    for name, config in configs.items():
        model = models.WaveNet(config).requires_grad_(False)
        for dtype in CUDA_DTYPES:
            spec = dataclasses.replace(model.stack.spec, dtype=dtype)
            weights = pack_gated_stack(model.stack.weights(), spec).cuda()
            for batch in BATCHES:
                samples = int(24000 * SECONDS)
                columns = -(-samples // spec.cond_repeat)
                noise = torch.rand(batch, config.head_spec().noise_channels(spec.out_channels), samples, device="cuda")
                c = torch.rand(batch, spec.cond_channels, columns, device="cuda")
                times = []
                for _ in range(TRIALS + 1):  # the first is not counted
                    state = initial_sampler_state(spec, batch, device="cuda")
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    wavenet_sample(noise, weights, spec, config.head_spec(), state=state, c=c)
                    torch.cuda.synchronize()
                    times.append(time.perf_counter() - start)
                rates = [batch * samples / seconds for seconds in times[1:]]
                results.append(
                    {
                        "model": name,
                        "dtype": dtype,
                        "batch": batch,
                        **_cuda.wavenet_sample_plan(arguments(spec), batch, 0),
                        "samples_per_second": statistics.median(rates),
                        "spread": [min(rates), max(rates)],
                    }
                )
                print(results[-1], flush=True)
    return results


def main() -> int:
    subprocess.run(["make", "test-gpu", f"PYTHON={sys.executable}"], cwd=ROOT, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    device = torch.cuda.get_device_name(0)
    results = {"device": device, "commit": commit, "probes": probes(), "wavenet_sample": samplers()}
    path = ROOT / "benchmarks" / "results" / f"gpu-{device.lower().replace(' ', '-')}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
