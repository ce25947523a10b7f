"""Fit how the residual stream grows with depth."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .frames import slope

LEAST_BLOCKS = 4


def growth_power(blocks: pd.DataFrame) -> float | None:
    """Return p of RMS ~ (block + 1)^p, by least squares of logarithms; None with several stacks or fewer than 4 blocks.

    0.5 for writes that are alike in size and independent, 1 for writes that all point one way, 0 for a stream that each write
    only turns.

    Args:
        blocks: columns stack, block, rms: the state behind each block, at one step.
    """
    if blocks["stack"].nunique() != 1 or len(blocks) < LEAST_BLOCKS:
        return None
    return slope(np.log(blocks["block"].to_numpy(dtype=float) + 1), blocks["rms"].to_numpy(dtype=float))
