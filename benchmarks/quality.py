"""What each type costs: python -m benchmarks.quality --data DIR --clips PATTERN...

The log-likelihood that ``lj-teacher`` gives recordings, teacher-forced on the kernels; STOI and PESQ of ``lj-stft``.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import fastwave
from benchmarks.run import RESULTS
from fastwave import _cpu, audio
from fastwave.evaluate import evaluate_voice
from fastwave.models import WaveNet
from fastwave.ops.rounding import DTYPES
from fastwave.ops.wavenet_sample import initial_sampler_state, wavenet_sample
from fastwave.pack import pack_gated_stack
from fastwave.train.data import find_clips, select

__all__ = ["QUALITY", "log_likelihood", "main"]

QUALITY = RESULTS / "quality.json"


@torch.inference_mode()
def log_likelihood(model: WaveNet, wave: Tensor, dtype: str) -> float:
    """Nats per sample that the model on the kernels gives a recording, (samples,) at its sample rate."""
    spec = dataclasses.replace(model.stack.spec, dtype=dtype)
    mel = audio.log_mel(wave[None], model.config.mel)
    frames = len(wave) // model.config.mel.hop_length
    wave = model.emphasis(wave[None, : frames * model.config.mel.hop_length])
    head = model.config.head_spec()
    table = model.distribution.decode_table() if head.distribution == "softmax" else None
    _, parameters = wavenet_sample(
        torch.full((1, len(model.noise_kinds), wave.shape[1]), 0.5),  # every sample is forced
        pack_gated_stack(model.stack.weights(), spec),
        spec,
        head,
        state=initial_sampler_state(spec, 1, model.first_input()),
        c=model.condition(mel[..., :frames]),
        table=table,
        forced=wave,
        return_parameters=True,
    )
    return model.distribution.log_prob(parameters, wave).mean().item() + math.log(model.emphasis.gain)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description="What each type costs.")
    parser.add_argument("--data", type=Path, required=True, help="folder of recordings that no voice was trained on")
    parser.add_argument("--clips", nargs="+", default=["*"], help="names or patterns of those to take")
    options = parser.parse_args(arguments)
    clips, _ = select(find_clips(options.data), tuple(options.clips))
    teacher, rows = fastwave.load("lj-teacher").model, {}
    waves = [audio.read(clip.path, teacher.config.mel.sample_rate) for clip in clips]
    for dtype in DTYPES:
        spoken = evaluate_voice(fastwave.load("lj-stft", dtype=dtype), clips)
        rows[dtype] = {
            "log_likelihood": statistics.mean(log_likelihood(teacher, wave, dtype) for wave in waves),
            "stoi": statistics.mean(row["stoi"] for row in spoken),
            "pesq": statistics.mean(row["pesq"] for row in spoken),
        }
        print(f"{dtype:9}", "  ".join(f"{name} {value:.4f}" for name, value in rows[dtype].items()), flush=True)
    result = {
        "isa": _cpu.isa(),
        "date": datetime.date.today().isoformat(),
        "clips": [clip.name for clip in clips],
        "dtypes": rows,
    }
    QUALITY.parent.mkdir(parents=True, exist_ok=True)
    QUALITY.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
