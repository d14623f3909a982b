"""Clips of speech, and the segments of them that training reads: the same ones for the same (seed, step)."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastwave import audio
from fastwave.audio import MelSpec
from fastwave.emphasis import PLAIN, Emphasis

__all__ = ["Batches", "Clip", "Dataset", "Segments", "find_clips", "select", "standardized"]

SUFFIXES = (".flac", ".wav")
KEPT = 2 * 3600  # seconds of speech that a dataset keeps in memory: 0.9 GB at 22,050 Hz


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """An audio file: its name in the data set, what its header says, and how fast it is read, pitch and all."""

    name: str
    path: Path
    sample_rate: int  # Hz
    samples: int  # at sample_rate
    speed: float = 1.0

    def length(self, sample_rate: int) -> int:
        """Samples that it surely has once resampled to ``sample_rate``."""
        return self.samples * round(sample_rate / self.speed) // self.sample_rate

    def read(self, sample_rate: int) -> Tensor:
        """(samples,) at ``sample_rate``."""
        return audio.read(self.path, round(sample_rate / self.speed))


class Segments(NamedTuple):
    """Segments of the same length: frame f of ``mel`` is centred on sample (f - context) * hop_length of ``wave``."""

    wave: Tensor  # (batch, frames * hop_length)
    mel: Tensor  # (batch, n_mels, frames + 2 context)
    names: list[str]  # of the clips


def find_clips(folder: str | os.PathLike) -> list[Clip]:
    """The clips of a folder, by name.

    In LJ Speech's layout metadata.csv has a line ``name|...`` per clip, whose file is name.flac or name.wav, in wavs/
    or beside it. In any other folder every WAV and FLAC file is a clip, also those of folders in it; its name is its
    path there without the suffix.

    Raises:
        FileNotFoundError: no such folder, no clip in it, or a clip without its file.
        ValueError: a file that is not audio, or has no samples.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"data must be a folder, got {str(folder)!r}")
    metadata = folder / "metadata.csv"
    if metadata.is_file():
        lines = metadata.read_text(encoding="utf-8").splitlines()
        paths = {name: _clip_file(folder, name) for name in (line.split("|")[0].strip() for line in lines) if name}
    else:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        paths = {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}
    if not paths:
        raise FileNotFoundError(f"data must be a folder with WAV or FLAC files, got none in {str(folder)!r}")
    return [_read_header(name, path) for name, path in paths.items()]


def _clip_file(folder: Path, name: str) -> Path:
    for candidate in (parent / (name + suffix) for parent in (folder / "wavs", folder) for suffix in SUFFIXES):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"data must have the clips of its metadata.csv, got none for {name!r} in {str(folder)!r}")


def _read_header(name: str, path: Path) -> Clip:
    import soundfile

    try:
        header = soundfile.info(str(path))
    except soundfile.LibsndfileError as error:
        raise ValueError(f"data must be readable audio files, got {str(path)!r}: {error.error_string}") from None
    if not header.frames:
        raise ValueError(f"data must be audio files with samples, got none in {str(path)!r}")
    return Clip(name=name, path=path, sample_rate=header.samplerate, samples=header.frames)


def select(clips: Sequence[Clip], patterns: Sequence[str]) -> tuple[list[Clip], list[Clip]]:
    """The clips whose names match one of ``patterns`` (names, or globs such as ``LJ001-002[5-8]``), and the others.

    Raises:
        ValueError: a pattern that no clip matches.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(clip.name, pattern) for clip in clips):
            raise ValueError(f"clips must be names of clips or globs of them, got {pattern!r}, which matches none")
    matching, others = [], []
    for clip in clips:
        matches = any(fnmatch.fnmatchcase(clip.name, pattern) for pattern in patterns)
        (matching if matches else others).append(clip)
    return matching, others


def standardized(spec: MelSpec, clips: Sequence[Clip]) -> MelSpec:
    """``spec`` with the mean and standard deviation of each band over the clips, or over 100 of them, evenly spread."""
    clips = [clip for clip in clips if clip.length(spec.sample_rate) > spec.n_fft // 2]  # log_mel reflects so many
    if not clips:
        raise ValueError(f"clips must have one of {spec.n_fft // 2 + 1} samples or more, got none")
    chosen = [clips[i] for i in np.linspace(0, len(clips) - 1, min(100, len(clips))).astype(int)]
    mels = [audio.log_mel(clip.read(spec.sample_rate)[None], spec)[0] for clip in chosen]
    std, mean = torch.std_mean(torch.cat(mels, 1).double(), 1)
    return dataclasses.replace(spec, mean=tuple(mean.tolist()), std=tuple(std.clamp(min=1e-3).tolist()))


class Dataset:
    """Segments of clips with their part of the whole clip's log-mel. Clips are read when needed; two hours are kept.

    Args:
        clips: where the segments come from; clips shorter than a segment are left out.
        spec: the model's front end.
        frames: length of a segment.
        context: frames of mel on either side of it, for a model that eats them.
        emphasis: of the waves.

    Raises:
        ValueError: no clip is long enough.
    """

    def __init__(self, clips: Sequence[Clip], spec: MelSpec, frames: int, context: int = 0, emphasis: Emphasis = PLAIN):
        self.spec, self.frames, self.context, self.emphasis = spec, frames, context, emphasis
        shortest = max(frames * spec.hop_length, spec.n_fft // 2 + 1)  # log_mel reflects n_fft / 2 samples
        self.clips = [clip for clip in clips if clip.length(spec.sample_rate) >= shortest]
        if not self.clips:
            raise ValueError(f"clips must have one of {shortest} samples or more at {spec.sample_rate} Hz, got none")
        positions = [clip.length(spec.sample_rate) // spec.hop_length - frames + 1 for clip in self.clips]
        self._first = np.cumsum([0, *positions])  # clip i owns positions [_first[i], _first[i + 1])
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}
        self._kept = 0  # samples

    @property
    def seconds(self) -> float:
        """Duration of all clips."""
        return sum(clip.samples / clip.sample_rate / clip.speed for clip in self.clips)

    def draw(self, batch: int, seed: int, step: int) -> Segments:
        """The ``batch`` random segments of a step: every position of every clip is as likely as any other."""
        return self.cut(self.places(batch, seed, step))

    def places(self, batch: int, seed: int, step: int) -> list[tuple[int, int]]:
        """Clip and first frame of each segment of a step."""
        generator = np.random.Generator(np.random.Philox(key=[seed, step]))
        positions = generator.integers(self._first[-1], size=batch)
        clips = np.searchsorted(self._first, positions, side="right") - 1
        return [(int(i), int(p - self._first[i])) for i, p in zip(clips, positions, strict=True)]

    def spread(self, clip: int, count: int) -> Segments:
        """``count`` segments of one clip, evenly spread over it from its first to its last: the same ones always."""
        last = self._first[clip + 1] - self._first[clip] - 1
        return self.cut([(clip, int(start)) for start in np.linspace(0, last, count)])

    def cut(self, places: Sequence[tuple[int, int]]) -> Segments:
        """Segments by clip and first frame."""
        hop, frames, context = self.spec.hop_length, self.frames, self.context
        waves, mels = [], []
        for clip, start in places:
            wave, mel = self.read(clip)
            waves.append(wave[start * hop : (start + frames) * hop])
            columns = torch.arange(start - context, start + frames + context).clamp(0, mel.shape[1] - 1)
            mels.append(mel[:, columns])
        return Segments(torch.stack(waves), torch.stack(mels), [self.clips[clip].name for clip, _ in places])

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """The clip's wave (samples,), as loud as the mel says, emphasised; mel (n_mels, 1 + samples // hop_length)."""
        if index in self._cache:
            return self._cache[index]
        clip, rate = self.clips[index], self.spec.sample_rate
        wave = clip.read(rate)
        if len(wave) < clip.length(rate):
            raise ValueError(f"data must be whole audio files, got {str(clip.path)!r}, which breaks off")
        mel = audio.log_mel(wave[None], self.spec)[0]
        wave = self.emphasis(audio.peak_normalized(wave[None], self.spec))[0]
        if self._kept + len(wave) <= KEPT * rate:
            self._kept += len(wave)
            self._cache[index] = wave, mel
        return wave, mel


@dataclasses.dataclass(frozen=True)
class Batches:
    """What a torch.utils.data.DataLoader reads: item ``step`` has ``rows`` of the segments that the step draws.

    In place of segments whose clips cannot be read an item is the error: a DataLoader would add its worker's traceback.
    """

    dataset: Dataset
    batch: int
    seed: int
    rows: slice

    def __getitem__(self, step: int) -> Segments | ValueError | OSError:
        try:
            return self.dataset.cut(self.dataset.places(self.batch, self.seed, step)[self.rows])
        except (ValueError, OSError) as error:
            return error
