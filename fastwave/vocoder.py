"""Vocoder: frozen weights and the kernels that sample from them."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from fastwave import audio, models, noise
from fastwave.ops.gated_stack import gated_stack, initial_state
from fastwave.ops.rounding import DTYPES
from fastwave.ops.upsample import upsample
from fastwave.ops.wavenet_sample import initial_sampler_state, wavenet_sample
from fastwave.pack import pack_gated_stack, pack_upsample
from fastwave.threads import check_threads, choose_threads

__all__ = ["Vocoder", "load", "voices"]

VOICES = Path(__file__).parent / "voices"
BLOCK_FRAMES = 32  # that generate() hands to the kernels at once: enough to hide the cost of a call


def voices() -> list[str]:
    """Names of the bundled voices."""
    return sorted(config.parent.name for config in VOICES.glob("*/config.json"))


def load(
    name: str | os.PathLike = "lj", *, device: str = "cpu", dtype: str = "float32", threads: int | None = None
) -> Vocoder:
    """A vocoder from a bundled voice's name, or a folder that ``model.save`` wrote.

    Raises:
        FileNotFoundError: neither.
        ValueError: the folder's files are not what they should be, or an argument as in Vocoder.
    """
    if str(name) in voices():
        folder = VOICES / str(name)
    elif Path(name).exists():
        folder = Path(name)
    else:
        raise FileNotFoundError(f"no voice {str(name)!r}: neither a folder nor one of {', '.join(voices())}")
    return Vocoder(models.load(folder), device=device, dtype=dtype, threads=threads)


class _Autoregressive:
    """Runs a WaveNet on wavenet_sample, block by block."""

    streams = True

    def __init__(self, model: models.WaveNet, dtype: str):
        self.model, self.head = model, model.config.head_spec()
        self.spec = dataclasses.replace(model.stack.spec, dtype=dtype)
        self.weights = pack_gated_stack(model.stack.weights(), self.spec)
        softmax = model.config.distribution == "softmax"
        self.table = model.distribution.decode_table() if softmax else None

    def threads(self, threads: int | None, batch: int) -> int:
        return choose_threads(threads, batch, self.spec, sampling=True)

    def start(self, batch: int) -> Tensor:
        return initial_sampler_state(self.spec, batch, self.model.first_input().detach())

    def run(self, state: Tensor, noise: Tensor, c: Tensor, temperature: float, **named) -> Tensor:
        samples, _ = wavenet_sample(
            noise,
            self.weights,
            self.spec,
            self.head,
            state=state,
            c=c,
            table=self.table,
            temperature=temperature,
            **named,
        )
        return samples


class _Flows:
    """Runs a student's flows on gated_stack; one that turns time around sees the whole utterance at once."""

    def __init__(self, model: models.ClariNetStudent, dtype: str):
        self.model, self.streams = model, not model.config.time_reversal
        self.specs = [dataclasses.replace(flow.spec, dtype=dtype) for flow in model.flows]
        self.weights = [
            pack_gated_stack(flow.weights(), spec) for flow, spec in zip(model.flows, self.specs, strict=True)
        ]

    def threads(self, threads: int | None, batch: int) -> int:
        return choose_threads(threads, batch, self.specs[0], sampling=False)

    def start(self, batch: int) -> list[Tensor | None]:
        return [initial_state(spec, batch) if self.streams else None for spec in self.specs]

    def run(self, state: list[Tensor | None], noise: Tensor, c: Tensor, temperature: float, **named) -> Tensor:
        z = noise * temperature
        for i, (spec, weights) in enumerate(zip(self.specs, self.weights, strict=True)):
            z = gated_stack(z, weights, spec, c=c, state=state[i], reverse=self.model.reversed_flow(i), **named)
        return z[:, 0]


RUNNERS = {models.WaveNet: _Autoregressive, models.ClariNetStudent: _Flows}


class _Conditioner:
    """Turns mel frames into conditioning columns as they come, with the bits that the whole mel would give."""

    def __init__(self, model: models.Model):
        self.spec = model.upsampler.spec
        self.weights = pack_upsample(model.upsampler.weights())
        self.ahead = self.spec.reach  # frames after a frame that its columns depend on

    def columns(self, mel: Tensor, first: int, end: int, start: int, threads: int) -> Tensor:
        """Columns of frames [start, end) from mel, whose frame 0 is frame ``first`` of the utterance.

        ``mel`` holds the frames within reach, as far as the utterance has any; its edges are the utterance's where it
        has no more. Context that the upsampler eats is replicated there.
        """
        context = self.spec.context
        if context:
            mel = torch.nn.functional.pad(mel, (context, context), "replicate")
        return upsample(mel, self.weights, self.spec, skip=start - first, frames=end - start, threads=threads)


class Vocoder:
    """A trained model on the kernels.

    Args:
        model: a model of fastwave.models; its weights are copied, so later changes of it do not show.
        device: "cpu".
        dtype: of the layers' products, "float32", "bfloat16" or "int8" (fastwave.ops.rounding); torch's names do too.
        threads: how many; None: as many as there is work and are processors for (fastwave.threads).

    Raises:
        ValueError: an argument that is none of these.
    """

    def __init__(self, model: models.Model, *, device: str = "cpu", dtype: str = "float32", threads: int | None = None):
        if type(model) not in RUNNERS:
            known = ", ".join(kind.__name__ for kind in RUNNERS)
            raise ValueError(f"model must be one of {known}, got {type(model).__name__}")
        if str(device) != "cpu":
            raise ValueError(f"device must be 'cpu', got {str(device)!r}")
        dtype = str(dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.model, self.threads = copy.deepcopy(model).float().eval(), check_threads(threads)
        self.config, self.mel_spec = model.config, model.config.mel
        self._runner, self._conditioner = RUNNERS[type(model)](self.model, dtype), _Conditioner(self.model)

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.mel_spec.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.mel_spec.hop_length

    @property
    def streams(self) -> bool:
        """Whether stream() works: not for a model that turns time around."""
        return self._runner.streams

    def mel(self, wave: Tensor) -> Tensor:
        """The model's own log-mel of a waveform: (batch, samples) -> (batch, n_mels, 1 + samples // hop_length)."""
        return audio.log_mel(wave, self.mel_spec)

    @torch.inference_mode()
    def generate(
        self,
        mel: Tensor,
        *,
        noise: Tensor | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        lengths: Tensor | None = None,
        speaker: Tensor | None = None,
    ) -> Tensor:
        """A waveform from a log-mel.

        Args:
            mel: (batch, n_mels, frames), in the scale of ``mel_spec``.
            noise: (batch, noise channels, frames * hop_length), or without the channels where there is one; the same
                noise gives the same waveform as ``model.generate``. Drawn from ``seed`` where None.
            seed: the same seed gives the same waveform, for each row whatever its batch.
            temperature: scales the noise; 0 is the mean path.
            lengths: (batch,) frames of each row; zeros after them.
            speaker: ids (batch,) or embeddings (batch, channels, 1), of a model with global conditioning.

        Returns:
            (batch, frames * hop_length) float32.

        Raises:
            ValueError: an argument of another shape, dtype, device or range; the message names it.
        """
        given = None if noise is None else self.model.noise(mel, noise, seed).float()
        stream = _Stream(self, mel, given, seed, temperature, speaker, lengths)
        out = torch.empty(len(mel), mel.shape[2] * self.hop_length)
        step = BLOCK_FRAMES if self.streams else mel.shape[2]
        for first in range(0, mel.shape[2], step):
            end = min(first + step, mel.shape[2])
            ahead, behind = self._conditioner.ahead, max(0, first - self._conditioner.ahead)
            out[:, first * self.hop_length : end * self.hop_length] = stream.run(
                mel[..., behind : end + ahead], behind, end
            )
        return out

    def stream(
        self,
        mel_chunks: Iterable[Tensor],
        *,
        seed: int = 0,
        temperature: float = 1.0,
        speaker: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Waveform chunks from mel chunks (batch, n_mels, any number of frames), as soon as they can be made.

        The chunks together are generate() of the mel chunks together, bit for bit, however the mel is cut. A chunk lags
        behind its mel by the frames that the upsampler looks ahead. Memory does not grow with the length.

        Raises:
            ValueError: as generate(); or the model turns time around, and so cannot stream.
        """
        if not self.streams:
            raise ValueError("stream needs a model that runs forwards in time: this one reverses it between flows")
        return self._stream(mel_chunks, seed, temperature, speaker)

    def _stream(self, mel_chunks, seed, temperature, speaker) -> Iterator[Tensor]:
        stream, buffer, first, ahead = None, None, 0, self._conditioner.ahead
        for chunk in mel_chunks:
            audio.check_mel(chunk, self.mel_spec)
            if stream is None:
                stream, buffer = _Stream(self, chunk, None, seed, temperature, speaker, None), chunk
            elif chunk.shape[0] != buffer.shape[0]:
                raise ValueError(f"mel_chunks must all have batch {buffer.shape[0]}, got {chunk.shape[0]}")
            else:
                buffer = torch.cat([buffer, chunk], 2)
            ready = first + buffer.shape[2] - ahead
            if ready > stream.at:
                yield stream.run(buffer, first, ready)
                passed = max(0, ready - ahead - first)
                buffer, first = buffer[..., passed:].clone(), first + passed
        if stream is not None and first + buffer.shape[2] > stream.at:
            yield stream.run(buffer, first, first + buffer.shape[2])


class _Stream:
    """The state of one utterance (a batch of them): where it is, its noise, and what the kernels carry along."""

    def __init__(self, vocoder, mel, given_noise, seed, temperature, speaker, lengths):
        if isinstance(mel, Tensor) and mel.device.type != "cpu":
            raise ValueError(f"mel must be on cpu, got {mel.device}")
        audio.check_mel(mel, vocoder.mel_spec)
        if not temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        if lengths is not None and (
            tuple(lengths.shape) != (len(mel),)
            or lengths.is_floating_point()
            or (len(mel) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= mel.shape[2])
        ):
            raise ValueError(
                f"lengths must be {len(mel)} integers between 0 and {mel.shape[2]}, got {lengths.tolist()}"
            )
        model = vocoder.model
        self.vocoder, self.noise, self.seed, self.lengths = vocoder, given_noise, seed, lengths
        self.temperature, self.at = float(temperature), 0
        self.named = {"threads": vocoder._runner.threads(vocoder.threads, len(mel))}
        if isinstance(model, models.WaveNet):
            self.named["g"] = model.global_vectors(speaker)
        elif speaker is not None:
            raise ValueError("speaker must be None: this model has no global conditioning")
        self.state = vocoder._runner.start(len(mel))

    @torch.inference_mode()
    def run(self, mel: Tensor, first: int, end: int) -> Tensor:
        """Samples of frames [self.at, end); mel holds frames from ``first`` on."""
        v, start, hop = self.vocoder, self.at, self.vocoder.hop_length
        mel = mel.float()
        lengths = None
        if self.lengths is None:
            c = v._conditioner.columns(mel, first, end, start, self.named["threads"])
        else:  # the upsampler must see each row's own end
            rate = v._conditioner.spec.columns_per_frame
            c = torch.zeros(len(mel), mel.shape[1], (end - start) * rate)
            for row, frames in enumerate(self.lengths.tolist()):
                if frames > start:
                    own = mel[row : row + 1, :, : frames - first]
                    last = min(end, frames)
                    c[row, :, : (last - start) * rate] = v._conditioner.columns(own, first, last, start, 1)[0]
            lengths = ((self.lengths - start) * hop).clamp(0, (end - start) * hop)
        if self.noise is None:
            z = noise.draw(v.model.noise_kinds, self.seed, len(mel), start * hop, (end - start) * hop)
        else:
            z = self.noise[..., start * hop : end * hop]
        self.at = end
        return v._runner.run(self.state, z, c, self.temperature, lengths=lengths, **self.named)
