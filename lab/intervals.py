"""Say what several seeds gave as one number with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Two-sided 95 % quantiles of Student's t with n - 1 degrees of freedom, for n from 2.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds.

    Attributes:
        mean: of the finite values; NaN without any.
        low: lower end of its 95 % interval by Student's t; of one seed the value itself.
        high: upper end.
        n: how many seeds.
    """

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """Return it with three digits, and what the interval is."""
        if not self.n:
            return "not measured"
        if self.n == 1:
            return f"{self.mean:.3g} (one value)"
        return f"{self.mean:.3g} ({self.low:.3g} to {self.high:.3g}, {self.n} seeds)"


def over_seeds(values: Iterable[float]) -> Interval:
    """Return the mean of ``values``, one a seed, with its interval; values that are not finite are left out."""
    found = [float(value) for value in values if value is not None and math.isfinite(value)]
    n = len(found)
    if not n:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = math.fsum(found) / n
    if n == 1:
        return Interval(mean, mean, mean, 1)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in found) / (n - 1))
    half = _T[min(n - 2, len(_T) - 1)] * spread / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)
