"""Training: clips and segments of them, one loop for every model, and a short file per objective."""

from fastwave.train.diffwave import DiffWave
from fastwave.train.flowavenet import FloWaveNet
from fastwave.train.parallel_wavegan import ParallelWaveGANTraining
from fastwave.train.squeezewave import SqueezeWave
from fastwave.train.student import Student
from fastwave.train.teacher import Teacher
from fastwave.train.waveglow import WaveGlow
from fastwave.train.wg_wavenet import WGWaveNet

__all__ = ["TRAININGS"]

# by the name that ``fastwave train`` knows
TRAININGS = {
    "diffwave": DiffWave,
    "flowavenet": FloWaveNet,
    "parallel-wavegan": ParallelWaveGANTraining,
    "squeezewave": SqueezeWave,
    "student": Student,
    "teacher": Teacher,
    "waveglow": WaveGlow,
    "wg-wavenet": WGWaveNet,
}
