"""fastwave: WaveNet-family vocoders on C++ and CUDA kernels."""

from fastwave import models
from fastwave.audio import MelSpec
from fastwave.converters import accelerate, convert
from fastwave.vocoder import Vocoder, load, voices

__all__ = ["MelSpec", "Vocoder", "__version__", "accelerate", "convert", "load", "models", "voices"]

__version__ = "0.1.0"
