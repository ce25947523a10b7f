"""Fit y = c x^p to a few sizes, carry it on to another with a band, and try it on the largest one that is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression

from rheoscope.diagnostics.student import t_quantile


@dataclass(frozen=True)
class PowerLaw:
    """A line through the logarithms.

    Attributes:
        exponent: p.
        error: its standard error; NaN with two points.
        level: ln c.
        spread: standard deviation of ln y about the line.
        n: how many points.
    """

    exponent: float
    error: float
    level: float
    spread: float
    n: int
    _mean: float
    _squares: float

    def at(self, x: float) -> tuple[float, float, float]:
        """Return y at ``x`` and the ends of the 95 % band of one more measurement there; infinitely wide with two points."""
        u = math.log(x)
        y = self.level + self.exponent * u
        if self.n < 3:
            return math.exp(y), 0.0, math.inf
        half = self._quantile * self.spread * math.sqrt(1 + 1 / self.n + (u - self._mean) ** 2 / self._squares)
        return math.exp(y), math.exp(y - half), math.exp(y + half)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the exponent."""
        if self.n < 3:
            return -math.inf, math.inf
        return self.exponent - self._quantile * self.error, self.exponent + self._quantile * self.error

    @property
    def _quantile(self) -> float:
        return t_quantile(self.n - 2)


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """Return the law through points by least squares of the logarithms; None where two different sizes are not known."""
    points = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True) if a > 0 and math.isfinite(b) and b > 0]
    if len({a for a, _ in points}) < 2:
        return None
    n = len(points)
    slope, level = linear_regression(*zip(*points, strict=True))
    mean = math.fsum(a for a, _ in points) / n
    squares = math.fsum((a - mean) ** 2 for a, _ in points)
    left = math.fsum((b - level - slope * a) ** 2 for a, b in points)
    spread = math.sqrt(left / (n - 2)) if n > 2 else math.nan
    return PowerLaw(slope, spread / math.sqrt(squares), level, spread, n, mean, squares)
