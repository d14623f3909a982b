"""Signals that metrics and vocoders take for speech."""

import math

import torch

RATE = 22_050


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def speech_like(seconds: float = 1.5) -> torch.Tensor:
    """Harmonics of a gliding pitch under syllables."""
    time = torch.arange(int(seconds * RATE)) / RATE
    phase = 2 * math.pi * (120 * time + 20 * time.square())
    harmonics = sum(torch.sin(k * phase) / k for k in range(1, 30))
    return 0.2 * harmonics * torch.sin(2 * math.pi * 3 * time).clamp(min=0) + 0.001 * noise(len(time))
