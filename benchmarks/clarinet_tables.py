"""ClariNet's tables and figures on other data: python -m benchmarks.clarinet_tables --data DIR --runs DIR

What the paper compares (Ping et al., 2018, section 5 and appendix A), with models small enough to be trained on a CPU
in minutes. A run in the folder of runs is resumed. The measures become benchmarks/results/clarinet.json, and
``python -m benchmarks.report`` makes the tables and plots of docs/clarinet.md of them. Table 2's teacher is a voice, as
one of Table 1, trained for minutes, does not speak.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.ndimage
import torch
import tyro
from torch import Tensor

from benchmarks.run import RESULTS, provenance
from fastwave import audio, checkpoint, models, noise
from fastwave.audio import MelSpec
from fastwave.emphasis import PLAIN
from fastwave.evaluate import evaluate_voice, means
from fastwave.griffin_lim import GriffinLim, GriffinLimConfig
from fastwave.models import ClariNetStudent, ClariNetStudentConfig, WaveNet
from fastwave.train import loop
from fastwave.train.data import Clip, find_clips, select
from fastwave.train.distill import CONDITIONER, DistillationTraining
from fastwave.train.options import TrainingOptions
from fastwave.train.teacher import CONFIG, TeacherTraining
from fastwave.vocoder import Vocoder, find_voice

__all__ = ["BINS", "CLARINET", "MEASURES", "SPEECH", "Tables"]

CLARINET = RESULTS / "clarinet.json"

SEEDS = 3
TEST, VALIDATION = ("LJ001-0029", "LJ001-003[0-2]"), ("LJ001-002[5-8]",)
OTHER_RATE = ("LJ050*",)  # published at 16 kHz

# Speech as it is, as the paper has it
TEACHER = dataclasses.replace(
    CONFIG,
    emphasis=PLAIN,
    clamp=1.0,
    train_log_scale_min=-9.0,
    upsample_context=0,
    upsample_context_conv=False,
)
OPTIMIZER = dict(optimizer="adam")  # the paper's
# Table 1
DISTRIBUTIONS = {
    "Gaussian": dict(distribution="gaussian"),
    "MoG-10": dict(distribution="mixture_of_gaussians"),
    "MoL-10": dict(distribution="mixture_of_logistics"),
    "softmax-2048": dict(distribution="softmax", classes=2048, companding="linear"),
}
VOICE = "lj-teacher"  # Table 2's teacher, and the model of Figures 3 and 4
# Figures 3 and 4: where log-sigma is clipped from below, and whether the samples are dequantised. So far down it comes
# in a model that predicts well, on speech that can be foretold: the voice, and recordings with digital silence
QUIET = 0.004  # RMS of 20 ms that become silence
NO_CLIP = -80.0  # e^80 is still a float32
CLIPS = {
    "-7": (-7.0, False),
    "-9": (-9.0, False),
    "-10": (-10.0, False),
    "none": (NO_CLIP, False),
    "dequantised": (NO_CLIP, True),
}
# Table 2
SHORT = [2**i for i in range(5)]
STUDENTS = {
    "student-1": dict(flows=[SHORT] * 6),
    "student-2": dict(flows=[SHORT, SHORT, SHORT, SHORT * 3], time_reversal=True),
}
DISTILLATIONS = (
    ("student-1", "reverse", 1.0),
    ("student-1", "forward", 1.0),
    ("student-1", "reverse", 0.0),
    ("student-1", "forward", 0.0),
    ("student-2", "reverse", 1.0),
)
SPEECH = ("stoi", "pesq", "lsd", "mcd")
MEASURES = ("nats", "unclipped", "bits")
PARTS = ("table1", "clipping", "table2")
BINS = torch.arange(-14, 0.01, 0.25)  # of the histograms of log sigma


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tables:
    """Trains what ClariNet's tables compare, and measures it.

    Attributes:
        data: folder with the clips of LJ Speech.
        runs: folder of the runs.
        parts: what to measure; the rest of benchmarks/results/clarinet.json stays as it is.
        channels: of a teacher's residual, gate and skip paths; a student has three quarters of them.
        layers: of a teacher, dilated by 1 to 512 again and again.
        steps: updates of a teacher.
        clipping_steps: updates of the voice that log sigma is clipped in.
        distillation_steps: updates of a student.
        batch, frames, learning_rate, precision, device: of the training, see its options.
        threads: CPU threads.
    """

    data: Path
    runs: Path
    parts: tuple[Literal["table1", "clipping", "table2"], ...] = PARTS
    channels: int = 32
    layers: int = 10
    steps: int = 1000
    clipping_steps: int = 250
    distillation_steps: int = 400
    batch: int = 2
    frames: int = 16
    learning_rate: float = 6e-4
    precision: Literal["bfloat16", "float32"] = "float32"
    device: str = "cpu"
    threads: int = 1

    def run(self) -> None:
        clips, _ = select(find_clips(self.data), TEST)
        options = {
            name: value for name, value in vars(self).items() if name not in ("data", "runs", "parts", "threads")
        }
        result = json.loads(CLARINET.read_text(encoding="utf-8")) if CLARINET.exists() else {}
        for part in PARTS:
            if part in self.parts:
                rows = getattr(self, part)(clips)
                names = [clip.name for clip in clips]
                result[part] = {**provenance(), "options": options, "clips": names, "rows": rows}
                CLARINET.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    def table1(self, clips: Sequence[Clip]) -> list[dict]:
        return [
            {"model": name, "seed": seed} | trained(out) | likelihood(out, clips)
            for seed in range(SEEDS)
            for name, changes in DISTRIBUTIONS.items()
            for out in [self.teacher(name, seed=seed, **changes)]
        ]

    def clipping(self, _: Sequence[Clip]) -> list[dict]:
        return [{"clip": name} | self.clipped(name) for name in CLIPS]

    def table2(self, clips: Sequence[Clip]) -> list[dict]:
        teacher = Vocoder(models.load(find_voice(VOICE)), threads=self.threads)
        baseline = GriffinLim(GriffinLimConfig(mel=teacher.mel_spec))
        voices = {"Griffin-Lim": baseline, "teacher": teacher}
        rows = [{"model": name} | speech(voice, clips) for name, voice in voices.items()]
        return rows + [self.distillation(*which, clips) for which in DISTILLATIONS]

    def train(self, kind: type[TrainingOptions], name: str, config, steps: int, seed: int = 0, **options) -> Path:
        """The folder of a run, trained to its end or until it diverges."""
        out = self.runs / name
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text(json.dumps(checkpoint.config_to_dict(config)), encoding="utf-8")
        usual = dict(
            data=self.data,
            exclude_clips=TEST + OTHER_RATE,
            interval=50,
            batch=self.batch,
            frames=self.frames,
            learning_rate=self.learning_rate,
        )
        training = kind(
            out=out,
            config=out / "config.json",
            validation_clips=VALIDATION,
            steps=steps,
            precision=self.precision,
            device=self.device,
            threads=self.threads,
            seed=seed,
            **usual | options,
        )
        print(name, flush=True)
        try:
            loop.run(training, quiet=True)
        except FloatingPointError as error:
            print(error)
        return out

    def teacher(self, name: str, *, seed: int, **changes) -> Path:
        size = dict.fromkeys(("residual_channels", "gate_channels", "skip_channels"), self.channels)
        dilations = [2 ** (i % 10) for i in range(self.layers)]
        config = dataclasses.replace(TEACHER, mel=self.mel(), dilations=dilations, **size | changes)
        return self.train(TeacherTraining, f"{name} {seed}", config, self.steps, seed, **OPTIMIZER)

    def mel(self) -> MelSpec:
        """The teacher's front end, standardised with the training clips."""
        _, clips = select(find_clips(self.data), TEST + OTHER_RATE + VALIDATION)
        return TeacherTraining(data=self.data, out=self.runs).model_config(clips).mel

    def clipped(self, name: str) -> dict:
        """The voice trained on, at a learning rate so low that it is calm where log-sigma is clipped high enough."""
        bound, dequantize = CLIPS[name]
        config = models.load(find_voice(VOICE)).config
        config = dataclasses.replace(config, train_log_scale_min=bound + math.log(config.emphasis.gain))
        options = OPTIMIZER | dict(
            interval=25, frames=32, learning_rate=2e-5, clip_norm=1e9, start=VOICE, dequantize=dequantize
        )
        data = dict(data=self.silenced(), exclude_clips=TEST)
        out = self.train(TeacherTraining, f"clip {name}", config, self.clipping_steps, **options, **data)
        curve = [[line[key] for key in ("step", "validation_loss", "gradient_norm")] for line in log_lines(out)]
        clips, _ = select(find_clips(data["data"]), TEST)
        return {"curve": curve} | log_sigmas(out, clips) | trained(out) | likelihood(out, clips)

    def silenced(self) -> Path:
        """A folder of the clips with digital silence where they are quiet."""
        folder = self.runs / "silenced"
        folder.mkdir(parents=True, exist_ok=True)
        _, clips = select(find_clips(self.data), OTHER_RATE)
        for clip in clips:
            path = folder / f"{clip.name}.flac"
            if not path.exists():
                wave = audio.read(clip.path, clip.sample_rate).double()
                power = scipy.ndimage.uniform_filter1d(wave.square().numpy(), clip.sample_rate // 50)
                audio.write(path, wave * torch.from_numpy(np.sqrt(power) >= QUIET), clip.sample_rate)
        return folder

    def distillation(self, shape: str, kl: str, stft_weight: float, clips: Sequence[Clip]) -> dict:
        teacher = models.load(find_voice(VOICE))
        conditioner = {name: getattr(teacher.config, name) for name in CONDITIONER}
        size = dict.fromkeys(("residual_channels", "gate_channels", "skip_channels"), self.channels * 3 // 4)
        config = ClariNetStudentConfig(**size, **STUDENTS[shape], **conditioner)
        name = f"{shape}, {kl} KL{' + STFT' if stft_weight else ''}"
        options = dict(teacher=VOICE, kl=kl, stft_weight=stft_weight)
        out = self.train(DistillationTraining, name, config, self.distillation_steps, **options)
        if not (out / "model").is_dir():
            return {"model": name}
        student = models.load(out / "model")
        return (
            {"model": name}
            | speech(Vocoder(student, threads=self.threads), clips)
            | distilled_log_sigmas(student, teacher, clips)
        )


def log_lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def trained(out: Path) -> dict[str, int]:
    """Steps up to the last checkpoint: fewer than were asked for, where the run diverged."""
    return {"trained": max((line["step"] for line in log_lines(out)), default=0)}


def speech(voice: Vocoder | GriffinLim, clips: Sequence[Clip]) -> dict:
    """Means of the objective measures."""
    (mean,) = means(evaluate_voice(voice, clips))
    return {name: mean[name] for name in SPEECH}


@torch.inference_mode()
def parameters(model: WaveNet, clip: Clip) -> tuple[Tensor, Tensor]:
    """A clip (1, samples) as the model learns it, and the model's parameters of its samples."""
    spec = model.config.mel
    wave = audio.read(clip.path, spec.sample_rate)[None]
    mel = audio.log_mel(wave, spec)[..., : wave.shape[1] // spec.hop_length]
    wave = model.emphasis(wave)[:, : mel.shape[2] * spec.hop_length]
    return wave, model(wave, model.with_context(mel))


def likelihood(out: Path, clips: Sequence[Clip]) -> dict:
    """Nats per sample of the density: as trained, that is with log-scales clipped, and without the clip.

    Discrete probabilities are divided by the width of what they are the probability of. Of a run that diverged the last
    checkpoint is measured; nothing, if it had none.
    """
    if not (out / "model").is_dir():
        return {}
    model = models.load(out / "model")
    c = model.config
    width = {"mixture_of_logistics": 2 / (c.classes - 1), "softmax": 2 / c.classes}.get(c.distribution, 1.0)
    values = {}
    for name, bound in (("nats", c.train_log_scale_min), ("unclipped", -math.inf)):
        of_clips = [
            model.distribution.log_prob(p, x, bound).mean().item()
            for x, p in (parameters(model, clip) for clip in clips)
        ]
        values[name] = statistics.mean(of_clips) + math.log(c.emphasis.gain / width)
    if c.distribution == "softmax":
        values["bits"] = (math.log(1 / width) - values["nats"]) / math.log(2)
    return values


def log_sigmas(out: Path, clips: Sequence[Clip]) -> dict[str, list[float]]:
    """The histogram of a Gaussian's log sigma over all clips, of speech as it is."""
    if not (out / "model").is_dir():
        return {}
    model = models.load(out / "model")
    shift = math.log(model.emphasis.gain)
    return {"log_sigma": histogram([parameters(model, clip)[1][:, 1] - shift for clip in clips])}


@torch.inference_mode()
def distilled_log_sigmas(student: ClariNetStudent, teacher: WaveNet, clips: Sequence[Clip]) -> dict:
    """The histograms of both log sigmas, of a sample of each clip, of speech as it is."""
    q, p, shift = [], [], math.log(student.emphasis.gain)
    for seed, clip in enumerate(clips):
        mel = audio.log_mel(audio.read(clip.path, student.config.mel.sample_rate)[None], student.config.mel)
        z = noise.draw(student.noise_kinds, seed, 1, 0, mel.shape[2] * student.noise_rate)[:, 0]
        x, _, log_sigma = student(z, student.with_context(mel))
        q.append(log_sigma - shift)
        p.append(teacher(x, teacher.with_context(mel))[:, 1] - shift)
    return {"log_sigma_q": histogram(q), "log_sigma_p": histogram(p)}


def histogram(values: Sequence[Tensor]) -> list[float]:
    """Shares of all values that lie between BINS; what is outside counts with the outermost."""
    values = torch.cat([value.flatten() for value in values]).clamp(BINS[0], BINS[-1])
    return (torch.histogram(values, BINS).hist / len(values)).tolist()


if __name__ == "__main__":
    tyro.cli(Tables).run()
