import math

import pytest
import torch

from fastwave.noise import BLOCK, draw

KINDS = ("uniform", "normal", "uniform")
WHOLE = 3 * BLOCK + 100


@pytest.fixture(scope="module")
def whole():
    return draw(KINDS, 7, 3, 0, WHOLE)


def test_shape(whole):
    assert whole.shape == (3, 3, WHOLE) and whole.dtype == torch.float32 and whole.isfinite().all()


def test_a_row_does_not_depend_on_its_batch(whole):
    for batch in (1, 2):
        assert torch.equal(draw(KINDS, 7, batch, 0, WHOLE), whole[:batch])


@pytest.mark.parametrize(
    "start, samples",
    [(0, 1), (0, BLOCK), (1, BLOCK), (BLOCK - 1, 2), (BLOCK, BLOCK), (500, 2 * BLOCK + 7), (5, 0), (WHOLE - 1, 1)],
)
def test_a_window_is_a_slice(whole, start, samples):
    assert torch.equal(draw(KINDS, 7, 3, start, samples), whole[..., start : start + samples])


def test_every_row_channel_block_and_seed_differs(whole):
    values = torch.cat(
        [
            whole[..., : 3 * BLOCK].unflatten(2, (3, BLOCK))[:, [0, 2]].flatten(0, 2),
            draw(["uniform"], 8, 1, 0, BLOCK)[0],
        ]
    )
    correlation = torch.corrcoef(values) - torch.eye(len(values))
    assert correlation.abs().max() < 6 / math.sqrt(BLOCK)


def test_moments():
    n = 200_000
    uniform, normal = draw(("uniform", "normal"), 0, 1, 0, n)[0].double()
    assert uniform.min() > 0 and uniform.max() < 1
    for values, mean, variance, fourth in ((uniform, 0.5, 1 / 12, 1 / 80), (normal, 0.0, 1.0, 3.0)):
        assert abs(values.mean() - mean) < 5 * math.sqrt(variance / n)
        assert abs((values - mean).square().mean() - variance) < 5 * math.sqrt((fourth - variance**2) / n)
        assert abs((values - mean).pow(3).mean()) < 5 * math.sqrt(15 / n)


def test_the_numbers_stay():
    """A seed is a promise: the same waveform in every release."""
    expected = [[[0.6011295, 0.8961896], [-1.0366225, 0.3703241]], [[0.1445194, 0.1182552], [0.1238818, 0.1712731]]]
    torch.testing.assert_close(
        draw(("uniform", "normal"), 1234, 2, BLOCK - 1, 2), torch.tensor(expected), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_seeds(seed):
    values = draw(["normal"], seed, 1, 0, 3)
    assert values.isfinite().all() and not torch.equal(values, draw(["normal"], seed ^ 1, 1, 0, 3))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_errors(seed):
    with pytest.raises(ValueError, match=rf"seed must be in \[0, 2\*\*64\), got {seed}"):
        draw(["normal"], seed, 1, 0, 3)
