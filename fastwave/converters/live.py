"""What accelerate() hands back: objects that sample from a live module of another project on the kernels."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from fastwave import models
from fastwave.ops.custom import require_cpu
from fastwave.ops.gated_stack import gated_stack
from fastwave.ops.rounding import DTYPES
from fastwave.ops.upsample import upsample
from fastwave.ops.wavenet_sample import initial_sampler_state, wavenet_sample
from fastwave.pack import pack_gated_stack, pack_upsample
from fastwave.threads import check_threads, choose_threads

__all__ = ["Live", "LiveStudent", "LiveWaveNet"]

BLOCK = 1024  # samples that one call of the sampler makes, between two ticks of a progress bar


class Live(abc.ABC):
    """Base: a module, and its conversion as of the last call.

    The rule for changed weights: every call compares the module's state dict with the one that it converted, value by
    value, and converts again where they differ. So nothing that trains, loads or edits the module goes unnoticed.

    A subclass says how to know its module and how to ``build`` a model of it, and has the peer's sampling method.
    """

    class_name: str
    keys: tuple[str, ...]  # beginnings that the keys of its state dict must have among them

    def __init__(self, module: nn.Module, dtype: str = "float32", threads: int | None = None):
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.module, self.dtype, self.threads = module, dtype, check_threads(threads)
        self._seen: dict[str, Tensor] = {}
        self.refresh()

    @classmethod
    def recognises(cls, module: nn.Module) -> bool:
        """By the name of its class, or of one that it derives from, and the keys of its state dict."""
        found = tuple(module.state_dict())
        named = any(kind.__name__ == cls.class_name for kind in type(module).__mro__)
        return named and all(any(key.startswith(start) for key in found) for start in cls.keys)

    @abc.abstractmethod
    def build(self) -> models.Model:
        """The module as one of our models."""

    @abc.abstractmethod
    def pack(self) -> None:
        """The weights of ``self.model`` as the kernels read them."""

    def refresh(self) -> None:
        """Converts the module again where its state dict has changed; every sampling call begins with it."""
        state = self.module.state_dict()
        if state.keys() == self._seen.keys() and all(_same(self._seen[key], value) for key, value in state.items()):
            return
        self.model = self.build().requires_grad_(False)
        self.pack()
        self._seen = {key: value.detach().clone() for key, value in state.items()}


def _same(a: Tensor, b: Tensor) -> bool:
    return (a.dtype, a.device) == (b.dtype, b.device) and torch.equal(a, b)


class LiveWaveNet(Live):
    """Base of the autoregressive ones."""

    model: models.WaveNet

    def pack(self) -> None:
        self.spec = dataclasses.replace(self.model.stack.spec, dtype=self.dtype)
        self.stack = pack_gated_stack(self.model.stack.weights(), self.spec)
        self.upsampler = pack_upsample(self.model.upsampler.weights())
        softmax = self.model.config.distribution == "softmax"
        self.table = self.model.distribution.decode_table() if softmax else None

    def upsample(self, c: Tensor | None) -> Tensor:
        """Conditioning columns (batch, bands, samples) of frames c (batch, bands, frames, with context)."""
        spec = self.model.upsampler.spec
        if c is None or c.ndim != 3 or c.shape[1] != spec.n_mels or c.shape[2] <= 2 * spec.context:
            more = f", more than {2 * spec.context}" if spec.context else ""
            got = None if c is None else tuple(c.shape)
            raise ValueError(f"c must be (batch, {spec.n_mels}, frames{more}), got {got}")
        require_cpu("c", c)
        threads = choose_threads(self.threads, len(c), self.spec, sampling=True)
        return upsample(c.detach().float(), self.upsampler, spec, threads=threads)

    def noise(self, batch: int, samples: int) -> Tensor:
        """Noise from torch's global generator, (batch, noise channels, samples): torch.manual_seed governs it."""
        noise = torch.empty(batch, len(self.model.noise_kinds), samples)
        for channel, kind in zip(noise.unbind(1), self.model.noise_kinds, strict=True):
            if kind == "normal":
                channel.normal_()
            else:
                channel.uniform_(1e-5, 1 - 1e-5)  # the peers' bounds, where they take logarithms
        return noise

    def sample(
        self,
        noise: Tensor,
        c: Tensor,
        *,
        first: Tensor,
        g: Tensor | None = None,
        forced: Tensor | None = None,
        return_parameters: bool = False,
        progress: Callable[[range], Iterable[int]] = iter,
    ) -> tuple[Tensor, Tensor]:
        """Samples (batch, time) and the parameters of each, from upsampled c; ``first`` is the first input."""
        spec, time = self.spec, noise.shape[2]
        threads = choose_threads(self.threads, len(noise), spec, sampling=True)
        state = initial_sampler_state(spec, len(noise), first)
        samples, parameters = [], []
        for start in progress(range(0, time, BLOCK)):
            block = slice(start, min(start + BLOCK, time))
            drawn, p = wavenet_sample(
                noise[..., block],
                self.stack,
                spec,
                self.model.config.head_spec(),
                state=state,
                c=c[..., block],
                g=g,
                table=self.table,
                forced=None if forced is None else forced[:, block],
                return_parameters=return_parameters,
                threads=threads,
            )
            samples.append(drawn)
            parameters.append(p)
        return torch.cat(samples, 1), torch.cat(parameters, 2)


class LiveStudent(Live):
    """Base of the parallel ones that take their noise and their upsampled conditioning as arguments."""

    model: models.ClariNetStudent

    def pack(self) -> None:
        self.specs = [dataclasses.replace(flow.spec, dtype=self.dtype) for flow in self.model.flows]
        self.flows = [
            pack_gated_stack(flow.weights(), spec) for flow, spec in zip(self.model.flows, self.specs, strict=True)
        ]

    def transform(self, z: Tensor, c: Tensor) -> Tensor:
        """z (batch, 1, samples) under c (batch, bands, samples) -> a waveform of z's shape."""
        require_cpu("z", z)
        z, c = z.detach().float(), c.detach().float()
        threads = choose_threads(self.threads, len(z), self.specs[0], sampling=False)
        for spec, weights in zip(self.specs, self.flows, strict=True):
            z = gated_stack(z, weights, spec, c=c, threads=threads)
        return z
