"""What a product in bfloat16 or int8 rounds: its weights and its inputs. Sums are float32 (int8's exact int32 first).

bfloat16: to nearest, ties to even. int8: ``q = round(x / scale)``, -127..127, with one scale per row of a matrix,
``max |w| / 127``, and one per input vector (a column's channels): the least power of two with
``max |x| <= 127.25 scale``, so that rounding again changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DTYPES", "quantized", "rounded"]

DTYPES = ("float32", "bfloat16", "int8")


def quantized(x: Tensor, *, power_of_two: bool) -> tuple[Tensor, Tensor]:
    """x along dim 1 as integers -127..127 and their scale: x ~ q . scale."""
    largest = x.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    if power_of_two:
        mantissa, exponent = torch.frexp(largest / 127.25)  # mantissa from 1/2 up to 1
        scale = torch.ldexp(torch.ones_like(largest), exponent - (mantissa == 0.5).int())
    else:
        scale = largest / 127
    return (x / scale).round(), scale


def rounded(x: Tensor, dtype: str, *, power_of_two: bool = True) -> Tensor:
    """x (batch, channels, time), or a matrix (rows, depth), as ``dtype`` holds it, in x's own type."""
    if dtype == "float32":
        return x
    if dtype == "bfloat16":
        return x.to(torch.bfloat16).to(x.dtype)
    q, scale = quantized(x, power_of_two=power_of_two)
    return q * scale
