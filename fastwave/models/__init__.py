"""The models: torch modules that train, and generate in plain PyTorch as the reference of the kernels."""

from fastwave.models.base import Model, ParallelModel, load
from fastwave.models.clarinet import ClariNetStudent, ClariNetStudentConfig
from fastwave.models.parallel_wavegan import ParallelWaveGAN, ParallelWaveGANConfig
from fastwave.models.wavenet import WaveNet, WaveNetConfig

__all__ = [
    "ClariNetStudent",
    "ClariNetStudentConfig",
    "Model",
    "ParallelModel",
    "ParallelWaveGAN",
    "ParallelWaveGANConfig",
    "WaveNet",
    "WaveNetConfig",
    "load",
]
