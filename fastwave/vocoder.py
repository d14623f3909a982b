"""Vocoder: frozen weights and the kernels that sample from them."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from fastwave import audio, models, noise
from fastwave.emphasis import Deemphasis
from fastwave.models.base import check_temperature
from fastwave.ops.custom import CUDA_DTYPES, has_cuda
from fastwave.ops.rounding import DTYPES
from fastwave.runners import Autoregressive, Parallel
from fastwave.threads import check_threads

__all__ = ["Vocoder", "find_voice", "load", "voices"]

VOICES = Path(__file__).parent / "voices"
BEST = "lj-teacher"  # which "lj" stands for


def voices() -> list[str]:
    """Names of the bundled voices; "lj" stands for the best of them."""
    return sorted(config.parent.name for config in VOICES.glob("*/config.json"))


def find_voice(name: str | os.PathLike) -> Path:
    """The folder of a bundled voice, that of the best one for "lj", or else of that path.

    Raises:
        FileNotFoundError: neither.
    """
    voice = BEST if str(name) == "lj" else str(name)
    if voice in voices():
        return VOICES / voice
    if Path(name).exists():
        return Path(name)
    raise FileNotFoundError(f"no voice {str(name)!r}: neither a folder nor one of {', '.join(voices())}")


def load(
    name: str | os.PathLike = "lj", *, device: str = "cpu", dtype: str = "float32", threads: int | None = None
) -> Vocoder:
    """A vocoder from a bundled voice's name, or a folder that ``model.save`` wrote.

    Raises:
        FileNotFoundError: neither.
        ValueError: the folder's files are not what they should be, or an argument as in Vocoder.
    """
    return Vocoder(models.load(find_voice(name)), device=device, dtype=dtype, threads=threads)


def _device(name: str | torch.device) -> torch.device:
    """The device of this name, if it is there."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {str(name)!r}")
    if device.type == "cuda" and not (has_cuda() and (device.index or 0) < torch.cuda.device_count()):
        why = "there is no such device" if has_cuda() else "fastwave was built without CUDA"
        raise ValueError(f"device must be cpu, as {why}, got {str(name)!r}")
    return device


class Vocoder:
    """A trained model on the kernels.

    Args:
        model: a model of fastwave.models; its weights are copied, so later changes of it do not show.
        device: "cpu", or "cuda" or "cuda:1" where fastwave was built with CUDA. Mels and waveforms are on the CPU in
            any case. A WaveNet whose sizes no CUDA kernel is made for runs on a slower one, and a warning says so.
        dtype: of the layers' products, "float32", "bfloat16" or "int8" (fastwave.ops.rounding; not on CUDA); torch's
            names do too.
        threads: how many; None: as many as there is work and are processors for (fastwave.threads).

    Raises:
        ValueError: an argument that is none of these.
    """

    def __init__(self, model: models.Model, *, device: str = "cpu", dtype: str = "float32", threads: int | None = None):
        if not isinstance(model, models.WaveNet | models.ParallelModel):
            raise ValueError(f"model must be one of fastwave.models, got {type(model).__name__}")
        place, dtype = _device(device), str(dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if place.type == "cuda" and dtype not in CUDA_DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(CUDA_DTYPES)} on cuda, got {dtype!r}")
        self.model, self.threads = copy.deepcopy(model).float().eval(), check_threads(threads)
        self.config, self.mel_spec = model.config, model.config.mel
        runner = Autoregressive if isinstance(model, models.WaveNet) else Parallel
        there = self.model if place.type == "cpu" else copy.deepcopy(self.model).to(place)
        self._runner = runner(there, dtype, place)
        self._conditioner = self._runner.conditioner

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

    @property
    def look_ahead(self) -> int:
        """Samples that a stream is late by, at the most: those to come that one depends on, and frames made at once."""
        conditioner = self._conditioner
        return (conditioner.ahead + conditioner.grid - 1) * self.hop_length + self._runner.look_ahead

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
            noise: in the model's own layout, (batch, noise channels, frames * model.noise_rate), or without the
                channels where there is one; the same noise gives the same waveform as ``model.generate``. Drawn from
                ``seed`` where None.
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
        out, at, frames = torch.empty(len(mel), mel.shape[2] * self.hop_length), 0, mel.shape[2]
        step = self._runner.block_frames if self.streams else frames
        for first in range(0, frames, step):
            end = min(first + step, frames)
            behind = max(0, first - self._conditioner.behind)
            chunk = stream.run(mel[..., behind : end + self._conditioner.ahead], behind, end, last=end == frames)
            out[:, at : at + chunk.shape[1]] = chunk
            at += chunk.shape[1]
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

        The chunks together are generate() of the mel chunks together, bit for bit, however the mel is cut. What comes
        lags behind the mel by ``look_ahead`` samples at the most. Memory does not grow with the length.

        Raises:
            ValueError: as generate(); or the model turns time around, and so cannot stream.
        """
        if not self.streams:
            raise ValueError("stream needs a model that runs forwards in time: this one reverses it between flows")
        return self._stream(mel_chunks, seed, temperature, speaker)

    def _stream(self, mel_chunks, seed, temperature, speaker) -> Iterator[Tensor]:
        stream, buffer, first = None, None, 0
        ahead, grid = self._conditioner.ahead, self._conditioner.grid
        for chunk in mel_chunks:
            audio.check_mel(chunk, self.mel_spec)
            if stream is None:
                stream, buffer = _Stream(self, chunk, None, seed, temperature, speaker, None), chunk
            elif chunk.shape[0] != buffer.shape[0]:
                raise ValueError(f"mel_chunks must all have batch {buffer.shape[0]}, got {chunk.shape[0]}")
            else:
                buffer = torch.cat([buffer, chunk], 2)
            ready = (first + buffer.shape[2] - ahead) // grid * grid
            if ready > stream.at:
                wave = stream.run(buffer, first, ready, last=False)
                if wave.shape[1]:
                    yield wave
                passed = max(0, ready - self._conditioner.behind - first)
                buffer, first = buffer[..., passed:].clone(), first + passed
        if stream is not None:
            wave = stream.run(buffer, first, first + buffer.shape[2], last=True)
            if wave.shape[1]:
                yield wave


class _Stream:
    """The state of one utterance (a batch of them): where it is, its noise, and what the kernels carry along."""

    def __init__(self, vocoder, mel, given_noise, seed, temperature, speaker, lengths):
        if isinstance(mel, Tensor) and mel.device.type != "cpu":
            raise ValueError(f"mel must be on cpu, got {mel.device}")
        audio.check_mel(mel, vocoder.mel_spec)
        check_temperature(temperature)
        if lengths is not None and (
            tuple(lengths.shape) != (len(mel),)
            or lengths.is_floating_point()
            or (len(mel) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= mel.shape[2])
        ):
            raise ValueError(
                f"lengths must be {len(mel)} integers between 0 and {mel.shape[2]}, got {lengths.tolist()}"
            )
        self.vocoder, self.noise, self.seed, self.frames = vocoder, given_noise, seed, lengths
        self.temperature, self.at, self.made = float(temperature), 0, 0
        self.lengths = None if lengths is None else lengths * vocoder.hop_length
        self.threads = vocoder._runner.threads(vocoder.threads, len(mel))
        self.deemphasized = Deemphasis(vocoder.model.emphasis)
        self.next = vocoder._runner.start(len(mel), vocoder.threads, speaker)

    @torch.inference_mode()
    def run(self, mel: Tensor, first: int, end: int, *, last: bool) -> Tensor:
        """The samples that frames up to ``end`` add to what could be made; mel holds frames from ``first`` on."""
        v, start, rate = self.vocoder, self.at, self.vocoder.model.noise_rate
        if self.noise is None:
            z = noise.draw(v.model.noise_kinds, self.seed, len(mel), start * rate, (end - start) * rate)
        else:
            z = self.noise[..., start * rate : end * rate]
        self.at = end
        condition = functools.partial(self.condition, first=first, start=start, end=end)
        wave = self.deemphasized(self.next(z, mel.float(), condition, self.lengths, self.temperature, last))
        made, self.made = self.made, self.made + wave.shape[1]
        if self.lengths is not None:
            wave = wave.masked_fill(torch.arange(made, self.made) >= self.lengths[:, None], 0)
        return wave

    def condition(self, mel: Tensor, first: int, start: int, end: int) -> list[Tensor]:
        """Conditioning columns of frames [start, end); mel holds frames from ``first`` on."""
        if start == end:
            return []
        columns = self.vocoder._conditioner.columns
        c = columns(mel, first, end, start, self.threads)
        if self.frames is not None:  # the upsampler must see each row's own end
            c = [torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in c]
            for row, frames in enumerate(self.frames.tolist()):
                if frames > start:
                    own = columns(mel[row : row + 1, :, : frames - first], first, min(end, frames), start, 1)
                    for tensor, part in zip(c, own, strict=True):
                        tensor[row, :, : part.shape[2]] = part[0]
        return c
