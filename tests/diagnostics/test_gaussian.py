"""Moments of activations against Gauss-Hermite quadrature and torch's own functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from rheoscope.diagnostics.gaussian import MOMENTS, SLOPES
from torch import Tensor
from torch.nn import functional

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "relu_squared": lambda x: functional.relu(x) ** 2,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
CASES = [(v, r) for v in (0.1, 1.0, 4.0) for r in (-0.5, 0.0, 0.3, 0.9)]


def slope_of(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the derivative of an elementwise function, by autograd."""

    def slope(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(function(x).sum(), x)[0]

    return slope


def quadrature(function: Callable[[Tensor], Tensor], v: float, r: float, n: int = 400) -> float:
    """Return E[f(x) f(y)] by the midpoint rule over two independent Gaussians."""
    edge = 8.0
    grid = torch.linspace(-edge, edge, n + 1, dtype=torch.float64)
    z = (grid[1:] + grid[:-1]) / 2
    weight = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (2 * edge / n)
    x = math.sqrt(v) * z
    y = math.sqrt(v) * (r * z[:, None] + math.sqrt(1 - r * r) * z[None, :])
    return float((weight[:, None] * weight[None, :] * function(x)[:, None] * function(y)).sum())


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("v", "r"), CASES)
def test_the_moment_is_the_integral(name: str, v: float, r: float) -> None:
    expected = quadrature(FUNCTIONS[name], v, r)

    assert float(MOMENTS[name](v, np.array(r))) == pytest.approx(expected, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("v", "r"), CASES)
def test_the_moment_of_the_slope_is_the_integral(name: str, v: float, r: float) -> None:
    expected = quadrature(slope_of(FUNCTIONS[name]), v, r)

    assert float(SLOPES[name](v, np.array(r))) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_slope_of_one_unit_alone_is_the_mean_square_slope(name: str) -> None:
    z = torch.randn(1_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    expected = float(slope_of(FUNCTIONS[name])(z).square().mean())

    assert float(SLOPES[name](1.0, np.array(1.0))) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("name", ["relu", "relu_squared", "silu", "sigmoid", "tanh"])
def test_two_tokens_of_different_variance_have_the_moment_of_their_own_integral(name: str) -> None:
    function, variances, r = FUNCTIONS[name], np.array([0.3, 2.0]), 0.6
    z = torch.randn(2, 2_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = math.sqrt(variances[0]) * z[0]
    y = math.sqrt(variances[1]) * (r * z[0] + math.sqrt(1 - r * r) * z[1])

    expected = float((function(x) * function(y)).mean())

    found = MOMENTS[name](variances, np.array([[1.0, r], [r, 1.0]]))
    assert float(found[0, 1]) == pytest.approx(expected, rel=1e-2)
