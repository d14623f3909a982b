"""SOAP: what Adam does in another basis, whatever the basis of the problem."""

import math

import pytest
import torch

from fastwave.train.soap import SOAP


def descend(optimizer, loss, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def orthogonal(n, seed):
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]


def test_vectors_get_the_updates_of_adam():
    target = torch.randn(5, generator=torch.Generator().manual_seed(0))
    ours, adams = (torch.zeros(5, requires_grad=True) for _ in range(2))
    adam = torch.optim.Adam([adams], lr=0.01, betas=(0.95, 0.95))
    for optimizer, vector in ((SOAP([ours], lr=0.01), ours), (adam, adams)):
        descend(optimizer, lambda vector=vector: ((vector - target) ** 4).sum(), 30)
    torch.testing.assert_close(ours, adams)


@pytest.mark.parametrize("shape", [(4, 4), (4, 2, 2)])
def test_a_rotated_problem_takes_the_rotated_path(shape):
    """Left and right, of a quadratic form whose gradients have full rank."""
    generator = torch.Generator().manual_seed(1)
    rows, columns = shape[0], math.prod(shape[1:])
    inputs = torch.randn(40, columns, dtype=torch.float64, generator=generator)
    outputs = torch.randn(40, rows, dtype=torch.float64, generator=generator)
    left, right = orthogonal(rows, 2), orthogonal(columns, 3)

    def path(x, y):
        matrix = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        descend(SOAP([matrix], lr=0.01), lambda: (x @ matrix.flatten(1).T - y).square().mean(), 50)
        return matrix.detach().flatten(1)

    plain = path(inputs, outputs)
    assert plain.abs().max() > 0.1
    torch.testing.assert_close(path(inputs @ right, outputs @ left), left.T @ plain @ right, rtol=1e-5, atol=1e-7)


def test_it_learns_a_predictor_of_correlated_samples_faster_than_adam():
    """The next sample of a sum of sines, from 16 neighbours that are much alike."""
    t = torch.arange(4000) / 8000
    wave = sum(torch.sin(6.283 * f * t) / f * 100 for f in (110, 220, 330, 1700))
    past, present = wave.unfold(0, 16, 1)[:-1], wave[16:]
    losses = []
    for kind in (SOAP, torch.optim.Adam):
        weights = torch.zeros(1, 16, requires_grad=True)
        loss = lambda weights=weights: ((past @ weights.T)[:, 0] - present).square().mean()  # noqa: E731
        descend(kind([weights], lr=0.01), loss, 300)
        losses.append(loss().item())
    assert losses[0] < 0.1 * losses[1]


def test_its_state_is_saved_and_loaded():
    target = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    whole, stopped = (torch.zeros(4, 3, requires_grad=True) for _ in range(2))
    loss = lambda matrix: ((matrix - target) ** 4).sum()  # noqa: E731
    descend(SOAP([whole], lr=0.01), lambda: loss(whole), 25)
    first = SOAP([stopped], lr=0.01)
    descend(first, lambda: loss(stopped), 11)
    second = SOAP([stopped], lr=0.5)
    second.load_state_dict(first.state_dict())
    descend(second, lambda: loss(stopped), 14)
    assert torch.equal(whole, stopped)
    with pytest.raises(ValueError, match="state_dict must be of SOAP, got another optimiser's"):
        second.load_state_dict(torch.optim.Adam([stopped]).state_dict())
