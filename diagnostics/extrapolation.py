"""Say when a growing series reaches a limit, with a band; refuse where the past does not tell.

Growth follows one of four laws: exponential, a power of the step, linear, or the root of a line (a square that grows linearly, as
weights that walk at random do). In the coordinates of each the series is a line. Lines are Theil and Sen's: medians of the slopes
between all pairs of points, whose spread gives the band. Which law holds is settled by what it foretells: fitted to the first
two thirds of the window, it is tried on the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .steadiness import order
from .thresholds import (
    FORECAST_FARTHEST,
    FORECAST_LEAST_POINTS,
    FORECAST_MOST_POINTS,
    FORECAST_ORDERED,
    FORECAST_RIVAL,
    FORECAST_SEEN,
    FORECAST_SIGNIFICANT,
    FORECAST_STEADY,
    FORECAST_WIDEST,
    FORECAST_WINDOW,
)

_Z = 1.96  # of the median slope; that growth follows one of two laws alone makes it a band of 90 %, not 95


@dataclass(frozen=True)
class Reach:
    """When a limit is reached.

    Attributes:
        step: best estimate.
        earliest: of the 90 % band.
        latest: of it; infinite where the band does not exclude that growth stops.
        law: exponential, power, linear or root.
    """

    step: float
    earliest: float
    latest: float
    law: str


@dataclass(frozen=True)
class _Line:
    """y = level + slope * u, with the band of the slope and the residuals' robust std."""

    slope: float
    low: float
    high: float
    level: float
    spread: float


@dataclass(frozen=True)
class Law:
    """Coordinates in which a growing series is a line: those of the step and of the value, with their inverses."""

    u: Callable[[np.ndarray], np.ndarray]
    step: Callable[[float], float]
    y: Callable[[np.ndarray], np.ndarray]
    value: Callable[[np.ndarray], np.ndarray]


def _itself(x: np.ndarray) -> np.ndarray:
    return x


LAWS = {
    "exponential": Law(_itself, float, np.log, np.exp),
    "power": Law(np.log, lambda u: math.exp(min(u, 700.0)), np.log, np.exp),
    "linear": Law(_itself, float, _itself, _itself),
    "root": Law(_itself, float, np.square, lambda y: np.sqrt(np.maximum(y, 0.0))),
}


def reach(steps: np.ndarray, values: np.ndarray, limit: float) -> Reach | None:
    """Return when ``values`` will have grown to ``limit``; None where that cannot be told.

    Refused are: fewer than FORECAST_LEAST_POINTS points in the recent window, values that are not positive and finite, a limit
    that is already reached, growth that is not steady (order, significance, a slope that fades), a law that fails on the
    window's own last third, a limit that lies farther than FORECAST_FARTHEST times the run so far, and a band that is wider
    than FORECAST_WIDEST.

    Args:
        steps: (points,), rising.
        values: (points,), positive.
        limit: positive.
    """
    steps, values = np.asarray(steps, dtype=float) + 1, np.asarray(values, dtype=float)
    begins = steps[-1] - FORECAST_WINDOW * (steps[-1] - steps[0]) if len(steps) else 0.0
    recent = steps >= begins
    steps, values, first = steps[recent], values[recent], steps[0] if len(steps) else 0.0
    if len(steps) < FORECAST_LEAST_POINTS or not np.isfinite(values).all() or not (values > 0).all():
        return None
    values = _smooth(values)
    thin = np.unique(np.linspace(0, len(steps) - 1, FORECAST_MOST_POINTS).round().astype(int))
    steps, values = steps[thin], values[thin]
    if values.max() >= limit or order(values) < FORECAST_ORDERED:
        return None
    misses = {name: _miss(steps, values, law) for name, law in LAWS.items()}
    name = min(misses, key=lambda name: misses[name])
    law = LAWS[name]
    u, y = law.u(steps), law.y(values)
    line = _line(u, y)
    grown, missing = line.slope * (u[-1] - u[0]), float(law.y(np.array(limit))) - line.level - line.slope * u[-1]
    is_steady = (
        line.slope > 0
        and grown > FORECAST_SIGNIFICANT * line.spread
        and _fades(u, y) > FORECAST_STEADY
        and missing < grown / FORECAST_SEEN
    )
    if not is_steady:
        return None
    found = law.step(u[-1] + max(0.0, missing) / line.slope)
    if not steps[-1] < found < steps[-1] + FORECAST_FARTHEST * (steps[-1] - first):
        return None
    # Laws that foretold about as well give bands of their own: the whole holds all of them.
    bands = [
        _band(steps, values, LAWS[other], limit)
        for other, miss in misses.items()
        if miss <= FORECAST_RIVAL * misses[name]
    ]
    early, late = max(min(b[0] for b in bands), steps[-1]), max(b[1] for b in bands)
    if late - steps[-1] > FORECAST_WIDEST * (found - steps[-1]) or found - steps[-1] > FORECAST_WIDEST * (
        early - steps[-1]
    ):
        return None
    return Reach(found - 1, early - 1, late - 1, name)


def _smooth(values: np.ndarray, half: int = 2) -> np.ndarray:
    """Return running medians of five: extremes of a batch are no growth."""
    padded = np.pad(values, half, mode="edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=1))


def _band(steps: np.ndarray, values: np.ndarray, law: Law, limit: float) -> tuple[float, float]:
    """Return the earliest and the latest step at which a law reaches the limit."""
    u, y = law.u(steps), law.y(values)
    line = _line(u, y)
    middle = float(u.mean())  # about which the slope is uncertain
    missing = float(law.y(np.array(limit))) - line.level - line.slope * middle
    early = law.step(middle + (missing - line.spread / 2) / line.high) if line.high > 0 else math.inf
    return early, law.step(middle + (missing + line.spread / 2) / line.low) if line.low > 0 else math.inf


def _line(u: np.ndarray, y: np.ndarray) -> _Line:
    """Return Theil and Sen's line, its slope's band by Kendall's variance (Sen 1968)."""
    n = len(u)
    earlier, later = np.triu_indices(n, 1)
    slopes = np.sort((y[later] - y[earlier]) / (u[later] - u[earlier]))
    half = _Z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18) / 2
    middle = len(slopes) / 2
    low, high = (slopes[int(np.clip(place, 0, len(slopes) - 1))] for place in (middle - half, middle + half))
    slope = float(np.median(slopes))
    rest = y - slope * u
    level = float(np.median(rest))
    return _Line(slope, float(low), float(high), level, 1.4826 * float(np.median(np.abs(rest - level))))


def _fades(u: np.ndarray, y: np.ndarray) -> float:
    """Return the slope of the last half of the window over that of the first; 1 for a line."""
    half = len(u) // 2
    first, last = _line(u[: half + 1], y[: half + 1]).slope, _line(u[half:], y[half:]).slope
    return last / first if first > 0 else 0.0


def _miss(steps: np.ndarray, values: np.ndarray, law: Law) -> float:
    """Return by how much a law fitted to the window's first two thirds misses its last third, median of |ln|."""
    u, known = law.u(steps), 2 * len(steps) // 3
    line = _line(u[:known], law.y(values[:known]))
    foretold = law.value(line.level + line.slope * u[known:])
    return float(np.median(np.abs(np.log(values[known:] / np.maximum(foretold, 1e-300)))))
