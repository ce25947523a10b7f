"""Student's t and the intervals made of it, against numerical integration and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rheoscope.diagnostics.student import contrast_interval, mean_interval, t_quantile


def tail(t: float, n: float) -> float:
    """Return the probability above ``t``, by integrating the density of Student's t after the substitution t = tan(a) sqrt(n)."""
    angles = np.linspace(math.atan(t / math.sqrt(n)), math.pi / 2, 200_001)
    density = math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2)) / math.sqrt(math.pi)
    return float(np.trapezoid(density * np.cos(angles) ** (n - 1), angles))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 29, 30, 31, 40, 100, 1_000])
def test_the_quantile_leaves_two_and_a_half_per_cent_above_it(n: int) -> None:
    assert tail(t_quantile(n), n) == pytest.approx(0.025, rel=2e-3)


def test_a_fraction_of_degrees_of_freedom_is_rounded_down_and_none_is_refused() -> None:
    assert t_quantile(3.9) == t_quantile(3)
    with pytest.raises(ValueError, match=r"Expected at least one degree of freedom, got 0"):
        t_quantile(0)


def test_the_interval_of_a_mean_by_hand() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0])

    half = 3.182 * math.sqrt(5 / 3 / 4)
    assert (mean, low, high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))
    assert math.isnan(mean_interval([1.0])[1])


def test_nineteen_in_twenty_intervals_of_a_contrast_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    signs, means, stds = (1.0, -1.0, -1.0, 1.0), (3.0, 2.5, 2.9, 2.6), (0.2, 0.1, 0.4, 0.1)
    truth = sum(sign * mean for sign, mean in zip(signs, means, strict=True))
    n, held = 4_000, 0
    for _ in range(n):
        cells = [(s, rng.normal(m, d, 5).tolist()) for s, m, d in zip(signs, means, stds, strict=True)]
        _, low, high = contrast_interval(cells)
        held += low <= truth <= high
    assert held / n == pytest.approx(0.95, abs=0.015)


def test_cells_without_any_spread_give_their_difference_alone() -> None:
    assert contrast_interval([(1.0, [2.0, 2.0]), (-1.0, [1.5, 1.5])]) == (0.5, 0.5, 0.5)
