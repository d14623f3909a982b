"""Training: clips and segments of them, one loop for every model, and a short file per objective."""

from fastwave.train.diffwave import DiffWave
from fastwave.train.student import Student
from fastwave.train.teacher import Teacher
from fastwave.train.waveglow import WaveGlow

__all__ = ["TRAININGS"]

# by the name that ``fastwave train`` knows
TRAININGS = {"diffwave": DiffWave, "student": Student, "teacher": Teacher, "waveglow": WaveGlow}
