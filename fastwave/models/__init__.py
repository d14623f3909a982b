"""The models: torch modules that train, and generate in plain PyTorch as the reference of the kernels."""

from fastwave.models.base import Model, load
from fastwave.models.clarinet import ClariNetStudent, ClariNetStudentConfig
from fastwave.models.diffwave import DiffWave, DiffWaveConfig
from fastwave.models.waveglow import Denoiser, WaveGlow, WaveGlowConfig
from fastwave.models.wavenet import WaveNet, WaveNetConfig

__all__ = [
    "ClariNetStudent",
    "ClariNetStudentConfig",
    "Denoiser",
    "DiffWave",
    "DiffWaveConfig",
    "Model",
    "WaveGlow",
    "WaveGlowConfig",
    "WaveNet",
    "WaveNetConfig",
    "load",
]
