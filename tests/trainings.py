"""What every model's training must do: learn from speech, and end the same way when it was stopped in between."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from fastwave import audio, checkpoint
from fastwave.train import loop

LJ = Path(__file__).parents[2] / "shared" / "data" / "lj"
needs_speech = pytest.mark.skipif(not LJ.is_dir(), reason="needs the clips of LJ Speech beside the repository")


def log_lines(training):
    return [json.loads(line) for line in (training.out / "log.jsonl").read_text().splitlines()]


def options(kind, shape, folder, **changes):
    (folder / "config.json").write_text(json.dumps(checkpoint.config_to_dict(shape)))
    return kind(**(dict(data=folder, out=folder / "run", config=folder / "config.json") | changes))


def losses_on_speech(kind, config, folder, **changes):
    """Of 200 steps, four means of 50."""
    all_but_nine = ("LJ050*", "LJ001-00[1-3]*")
    training = options(kind, config, folder, data=LJ, steps=200, interval=50, exclude_clips=all_but_nine, **changes)
    loop.run(training, quiet=True)
    return [line["loss"] for line in log_lines(training)]


def assert_resumes(kind, shape, folder, **changes):
    """A run that stops after its first step, and goes on, ends in the bits of one that does not."""
    noise = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    audio.write(folder / "noise.wav", 0.1 * noise, shape.mel.sample_rate)
    whole = options(kind, shape, folder, out=folder / "whole", steps=5, **changes)
    loop.run(whole, quiet=True)
    pieces = dataclasses.replace(whole, out=folder / "pieces")
    loop.run(dataclasses.replace(pieces, minutes=1e-9), quiet=True)
    assert log_lines(pieces)[-1]["step"] == 1
    loop.run(pieces, quiet=True)
    ends = [torch.load(run.out / "checkpoint.pt", weights_only=True) for run in (whole, pieces)]
    for part in ("modules", "optimizers"):
        torch.testing.assert_close(ends[0][part], ends[1][part], rtol=0, atol=0)
