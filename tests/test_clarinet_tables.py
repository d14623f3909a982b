"""The tables of ClariNet's paper: what they say of likelihoods, and how they are written."""

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch
from test_train import tone

from fastwave import audio, models
from fastwave.train.data import find_clips

sys.path.append(str(Path(__file__).resolve().parent.parent))  # benchmarks are not installed
pytest.importorskip("benchmarks", reason="needs the source tree")
from benchmarks import clarinet_report, clarinet_tables

SMALL = dataclasses.replace(
    clarinet_tables.TEACHER, dilations=(1, 2), residual_channels=4, gate_channels=4, skip_channels=4
)


def model_of(bias, folder, **changes):
    """A model whose parameters are ``bias``, whatever it reads, and a clip."""
    model = models.WaveNet(dataclasses.replace(SMALL, **changes))
    torch.nn.init.zeros_(model.stack.head[-1].weight)
    model.stack.head[-1].bias.data = torch.as_tensor(bias).float()
    model.save(folder / "model")
    audio.write(folder / "clip.wav", tone(8000, 0, 22_050), 22_050)
    return folder, find_clips(folder)


def test_likelihood_of_a_uniform_softmax(tmp_path):
    model = model_of(torch.zeros(2048), tmp_path, distribution="softmax", classes=2048, companding="linear")
    measured = clarinet_tables.likelihood(*model)
    assert measured["nats"] == measured["unclipped"] == pytest.approx(-math.log(2), abs=1e-5)
    assert measured["bits"] == pytest.approx(11, abs=1e-5)


def test_likelihood_of_a_logistic_is_its_density(tmp_path):
    mean, log_scale = 0.02, -2.0
    folder, clips = model_of([0.0, mean, log_scale], tmp_path, distribution="mixture_of_logistics", components=1)
    wave = audio.read(clips[0].path, 22_050).double()[: 31 * 256]
    x = (wave - mean) / math.exp(log_scale)
    density = -x - log_scale - 2 * torch.nn.functional.softplus(-x)
    assert clarinet_tables.likelihood(folder, clips)["nats"] == pytest.approx(density.mean().item(), abs=1e-3)


def test_the_clip_of_a_gaussian(tmp_path):
    measured = clarinet_tables.likelihood(*model_of([0.0, -12.0], tmp_path))
    assert measured["unclipped"] < measured["nats"] < 0  # the error costs less where sigma is larger
    shares = clarinet_tables.log_sigmas(*model_of([0.0, -12.0], tmp_path))["log_sigma"]
    assert sum(shares) == shares[8] == 1  # from -12 to -11.75


def test_confidence_interval():
    """Student's t with two degrees of freedom: 4.303 at 97.5%."""
    assert clarinet_report.interval([1.0, 2.0, 3.0]) == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)


def test_tables():
    result = {
        "table1": [
            {"model": "Gaussian", "seed": 0, "trained": 9, "nats": 3.0, "unclipped": -1e6},
            {"model": "Gaussian", "seed": 1, "trained": 9, "nats": 3.0, "unclipped": -1e6},
        ],
        "clipping": [
            {"clip": "-7", "curve": [[5, -2.0, 9.0], [9, -2.5, 8.0]], "trained": 9, "nats": 2.5, "unclipped": -1e6},
            {"clip": "none", "curve": [], "trained": 0},
        ],
        "table2": [{"model": "teacher", "stoi": 0.9, "pesq": 2.0, "lsd": 5.0, "mcd": 3.0}, {"model": "student-1"}],
    }
    tables = clarinet_report.tables({part: {"rows": rows} for part, rows in result.items()})
    assert "| Gaussian | 9 | 3.000 ± 0.000 | -1.0e+06 ± 0.000 |  |\n" in tables["table1"]
    assert "| -7 | 9 | 2.500 | -1.0e+06 | -2.00 | 9.00 |\n| none | 0 |  |  |  |  |\n" in tables["clipping"]
    assert "| teacher | 0.90 | 2.00 | 5.00 | 3.00 |\n| student-1 | diverged |" in tables["table2"]
