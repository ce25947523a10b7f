"""A block that stands apart from its siblings is told, and spreads, trends and schedules are not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rheoscope.diagnostics.siblings import apart


def indices(values: list[float], least: float = 1.15) -> list[int]:
    return [odd.index for odd in apart(values, least)]


@pytest.mark.parametrize("place", [0, 3, 7])
@pytest.mark.parametrize("factor", [0.0, 0.1, 0.8, 1.25, 30.0])
def test_one_that_is_scaled_is_told_wherever_it_is(place: int, factor: float) -> None:
    values = list(0.02 * (1 + 0.01 * np.random.default_rng(0).standard_normal(8)))
    values[place] *= factor
    assert indices(values) == [place]


def test_one_that_is_not_zero_among_zeros_is_told() -> None:
    assert indices([0, 0, 0, 0.02, 0, 0]) == [3]


@pytest.mark.parametrize(
    "values",
    [
        [2.0**i for i in range(8)],  # a trend
        [0.02 / math.sqrt(2 * (i + 1)) for i in range(12)],  # an init that shrinks with depth
        [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25],  # a schedule
        [1, 100, 1, 1],  # as an exception it would be told
        [1.0, 5.0, 0.1],  # too few
        [float("nan")] * 8,
    ],
)
def test_what_no_sibling_law_covers(values: list[float]) -> None:
    expected = [1] if values == [1, 100, 1, 1] else []
    assert indices(values) == expected


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 48), st.floats(0.01, 1.0))
def test_healthy_spreads_alarm_rarely(seed: int, n: int, spread: float) -> None:
    values = np.exp(spread * np.random.default_rng(seed).standard_normal(n))
    found = apart(list(values), 1.15)
    # Whoever is told really lies outside all the others.
    for odd in found:
        others = np.delete(values, odd.index)
        assert odd.value > 1.15 * others.max() or odd.value < others.min() / 1.15 or n > 7


def test_healthy_gaussian_spreads_alarm_in_fewer_than_one_in_a_hundred() -> None:
    draws = np.exp(0.3 * np.random.default_rng(1).standard_normal((2_000, 12)))
    assert sum(bool(apart(list(row), 1.15)) for row in draws) < 20
