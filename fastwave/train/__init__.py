"""Training: clips and segments of them, one loop for every model, and a short file per objective."""

from fastwave.train.diffwave import DiffWaveTraining
from fastwave.train.flowavenet import FloWaveNetTraining
from fastwave.train.oscillator import OscillatorTraining
from fastwave.train.parallel_wavegan import ParallelWaveGANTraining
from fastwave.train.squeezewave import SqueezeWaveTraining
from fastwave.train.student import StudentTraining
from fastwave.train.teacher import TeacherTraining
from fastwave.train.waveglow import WaveGlowTraining
from fastwave.train.wg_wavenet import WGWaveNetTraining

__all__ = ["TRAININGS"]

# by the name that ``fastwave train`` knows
TRAININGS = {
    "diffwave": DiffWaveTraining,
    "flowavenet": FloWaveNetTraining,
    "oscillator": OscillatorTraining,
    "parallel-wavegan": ParallelWaveGANTraining,
    "squeezewave": SqueezeWaveTraining,
    "student": StudentTraining,
    "teacher": TeacherTraining,
    "waveglow": WaveGlowTraining,
    "wg-wavenet": WGWaveNetTraining,
}
