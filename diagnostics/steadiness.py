"""Tell whether a series rises steadily: Kendall's tau against its own order."""

from __future__ import annotations

import numpy as np


def order(values: np.ndarray) -> float:
    """Return Kendall's tau of ``values`` against time: 1 where every value is above all before it; NaN of fewer than two."""
    earlier, later = np.triu_indices(len(values), 1)
    return float(np.sign(values[later] - values[earlier]).mean()) if len(earlier) else float("nan")
