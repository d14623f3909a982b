"""Training: clips and segments of them, one loop for every model, and a short file per objective."""

from fastwave.train.flowavenet import FloWaveNet
from fastwave.train.student import Student
from fastwave.train.teacher import Teacher

__all__ = ["TRAININGS"]

# by the name that ``fastwave train`` knows
TRAININGS = {
    "flowavenet": FloWaveNet,
    "student": Student,
    "teacher": Teacher,
}
