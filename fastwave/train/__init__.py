"""Training: clips and segments of them, one loop for every model, and a short file per objective."""

from fastwave.train.student import Student
from fastwave.train.teacher import Teacher
from fastwave.train.waveglow import WaveGlow
from fastwave.train.wg_wavenet import WGWaveNet

__all__ = ["TRAININGS"]

# by the name that ``fastwave train`` knows
TRAININGS = {"student": Student, "teacher": Teacher, "waveglow": WaveGlow, "wg-wavenet": WGWaveNet}
