"""Training: clips and segments of them, one loop for every model, and a short file per objective."""

from fastwave.train.diffwave import DiffWave
from fastwave.train.student import Student
from fastwave.train.teacher import Teacher

__all__ = ["TRAININGS"]

TRAININGS = {"diffwave": DiffWave, "student": Student, "teacher": Teacher}  # by the name that ``fastwave train`` knows
