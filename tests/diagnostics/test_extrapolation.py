"""When a series reaches a limit: against series whose law and time are known, and against those that never reach it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rheoscope.diagnostics.extrapolation import reach

STEPS = np.arange(0, 400, 10)


def noise(size: float, seed: int = 0, n: int = len(STEPS)) -> np.ndarray:
    return np.asarray(np.exp(size * np.random.default_rng(seed).normal(size=n)))


@pytest.mark.parametrize("size", [0.0, 0.05])
def test_exponential_growth_reaches_its_limit_when_it_does(size: float) -> None:
    found = reach(STEPS, np.exp(STEPS / 50) * noise(size), math.exp(500 / 50))

    assert found is not None
    assert found.law == "exponential"
    assert found.step == pytest.approx(500, rel=0.03)
    assert found.earliest <= 500 + 1e-6
    assert found.latest >= 500 - 1e-6


@pytest.mark.parametrize("power", [1.0, 2.5])
def test_a_power_of_the_step_reaches_its_limit_when_it_does(power: float) -> None:
    found = reach(STEPS, (1.0 + STEPS) ** power * noise(0.005), 800.0**power)

    assert found is not None
    assert found.law == "power" or power == 1.0
    assert found.step == pytest.approx(800, rel=0.1)


def test_growth_along_a_line_and_along_its_root_reaches_its_limit_when_it_does() -> None:
    line, root = reach(STEPS, 5 + 0.1 * STEPS, 60.0), reach(STEPS, np.sqrt(4 + 0.1 * STEPS), 8.0)

    assert line is not None
    assert root is not None
    assert (line.law, root.law) == ("linear", "root")
    assert (line.step, root.step) == pytest.approx((550, 600), rel=0.02)


def test_the_band_holds_the_truth_nine_times_in_ten() -> None:
    held = []
    for seed in range(200):
        found = reach(STEPS, np.exp(STEPS / 80) * noise(0.1, seed), math.exp(480 / 80))
        if found is not None:
            held.append(found.earliest <= 480 <= found.latest)

    assert len(held) > 80  # the others are refused: their band is too wide
    assert np.mean(held) > 0.85


def test_a_series_that_saturates_below_the_limit_has_no_forecast() -> None:
    # A logistic whose growth has begun to fade: it ends at 100 and never reaches 120.
    for middle in (100, 200, 250):
        assert reach(STEPS, 100 / (1 + np.exp(-(STEPS - middle) / 30)), 120) is None


def test_noise_has_no_forecast() -> None:
    assert [reach(STEPS, noise(0.5, seed), 20.0) for seed in range(200)] == [None] * 200


def test_a_slow_random_walk_rarely_has_one() -> None:
    walks = [np.exp(0.05 * np.random.default_rng(seed).normal(size=len(STEPS)).cumsum()) for seed in range(300)]

    assert np.mean([reach(STEPS, walk, 20.0) is not None for walk in walks]) < 0.03


@pytest.mark.parametrize(
    ("values", "limit"),
    [
        (np.full(len(STEPS), 3.0), 10.0),  # constant
        (np.exp(-STEPS / 50), 10.0),  # falls
        (np.exp(STEPS / 50), 1.0),  # there already
        (np.exp(STEPS / 5000), 1e4),  # farther than ten times the run
        (np.where(STEPS == 380, np.inf, np.exp(STEPS / 50)), 1e6),
        (np.where(STEPS == 380, 0.0, np.exp(STEPS / 50)), 1e6),
        (np.exp(STEPS / 50), math.exp(60)),  # grows by 4 in ln over the window, and 52 are missing
    ],
)
def test_what_the_past_does_not_tell_is_refused(values: np.ndarray, limit: float) -> None:
    assert reach(STEPS, values, limit) is None


def test_too_few_points_are_refused() -> None:
    few = STEPS[:12]

    assert reach(few, np.exp(few / 50), 1e3) is None
    assert reach(few[:0], few[:0], 1e3) is None


def test_a_jump_long_ago_does_not_count() -> None:
    values = np.exp(STEPS / 50) * np.where(STEPS < 150, 30.0, 1.0)

    found = reach(STEPS, values, math.exp(500 / 50))

    assert found is not None
    assert found.step == pytest.approx(500, rel=0.03)
