"""Between speech and the waveform that a model learns: pre-emphasis, and what undoes it chunk by chunk."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from fastwave.audio import preemphasized

__all__ = ["PLAIN", "Deemphasis", "Emphasis"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Emphasis:
    """What a model makes of speech x before it learns it: gain (x[t] - coefficient x[t - 1]).

    A model's errors are about as loud at all frequencies, and speech is not: undone, pre-emphasis shapes them as speech
    is (Tachibana et al., 2018). By default the model learns speech as it is. A softmax and a mixture of logistics know
    amplitudes up to 1 alone: for them the gain must keep speech there.

    Raises:
        ValueError: coefficient not from 0 to 0.999, gain not above 0.
    """

    coefficient: float = 0.0
    gain: float = 1.0

    def __post_init__(self) -> None:
        for name in ("coefficient", "gain"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"emphasis {name} must be finite, got {value!r}")
        if not 0 <= self.coefficient <= 0.999:  # what undoes it remembers 2^15 samples then
            raise ValueError(f"emphasis coefficient must be from 0 to 0.999, got {self.coefficient}")
        if self.gain <= 0:
            raise ValueError(f"emphasis gain must be above 0, got {self.gain}")

    def __call__(self, wave: Tensor) -> Tensor:
        """Speech (batch, samples) as the model learns it."""
        return self.gain * preemphasized(wave, self.coefficient)

    def undo(self, wave: Tensor) -> Tensor:
        """Speech of what a model made, (batch, samples)."""
        return Deemphasis(self)(wave)


PLAIN = Emphasis()  # speech as it is


class Deemphasis:
    """Undoes an emphasis, chunk by chunk; the samples do not depend, to the last bit, on how they are cut.

    sum_n k^n x[t - n] is prod_j (1 + k^(2^j) D^(2^j)) x, D a delay by one sample; the product ends where a factor is 1
    in single precision.
    """

    def __init__(self, emphasis: Emphasis):
        self.emphasis, self.past = emphasis, {}

    def __call__(self, wave: Tensor) -> Tensor:
        wave, delay = wave / self.emphasis.gain, 1
        while (factor := self.emphasis.coefficient**delay) > 2.0**-30:
            past = self.past.get(delay, wave.new_zeros(len(wave), delay))
            wave_and_past = torch.cat((past, wave), 1)
            self.past[delay] = wave_and_past[:, wave.shape[1] :]
            wave, delay = wave + factor * wave_and_past[:, : wave.shape[1]], 2 * delay
        return wave
