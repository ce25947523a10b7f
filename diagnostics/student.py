"""Give the mean of a few values with an interval, by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence

# The .975 quantile of Student's t by degrees of freedom (any table of it, such as Fisher and Yates 1938).
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def t_quantile(freedom: float) -> float:
    """Return the .975 quantile of Student's t, for a fraction of degrees of freedom that of the next lower whole number.

    Raises:
        ValueError: fewer than one degree of freedom.
    """
    if freedom < 1:
        raise ValueError(f"Expected at least one degree of freedom, got {freedom}. Give two values or more.")
    # Beyond the table by Cornish and Fisher's expansion, 1.95996 + 2.3722 / n + 2.8225 / n^2: within .001.
    return _T[int(freedom) - 1] if freedom < len(_T) + 1 else 1.95996 + 2.3722 / freedom + 2.8225 / freedom**2


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean with its 95 % interval: (mean, low, high); both ends NaN with fewer than two values."""
    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return mean, math.nan, math.nan
    half = t_quantile(n - 1) * math.sqrt(variance(values) / n)
    return mean, mean - half, mean + half


def variance(values: Sequence[float]) -> float:
    """Return the unbiased variance of at least two values."""
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def contrast_interval(cells: Sequence[tuple[float, Sequence[float]]]) -> tuple[float, float, float]:
    """Return a weighted sum of the means of several cells with its 95 % interval (Welch 1947; Satterthwaite 1946).

    Args:
        cells: weight and values of each cell, at least two values in each.
    """
    value = math.fsum(weight * math.fsum(values) / len(values) for weight, values in cells)
    parts = [(weight**2 * variance(values) / len(values), len(values) - 1) for weight, values in cells]
    total = math.fsum(part for part, _ in parts)
    if total == 0:
        return value, value, value
    freedom = total**2 / math.fsum(part**2 / n for part, n in parts)
    half = t_quantile(max(1.0, freedom)) * math.sqrt(total)
    return value, value - half, value + half
