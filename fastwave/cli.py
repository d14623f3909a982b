"""The ``fastwave`` command: vocode, train, distill, convert, evaluate, info.

Exit status: 0; 2 for bad input; 1 for anything else that went wrong, Ctrl-C included. An error is one line on stderr;
of a command line that cannot be parsed, tyro shows what is missing or unknown, with its help.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import safetensors
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from fastwave import _cpu, audio, checkpoint, converters, evaluate, vocoder
from fastwave.audio import MelSpec
from fastwave.griffin_lim import GriffinLim, GriffinLimConfig
from fastwave.train import TRAININGS, loop
from fastwave.train.data import find_clips, select
from fastwave.train.distill import DistillationTraining
from fastwave.train.options import TrainingOptions

__all__ = ["load_mel", "main"]

AUDIO_SUFFIXES = (".wav", ".flac")
CHUNK = 32  # frames between updates of the progress bar

Quiet = Annotated[bool, tyro.conf.arg(aliases=("-q",), help="print nothing.")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocode:
    """Turns mels into speech, or recordings into mels and those into speech (copy-synthesis).

    Attributes:
        inputs: WAV or FLAC files, or mels (n_mels, frames) in .npy or .safetensors files.
        output: the file to write, .wav or .flac; a folder of NAME.wav where there are several inputs.
        voice: name of a bundled voice, or a model's folder.
        seed: of the noise; the same seed gives the same speech.
        temperature: factor on the noise; 0 gives the mean path.
        dtype: of the layers' products: "float32", "bfloat16" or "int8".
        device: "cpu".
        threads: CPU threads.
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    voice: str = "lj"
    seed: int = 0
    temperature: float = 1.0
    dtype: str = "float32"
    device: str = "cpu"
    threads: int | None = None
    quiet: Quiet = False

    def run(self) -> None:
        outputs = self.checked_outputs()
        voice = vocoder.load(self.voice, device=self.device, dtype=self.dtype, threads=self.threads)
        for path, output in zip(self.inputs, outputs, strict=True):
            if path.suffix.lower() in (".npy", ".safetensors"):
                source = load_mel(path, voice.mel_spec)
            else:
                source = audio.read(path, voice.sample_rate)
            try:
                self.vocode(voice, source[None] if source.ndim == 2 else voice.mel(source[None]), output)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None

    def vocode(self, voice: vocoder.Vocoder, mel: Tensor, output: Path) -> None:
        """One mel, (1, n_mels, frames), to one file."""
        chunks = []
        started = time.perf_counter()
        with tqdm(total=mel.shape[-1] * voice.hop_length, unit="sample", unit_scale=True, disable=self.quiet) as bar:
            for chunk in self.stream(voice, mel):
                chunks.append(chunk[0].cpu())
                seconds = time.perf_counter() - started
                bar.update(chunks[-1].numel())
                bar.set_postfix_str(f"real-time factor {bar.n / voice.sample_rate / seconds:.2f}", refresh=False)
        wave = torch.cat(chunks)
        audio.write(output, wave, voice.sample_rate)
        if not self.quiet:
            print(f"{output}: {speed(len(wave), voice.sample_rate, seconds)}")

    def stream(self, voice: vocoder.Vocoder, mel: Tensor) -> Iterable[Tensor]:
        """Waveform chunks; a single one of a model that turns time around."""
        options = {"seed": self.seed, "temperature": self.temperature}
        return voice.stream(mel.split(CHUNK, -1), **options) if voice.streams else [voice.generate(mel, **options)]

    def checked_outputs(self) -> list[Path]:
        """The output file of each input, once it is known that all inputs exist and all outputs can be written."""
        if not self.inputs:
            raise ValueError("inputs must be one file or more, got none")
        for path in self.inputs:
            if not path.is_file():
                raise FileNotFoundError(f"inputs must be files that exist, got {str(path)!r}")
        if len(self.inputs) == 1 and not self.output.is_dir():
            outputs = [self.output]
        else:
            outputs = [self.output / f"{path.stem}.wav" for path in self.inputs]
            if len(set(outputs)) < len(outputs):
                raise ValueError(f"inputs must have different names, got {', '.join(map(str, self.inputs))}")
            if self.output.suffix.lower() in AUDIO_SUFFIXES and not self.output.is_dir():
                raise ValueError(f"output must be a folder for {len(outputs)} inputs, got {str(self.output)!r}")
            self.output.mkdir(parents=True, exist_ok=True)
        if outputs[0].suffix.lower() not in AUDIO_SUFFIXES:
            raise ValueError(f"output must be a .wav or .flac file, got {str(self.output)!r}")
        if not outputs[0].parent.is_dir():
            raise FileNotFoundError(f"output must be in a folder that exists, got {str(self.output)!r}")
        try:
            tempfile.TemporaryFile(dir=outputs[0].parent).close()
        except OSError as error:
            message = f"output must be in a folder that can be written, got {str(outputs[0])!r}: {error.strerror}"
            raise OSError(message) from None
        return outputs


def load_mel(path: Path, spec: MelSpec) -> Tensor:
    """A mel (n_mels, frames) in float32 from a .npy file, or from a .safetensors file as its tensor ``mel``.

    A safetensors file may say in its metadata, as JSON under ``mel_spec``, what MelSpec it was made with.

    Raises:
        ValueError: the file is corrupt or a pickle, or its mel is not one of ``spec``.
    """
    made_with = spec
    try:
        if path.suffix.lower() == ".npy":
            mel = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            with safetensors.safe_open(path, "pt") as file:
                mel, metadata = file.get_tensor("mel"), file.metadata() or {}
            if "mel_spec" in metadata:
                made_with = MelSpec.from_dict(json.loads(metadata["mel_spec"]))
    except (ValueError, EOFError, TypeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: inputs must be readable files with a mel: {error}") from None
    if made_with != spec:
        voices = spec.to_dict()
        other = ", ".join(f"{name} {value}" for name, value in made_with.to_dict().items() if value != voices[name])
        raise ValueError(f"{path}: mel must be made with the voice's MelSpec, got one of {other}")
    if mel.ndim != 2 or mel.shape[0] != spec.n_mels or not mel.is_floating_point():
        raise ValueError(f"{path}: mel must be floats ({spec.n_mels}, frames), got {mel.dtype} {tuple(mel.shape)}")
    return mel.float()


def speed(samples: int, sample_rate: int, seconds: float) -> str:
    """How fast ``samples`` were made in ``seconds``, in words."""
    rate = samples / seconds
    factor = f"real-time factor {rate / sample_rate:.2f} (above 1 is faster)"
    return f"{samples / sample_rate:.2f} s of speech, {rate:,.0f} samples/s, {factor}"


def train_command(training: type[TrainingOptions]) -> type:
    """The command that trains with the options of ``training``."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Train(training):
        quiet: Quiet = False

        def run(self) -> None:
            loop.run(self, self.quiet)

    Train.__doc__ = training.__doc__
    return Train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Turns a checkpoint of a public implementation into a folder that --voice takes.

    Attributes:
        checkpoint: a file of torch.save or a .safetensors file.
        output: the folder to write.
        source: the repository that it comes from, as owner/name.
        hparams: its hyper-parameters in that project's own JSON or YAML form.
        teacher: the teacher's checkpoint, where ``checkpoint`` is a student's.
        stats: the statistics of its mels, where the project keeps them in a file (stats.npy, stats.h5).
    """

    checkpoint: tyro.conf.Positional[Path]
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    source: Literal[tuple(converters.SOURCES)]
    hparams: Path | None = None
    teacher: Path | None = None
    stats: Path | None = None

    def run(self) -> None:
        files = self.checkpoint
        for name, source in (("teacher", "ksw0306/ClariNet"), ("stats", "kan-bayashi/ParallelWaveGAN")):
            if getattr(self, name) and self.source != source:
                raise ValueError(f"{name} must be absent, as {self.source} has none, got {str(getattr(self, name))!r}")
        if self.teacher:
            files = {"student": files, "teacher": self.teacher}
        if self.stats:
            files = {"generator": files, "stats": self.stats}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            model = converters.convert(files, self.source, self.hparams)
        for warning in caught:
            print(f"fastwave: warning: {warning.message}", file=sys.stderr)
        model.save(self.output)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"{self.output}: {type(model).__name__} with {parameters:,} parameters")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compares a voice with recordings that it did not learn from, and with Griffin-Lim from the same mels.

    Prints a row of metrics per clip, then means per sample rate of the files; docs/evaluation.md defines the metrics.

    Attributes:
        voice: name of a bundled voice, or a model's folder.
        data: folder in LJ Speech's layout (metadata.csv), or any folder of WAV and FLAC files.
        clips: names of clips, or globs of them; all where absent.
        seed: of the noise.
        threads: CPU threads, of the voice and of Griffin-Lim.
    """

    voice: tyro.conf.Positional[str]
    data: Path
    clips: tuple[str, ...] = ("*",)
    seed: int = 0
    threads: int | None = None

    def run(self) -> None:
        clips, _ = select(find_clips(self.data), self.clips)
        voice = vocoder.load(self.voice, threads=self.threads)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        baseline = GriffinLim(GriffinLimConfig(mel=voice.mel_spec))
        rows = evaluate.evaluate_voice(voice, tqdm(clips, unit="clip"), self.seed)
        baseline_rows = evaluate.evaluate_voice(baseline, tqdm(clips, "Griffin-Lim", unit="clip"), self.seed)
        print_table(rows)
        print()
        pairs = zip(evaluate.means(rows), evaluate.means(baseline_rows), strict=True)
        names = self.voice, "Griffin-Lim"
        print_table([{"voice": name} | mean for pair in pairs for name, mean in zip(names, pair, strict=True)])


def print_table(rows: Sequence[dict]) -> None:
    """Columns are those of the first row; what another row does not have is left out."""
    cells = [list(rows[0]), *([cell(row.get(name, "")) for name in rows[0]] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def cell(value: object) -> str:
    """A value as a table shows it."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """Shows the version, what this machine has, and the bundled voices; or a voice's configuration.

    Attributes:
        voice: name of a bundled voice, or a model's folder.
    """

    voice: tyro.conf.Positional[str | None] = None

    def run(self) -> None:
        if self.voice is not None:
            self.show_voice()
            return
        print(f"fastwave {sys.modules['fastwave'].__version__}, torch {torch.__version__}")
        print(f"CPU instruction set: {_cpu.isa()} (of {', '.join(_cpu.isas())}; FASTWAVE_ISA forces one)")
        print(f"CUDA: {', '.join(cuda_devices()) or 'no device'}")
        for name in vocoder.voices():
            size = sum(file.stat().st_size for file in (vocoder.VOICES / name).iterdir())
            short = ", also called lj" if name == vocoder.BEST else ""
            print(f"voice {name}: {size / 1e6:.1f} MB{short}")

    def show_voice(self) -> None:
        folder = vocoder.find_voice(self.voice)
        name, config, tensors = checkpoint.load_folder(folder)
        parameters = sum(tensor.numel() for tensor in tensors.values())
        print(f"{folder}: {name} with {parameters:,} parameters")
        print(json.dumps(config, indent=2))
        for card in sorted(folder.glob("*.md")):
            print(f"model card: {card}")


def cuda_devices() -> list[str]:
    """Names of the CUDA devices that the extension sees."""
    if importlib.util.find_spec("fastwave._cuda") is None:
        return []
    from fastwave import _cuda

    return [device["name"] for device in _cuda.devices()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; wrong usage raises SystemExit(2), as argparse does."""
    train = tyro.extras.SubcommandApp()
    for name, training in TRAININGS.items():
        train.command(train_command(training), name=name)
    app = tyro.extras.SubcommandApp()
    app.command(Vocode, name="vocode")
    app.command(train, name="train", help="Trains a model.")
    app.command(train_command(DistillationTraining), name="distill")
    app.command(Convert, name="convert")
    app.command(Evaluate, name="evaluate")
    app.command(Info, name="info")
    command = app.cli(prog="fastwave", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        command.run()
    except KeyboardInterrupt:
        return fail("interrupted", 1)
    except (ValueError, FileNotFoundError) as error:
        return fail(error, 2)
    except (OSError, FloatingPointError, MemoryError, ModuleNotFoundError) as error:
        return fail(error, 1)
    return 0


def fail(error: object, status: int) -> int:
    if isinstance(error, OSError) and error.strerror:
        error = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    print(f"fastwave: error: {' '.join(str(error).split())}", file=sys.stderr)
    return status
