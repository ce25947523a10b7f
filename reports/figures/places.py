"""Name the places of a stack, and choose which of many are drawn."""

from __future__ import annotations

import numpy as np
import pandas as pd
from rheoscope.reports.theme import plain


def place_name(stack: int, block: int, branch: str, *, n_stacks: int = 1) -> str:
    """Return what a reader calls a place of the stream; the page finds the block of a mark by how this begins."""
    outside = "final norm" if branch == "output" else "embedding"
    where = outside if block < 0 else f"block {block} {plain(branch)}".strip()
    return where if n_stacks == 1 else f"stack {stack}: {where}"


def n_stacks(frame: pd.DataFrame) -> int:
    """Return how many stacks a frame speaks of."""
    return int(frame["stack"].nunique()) if len(frame) else 0


def departures(grid: pd.DataFrame, *, log: bool) -> np.ndarray:
    """Return, for every column of a grid, how far it is from a row's median, where it is furthest; infinite counts most.

    Args:
        grid: places by steps, to tell which steps stand out; turned, to tell which places do.
        log: whether distances are of logarithms.
    """
    values = grid.to_numpy(dtype=float)
    if not values.size:
        return np.zeros(values.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.where(values > 0, np.log(values), np.nan) if log else values
    finite_levels = pd.DataFrame(np.where(np.isfinite(levels), levels, np.nan))
    away = finite_levels.sub(finite_levels.median(axis=1), axis=0)
    found = away.abs().max(axis=0).to_numpy(dtype=float, copy=True)
    found[np.isinf(values).any(axis=0)] = np.inf
    return found
