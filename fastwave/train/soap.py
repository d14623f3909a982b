"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., 2024, arXiv 2409.11321)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["SOAP"]


class SOAP(torch.optim.Optimizer):
    """Neighbouring samples of speech are alike, and Adam, which scales each weight by itself, learns slowly from such.

    The gradient of a matrix G (a convolution's: output channels by all else) is rotated into the eigenvectors of the
    means of G G^T and G^T G, where its entries hardly correlate. The first gradient only gives these means.

    Args:
        parameters: what is updated; those of one dimension get Adam's updates.
        lr: learning rate.
        betas: decay of the gradient's mean, and of the means of its squares.
        eps: added to the root of the mean of squares.
        period: updates between two renewals of the eigenvectors, each by a step of the power method.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        period: int = 10,
    ):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "period": period})

    def load_state_dict(self, state_dict: dict) -> None:
        """ValueError where another optimiser's is given."""
        if any("period" not in group for group in state_dict["param_groups"]):
            raise ValueError("state_dict must be of SOAP, got another optimiser's")
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, self.state[parameter], **group)

    def _update(self, parameter: Tensor, state: dict, *, lr, betas, eps, period, **_) -> None:
        gradient = parameter.grad
        is_matrix = gradient.ndim > 1
        if is_matrix:
            gradient = gradient.flatten(1)
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
            if is_matrix:
                for side, product in _products(gradient).items():
                    state[side] = (1 - betas[1]) * product
                    state[f"{side}_basis"] = torch.linalg.eigh(product.double())[1].flip(1).to(product)
                return
        state["step"] += 1
        mean, square = state["mean"], state["square"]
        mean.lerp_(gradient, 1 - betas[0])
        if is_matrix:
            left, right = state["left_basis"], state["right_basis"]
            mean, gradient = left.T @ mean @ right, left.T @ gradient @ right
        square.lerp_(gradient.square(), 1 - betas[1])
        corrections = [1 - beta ** state["step"] for beta in betas]
        update = (mean / corrections[0]) / ((square / corrections[1]).sqrt() + eps)
        if is_matrix:
            update = left @ update @ right.T
        parameter.sub_(lr * update.view_as(parameter))
        if is_matrix:
            for side, product in _products(parameter.grad.flatten(1)).items():
                state[side].lerp_(product, 1 - betas[1])
            if state["step"] % period == 0:
                self._renew(state)

    def _renew(self, state: dict) -> None:
        """A step of the power method, on eigenvectors in the order of their eigenvalues, squares along with them."""
        for side, axis in ("left", 0), ("right", 1):
            basis, product = state[f"{side}_basis"], state[side]
            order = (basis * (product @ basis)).sum(0).argsort(descending=True)
            state["square"] = state["square"].index_select(axis, order)
            state[f"{side}_basis"] = torch.linalg.qr(product @ basis[:, order])[0]


def _products(gradient: Tensor) -> dict[str, Tensor]:
    """G G^T and G^T G."""
    return {"left": gradient @ gradient.T, "right": gradient.T @ gradient}
