"""Goldens: what public implementations computed with small random weights.

Each file of tests/data holds a peer's state dict (``sd.``), inputs (``in.``) and float32 outputs (``out.``); its
metadata holds the hyper-parameters, the commit, and how far the same code in float64 moved each output: what rounding
is worth there.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from fastwave.losses import MultiResolutionSTFTLoss, magnitude_distances, stft_magnitude
from fastwave.ops.gated_stack import gated_stack, gated_stack_ref
from fastwave.ops.upsample import upsample, upsample_ref
from fastwave.pack import pack_gated_stack, pack_upsample

DATA = Path(__file__).parent / "data"

# on the references in both types, and on the kernels
everywhere = pytest.mark.parametrize(
    ("dtype", "kernels"),
    [(torch.float64, False), (torch.float32, False), (torch.float32, True)],
    ids=["float64", "float32", "kernels"],
)


def run_upsampler(upsampler, mel, kernels):
    if kernels:
        return upsample(mel, pack_upsample(upsampler.weights()), upsampler.spec)
    return upsample_ref(mel, upsampler.weights(), upsampler.spec)


def run_stack(stack, x, kernels, **named):
    if kernels:
        return gated_stack(x, pack_gated_stack(stack.weights(), stack.spec), stack.spec, **named)
    return gated_stack_ref(x, stack.weights(), stack.spec, **named)


def run_model(model, conditioning, kernels):
    """What ``model.synthesize`` runs its stages with, on the columns of ``model.condition``."""
    if not kernels:
        return model.reference_run(conditioning)
    stages = model.stages()

    def run(i, x, *others, y=None):
        stage = stages[i]
        c = None if stage.condition is None else stage.condition(conditioning).contiguous()
        y = None if y is None else y.contiguous()
        named = dict(c=c, u=stage.u, y=y, reverse=stage.reverse)
        return run_stack(stage.stack, x.contiguous(), True, **named), x, *others

    return run


def stft_distances(predicted, target):
    """Spectral convergence and log-magnitude distance of MultiResolutionSTFTLoss, (resolutions,) each."""
    loss, rows = MultiResolutionSTFTLoss(), []
    for i, (fft_size, hop_length, _) in enumerate(loss.resolutions):
        framing = fft_size, hop_length, getattr(loss, f"window_{i}"), loss.eps
        rows.append(magnitude_distances(*(stft_magnitude(wave, *framing) for wave in (predicted, target))))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def edited(tensors, **changes):
    """A state dict with some tensors replaced, or where None left out; ``__`` stands for a dot."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in (tensors | changes).items() if value is not None}


def assert_same(a, b, atol=0):
    """Two models have the same configuration and weights."""
    assert a.config == b.config
    for key, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[key], value, rtol=0, atol=atol, msg=key)


def recipe(key, shape):
    """The weights of a full-size golden: they are drawn by their key, and not stored."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("weight_g"):
        values = 0.7 + 0.6 * random.random_sample(shape)
    elif len(shape) > 1:
        values = random.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    else:
        values = 0.1 * random.standard_normal(shape)
    return torch.from_numpy(values).float()


class Golden:
    """One file: ``g["in.x"]``, ``g["sd.key"]`` in ``dtype``."""

    def __init__(self, name, dtype=torch.float64):
        with safe_open(DATA / f"{name}.safetensors", "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        self.name, self.dtype = name, dtype
        self.tensors = {key: t.to(dtype) if t.is_floating_point() else t for key, t in tensors.items()}
        config = json.loads(metadata["config"])
        for key, shape in config.get("state_dict_shapes", {}).items():
            self.tensors.setdefault(f"sd.{key}", recipe(key, shape).to(dtype))
        self.hparams = config.get("hparams", config)
        self.rounding = {key: value["max_abs_diff"] for key, value in config.get("f32_vs_f64", {}).items()}
        for key, (difference, _) in json.loads(metadata.get("fp64_max_abs_diff_and_absmax", "{}")).items():
            self.rounding[key.removeprefix("out.")] = difference

    def __getitem__(self, key):
        return self.tensors[key]

    def __contains__(self, key):
        return key in self.tensors

    def state_dict(self, start="sd."):
        """The peer's state dict."""
        return {key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)}

    def noise(self):
        """What the peer drew when it sampled, (batch, noise channels, samples)."""
        names = ("in.ar_u_mix", "in.ar_u_log", "in.ar_eps", "in.ar_u")  # components first: (samples, batch, components)
        draws = [self.tensors[name] for name in names if name in self.tensors]
        draws = [d.reshape(len(d), -1, d.shape[2] if d.ndim == 3 else 1) for d in draws]
        return torch.cat(draws, 2).permute(1, 2, 0).contiguous()

    def check(self, result, name):
        """``result`` is the peer's output: within 1.5 times its own rounding in float64, 10 times in float32.

        Where its rounding is not recorded, a millionth of its largest value stands for it.
        """
        expected = self[f"out.{name}"]
        assert result.shape == expected.shape and result.dtype == self.dtype
        assert result.isfinite().all()
        error = (result - expected).abs().max().item()
        rounding = self.rounding.get(name, 1e-6 * expected.abs().max().item())
        bound = rounding * (1.5 if self.dtype == torch.float64 else 10)
        assert error <= bound, f"{self.name} {name}: off by {error:.1e}, bound {bound:.1e}"
