"""Pre-emphasis and what undoes it."""

import math

import pytest
import torch

from fastwave.emphasis import Deemphasis, Emphasis


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.97, 0.999])
def test_emphasis_is_undone(coefficient, dtype):
    wave = torch.randn(2, 3000, dtype=dtype, generator=torch.Generator().manual_seed(0))
    emphasis = Emphasis(coefficient=coefficient, gain=3.0)
    emphasised = emphasis(wave)
    torch.testing.assert_close(emphasised[:, 1:], 3 * (wave[:, 1:] - coefficient * wave[:, :-1]))
    error = (emphasis.undo(emphasised) - wave).abs().max().item()
    # of the roundings of what is summed; and of the sum, which ends where its terms are 2^-30 of the first
    assert error < 8 / (1 - coefficient) * max(torch.finfo(dtype).eps, 2.0**-30)


@pytest.mark.parametrize("sizes", [[1] * 40, [0, 7, 500, 3, 0, 290], [800]])
def test_deemphasis_in_chunks_is_the_same_to_the_bit(sizes):
    emphasis = Emphasis(coefficient=0.95, gain=4.0)
    wave = torch.randn(3, sum(sizes), generator=torch.Generator().manual_seed(0))
    undo = Deemphasis(emphasis)
    assert torch.equal(torch.cat([undo(chunk) for chunk in wave.split(sizes, 1)], 1), emphasis.undo(wave))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("coefficient", 0.9999, "from 0 to 0.999"),
        ("coefficient", -0.1, "from 0 to 0.999"),
        ("coefficient", math.nan, "finite"),
        ("gain", 0.0, "above 0"),
        ("gain", "4", "finite"),
    ],
)
def test_emphasis_out_of_range(field, value, expected):
    with pytest.raises(ValueError, match=f"emphasis {field} must be {expected}, got {value!r}"):
        Emphasis(**{field: value})
