"""Tell whether a model is fresh from its init: its vectors are still what inits make them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .once import once
from .tables import Tables
from .thresholds import FRESH


@once
def is_fresh(tables: Tables, step: int) -> bool:
    """Return whether the model was fresh as ``step`` began."""
    rows = tables.parameters
    return started_fresh(rows[rows["step"] == step])


def started_fresh(parameters: pd.DataFrame) -> bool:
    """Return whether most vectors were exactly 1 or 0 before the step: gains and biases as inits make them.

    Args:
        parameters: rows of one step of that table. ``weight_rms`` is after the step, which moved a vector by ``update_rms``.
    """
    rows = parameters[parameters["role"].isin(["gain", "bias", "norm_bias"])].dropna(subset=["weight_rms"])
    if not len(rows):
        return False
    rms = rows["weight_rms"].to_numpy(float)
    moved = 1.001 * np.nan_to_num(rows["update_rms"].to_numpy(float)) + 1e-7
    untouched = (np.abs(rms - 1) <= moved) | (rms <= moved)
    return bool(untouched.mean() >= FRESH)
