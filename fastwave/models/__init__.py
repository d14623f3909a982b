"""The models: torch modules that train, and generate in plain PyTorch as the reference of the kernels."""

from fastwave.models.base import Model, ParallelModel, load
from fastwave.models.clarinet import ClariNetStudent, ClariNetStudentConfig
from fastwave.models.diffwave import DiffWave, DiffWaveConfig
from fastwave.models.flowavenet import FloWaveNet, FloWaveNetConfig
from fastwave.models.parallel_wavegan import ParallelWaveGAN, ParallelWaveGANConfig
from fastwave.models.squeezewave import SqueezeWave, SqueezeWaveConfig
from fastwave.models.waveglow import Denoiser, TransposedUpsampler, WaveGlow, WaveGlowConfig
from fastwave.models.wavenet import WaveNet, WaveNetConfig
from fastwave.models.wg_wavenet import ConvUpsampler, WGWaveNet, WGWaveNetConfig

__all__ = [
    "ClariNetStudent",
    "ClariNetStudentConfig",
    "ConvUpsampler",
    "Denoiser",
    "DiffWave",
    "DiffWaveConfig",
    "FloWaveNet",
    "FloWaveNetConfig",
    "Model",
    "ParallelModel",
    "ParallelWaveGAN",
    "ParallelWaveGANConfig",
    "SqueezeWave",
    "SqueezeWaveConfig",
    "TransposedUpsampler",
    "WGWaveNet",
    "WGWaveNetConfig",
    "WaveGlow",
    "WaveGlowConfig",
    "WaveNet",
    "WaveNetConfig",
    "load",
]
