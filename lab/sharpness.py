"""Measure the curvature of a loss: the largest eigenvalue of its Hessian, by power iteration on Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

ITERATIONS = 30


def sharpness(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], start: Sequence[Tensor], iterations: int = ITERATIONS
) -> tuple[float, list[Tensor]]:
    """Return the largest eigenvalue in magnitude of the Hessian, and its eigenvector, to begin with the next time.

    Args:
        loss: computes the loss; it must have second derivatives.
        parameters: with respect to which.
        start: a vector to begin with, of the parameters' shapes.
        iterations: of the power method: each is a forward and two backwards.
    """
    vector = _normed(start)
    value = 0.0
    # Fused attention has no second derivatives.
    with sdpa_kernel(SDPBackend.MATH):
        gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
        for _ in range(iterations):
            product = torch.autograd.grad(gradients, parameters, grad_outputs=vector, retain_graph=True)
            value = sum(float((a * b).sum()) for a, b in zip(product, vector, strict=True))
            vector = _normed(product)
    return value, vector


def _normed(vector: Sequence[Tensor]) -> list[Tensor]:
    norm = torch.stack([part.square().sum() for part in vector]).sum().sqrt()
    return [part.detach() / norm for part in vector]
