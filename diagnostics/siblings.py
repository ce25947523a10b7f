"""Tell a block that stands apart from its siblings: the same quantity of the same part of the other blocks of its stack.

Healthy blocks differ, in trained networks by much and along depth by trend. One stands apart when it lies outside the range of
the others by a margin: a ratio that sampling alone does not make, and that range again, several times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .thresholds import LEAST_SIBLINGS, SIBLING_SPANS, SIBLINGS_ALIKE, SIBLINGS_SAME, SIBLINGS_VARY

MANY, FEW = 10, 5  # others: from MANY on their own extremes are left out, below FEW their span says little


@dataclass(frozen=True)
class Apart:
    """One value that stands apart.

    Attributes:
        index: which of the values.
        value: it.
        middle: median of the others.
        low: the least of the others.
        high: the largest of the others.
        n: how many others.
    """

    index: int
    value: float
    middle: float
    low: float
    high: float
    n: int

    @property
    def words(self) -> str:
        """How far it is from the others, in words."""
        if self.middle == 0:
            return f"those of the {self.n} siblings are 0"
        span = f"{self.low:.3g}" if self.low == self.high else f"{self.low:.3g} to {self.high:.3g}"
        ratio = self.value / self.middle
        return (
            f"{ratio:.3g} times the median of its {self.n} siblings ({span})"
            if ratio
            else f"its {self.n} siblings have {span}"
        )


def apart(values: Sequence[float], least: float) -> list[Apart]:
    """Return the values that stand apart from the others; none where they are fewer than four.

    Args:
        values: of each block, positive or 0; NaN where it is not known.
        least: the ratio to the nearest of the others below which none stands apart.
    """
    known = [(index, float(value)) for index, value in enumerate(values) if math.isfinite(value)]
    ordered = np.sort([value for _, value in known])
    found = []
    for index, value in known:
        others = np.delete(ordered, np.searchsorted(ordered, value))
        if len(others) >= LEAST_SIBLINGS and _is_apart(value, others, least):
            ends = float(others[0]), float(others[-1])
            found.append(Apart(index, value, float(np.median(others)), *ends, len(others)))
    # Several are a schedule over depth, or a spread; not siblings with an exception.
    return found if len(found) <= max(1, len(known) // 8) else []


def _is_apart(value: float, others: np.ndarray, least: float) -> bool:
    # A second exception at either end hides none, where there are enough others.
    inner = others[1:-1] if len(others) >= MANY else others
    if inner[-1] == 0:
        return value > 0 and others[-2] == 0
    if value == 0:
        return bool(inner[0] > 0)
    if inner[0] == 0:
        return False
    logs = np.log(inner)
    span = float(logs[-1] - logs[0])
    if span <= math.log(SIBLINGS_ALIKE if len(others) > FEW else SIBLINGS_SAME):
        margin = max(math.log(least), SIBLING_SPANS * span)
    elif len(others) < FEW:
        return False  # so few that vary so much foretell nothing of one more
    else:
        margin = max(math.log(least), math.log(SIBLINGS_VARY), (2 if len(others) < MANY else 1) * SIBLING_SPANS * span)
    return bool(math.log(value) > logs[-1] + margin or math.log(value) < logs[0] - margin)
