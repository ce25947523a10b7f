"""Tell whether a model is fresh from its init: its vectors are still what inits make them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .once import once
from .tables import Tables
from .thresholds import CHANCE_OF_UPDATES, FEWEST_NORM_VECTORS, FRESH


@once
def is_fresh(tables: Tables, step: int) -> bool:
    """Return whether the model was fresh as ``step`` began."""
    rows = tables.parameters
    return started_fresh(rows[rows["step"] == step])


def started_fresh(parameters: pd.DataFrame) -> bool:
    """Return whether most vectors were exactly 1 or 0 before the step: gains and biases as inits make them.

    Some inits draw biases at random: then the norms' vectors tell, where they are trained and would have moved.

    Args:
        parameters: rows of one step of that table. ``weight_rms`` is after the step, which moved a vector by ``update_rms``.
    """
    rows = parameters[parameters["role"].isin(["gain", "bias", "norm_bias"])].dropna(subset=["weight_rms"])
    of_norms = rows[(rows["role"] != "bias") & rows["gradient_rms"].notna()]
    return _untouched(rows) >= FRESH or (len(of_norms) >= FEWEST_NORM_VECTORS and _untouched(of_norms) >= FRESH)


def _untouched(rows: pd.DataFrame) -> float:
    """Return the share of vectors that are 1 or 0 but for the step's own update."""
    if not len(rows):
        return 0.0
    rms = rows["weight_rms"].to_numpy(float)
    moved = 1.001 * np.nan_to_num(rows["update_rms"].to_numpy(float)) + 1e-7
    return float(((np.abs(rms - 1) <= moved) | (rms <= moved)).mean())


def before_step(weights: pd.DataFrame) -> pd.Series:
    """Return the RMS of weights before the step, whose update an init knows nothing of; NaN where that is too large to tell."""
    after, update = weights["weight_rms"] ** 2, weights["update_rms"].fillna(0.0) ** 2
    before = (after - update).clip(lower=0.0)
    chance = 6 * (before * update / weights["n"]) ** 0.5  # of twice the product of n random numbers with others
    return before.where(chance <= CHANCE_OF_UPDATES * before) ** 0.5
