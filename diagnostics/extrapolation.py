"""Say when a growing series reaches a limit, with a band; refuse where the past does not tell.

The logarithm of the series is a line over the step (exponential growth) or over its logarithm (a power of the step). Lines are
Theil and Sen's: medians of the slopes between all pairs of points, whose spread gives the band. Which of the two laws holds is
settled by what it foretells: fitted to the first two thirds of the window, it is tried on the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .thresholds import (
    FORECAST_FARTHEST,
    FORECAST_LEAST_POINTS,
    FORECAST_MISS,
    FORECAST_MOST_POINTS,
    FORECAST_ORDERED,
    FORECAST_SEEN,
    FORECAST_SIGNIFICANT,
    FORECAST_STEADY,
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
        law: exponential, or power.
        doubling: steps in which the series doubles at the last point.
    """

    step: float
    earliest: float
    latest: float
    law: str
    doubling: float


@dataclass(frozen=True)
class _Line:
    """ln value = level + slope * u, with the band of the slope and the residuals' robust std."""

    slope: float
    low: float
    high: float
    level: float
    spread: float


_LAWS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[float], float]]] = {
    "exponential": (lambda steps: steps, lambda u: u),
    "power": (lambda steps: np.log(steps), lambda u: math.exp(min(u, 700.0))),
}


def reach(steps: np.ndarray, values: np.ndarray, limit: float) -> Reach | None:
    """Return when ``values`` will have grown to ``limit``; None where that cannot be told.

    Refused are: fewer than FORECAST_LEAST_POINTS points in the recent window, values that are not positive and finite, a limit
    that is already reached, growth that is not steady (order, significance, a slope that fades), a law that fails on the
    window's own last third, and a limit that lies farther than FORECAST_FARTHEST times the run so far.

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
    thin = np.unique(np.linspace(0, len(steps) - 1, FORECAST_MOST_POINTS).round().astype(int))
    steps, logs = steps[thin], np.log(values[thin])
    target = math.log(limit)
    if logs.max() >= target or _order(logs) < FORECAST_ORDERED:
        return None
    misses = {law: _miss(steps, logs, law) for law in _LAWS}
    name = min(misses, key=lambda law: misses[law])
    u, back = _LAWS[name][0](steps), _LAWS[name][1]
    line = _line(u, logs)
    grown = line.slope * (u[-1] - u[0])
    is_steady = (
        line.slope > 0
        and grown > FORECAST_SIGNIFICANT * line.spread
        and _fades(u, logs) > FORECAST_STEADY
        and misses[name] < FORECAST_MISS * max(grown, line.spread)
        and target - logs[-1] < grown / FORECAST_SEEN
    )
    if not is_steady:
        return None
    now = line.level + line.slope * u[-1]  # of the line, not of the last noisy point
    found = back(u[-1] + max(0.0, target - now) / line.slope)
    if not steps[-1] < found < steps[-1] + FORECAST_FARTHEST * (steps[-1] - first):
        return None
    # Where the other law foretold about as well, the band holds both.
    bands = [_band(steps, logs, law, target) for law, miss in misses.items() if miss <= 2 * misses[name]]
    early, late = min(band[0] for band in bands), max(band[1] for band in bands)
    per_step = line.slope * (1.0 if name == "exponential" else 1 / steps[-1])
    return Reach(found - 1, max(early, steps[-1]) - 1, late - 1, name, math.log(2) / per_step)


def _band(steps: np.ndarray, logs: np.ndarray, law: str, target: float) -> tuple[float, float]:
    """Return the earliest and the latest step at which a law reaches the target."""
    u, back = _LAWS[law][0](steps), _LAWS[law][1]
    line = _line(u, logs)
    middle = float(u.mean())  # about which the slope is uncertain
    missing = target - line.level - line.slope * middle
    early = back(middle + (missing - line.spread / 2) / line.high)
    return early, back(middle + (missing + line.spread / 2) / line.low) if line.low > 0 else math.inf


def _line(u: np.ndarray, logs: np.ndarray) -> _Line:
    """Return Theil and Sen's line, its slope's band by Kendall's variance (Sen 1968)."""
    n = len(u)
    above, below = np.triu_indices(n, 1)
    slopes = np.sort((logs[below] - logs[above]) / (u[below] - u[above]))
    half = _Z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18) / 2
    middle = len(slopes) / 2
    low, high = (slopes[int(np.clip(place, 0, len(slopes) - 1))] for place in (middle - half, middle + half))
    slope = float(np.median(slopes))
    rest = logs - slope * u
    level = float(np.median(rest))
    return _Line(slope, float(low), float(high), level, 1.4826 * float(np.median(np.abs(rest - level))))


def _order(logs: np.ndarray) -> float:
    """Return Kendall's tau against time: 1 where every value is above all before it."""
    above, below = np.triu_indices(len(logs), 1)
    return float(np.sign(logs[below] - logs[above]).mean())


def _fades(u: np.ndarray, logs: np.ndarray) -> float:
    """Return the slope of the last half of the window over that of the first; 1 for a line."""
    half = len(u) // 2
    first, last = _line(u[: half + 1], logs[: half + 1]).slope, _line(u[half:], logs[half:]).slope
    return last / first if first > 0 else 0.0


def _miss(steps: np.ndarray, logs: np.ndarray, law: str) -> float:
    """Return by how much a law fitted to the window's first two thirds misses its last third, median of ln."""
    u, known = _LAWS[law][0](steps), 2 * len(steps) // 3
    line = _line(u[:known], logs[:known])
    return float(np.median(np.abs(logs[known:] - line.level - line.slope * u[known:])))
