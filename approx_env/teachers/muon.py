"""Muon, an optimizer for matrices and convolution kernels."""

from __future__ import annotations

from collections.abc import Iterable

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """`(m, n) float` -> the same with singular values near 1 (0.7 to 1.2), by Newton-Schulz iterations."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.T if len(matrix) > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if len(matrix) > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonalised Nesterov momentum, a kernel being the matrix `(out, in * height * width)`.

    torch's own takes matrices alone, and multiplies them in bfloat16, which few CPUs can.

    Args:
        params: tensors of two or more dimensions; vectors belong to another optimizer.
        lr: step's spectral norm (for a tall matrix, times the root of rows over columns), > 0.
        momentum: in [0, 1).
        weight_decay: share of the weights taken off in a step, times `lr`; >= 0.

    Source: K. Jordan et al., 'Muon: An optimizer for hidden layers in neural networks', 2024; Bernstein & Newhouse,
    arXiv:2409.20325.
    """

    def __init__(self, params: Iterable[torch.Tensor], lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Takes one step along the gradients; a parameter without one stays."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:  # a user's network may have frozen weights, or some that it never runs
                    continue
                gradient, state = parameter.grad, self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(gradient, 1 - group["momentum"])
                update = orthogonalised(gradient.lerp(momentum, group["momentum"]).flatten(1))
                stretch = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * stretch)
