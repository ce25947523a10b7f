"""Say what several seeds gave as one number with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from rheoscope.diagnostics.student import mean_interval


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
    if not found:
        return Interval(math.nan, math.nan, math.nan, 0)
    if len(found) == 1:
        return Interval(found[0], found[0], found[0], 1)
    return Interval(*mean_interval(found), n=len(found))
