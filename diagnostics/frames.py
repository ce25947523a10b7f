"""Do with frames what rules and figures do again and again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

PLACE = ["stack", "depth", "block", "branch"]


def groups(frame: pd.DataFrame, *keys: str) -> Iterator[tuple[list[int], pd.DataFrame]]:
    """Yield the rows of ``frame`` that share the whole numbers in columns ``keys``, in their order."""
    names = list(keys)
    known = frame.dropna(subset=names)
    numbers = np.column_stack([known[name].to_numpy(dtype=np.int64) for name in names])
    places, found = np.unique(numbers, axis=0, return_inverse=True)
    order = np.argsort(found.reshape(-1), kind="stable")
    edges = np.searchsorted(found.reshape(-1)[order], np.arange(len(places) + 1))
    for index, place in enumerate(places.tolist()):
        yield place, known.iloc[order[edges[index] : edges[index + 1]]]


def joined(rows: pd.DataFrame, keys: list[str], how: dict[str, str]) -> pd.DataFrame:
    """Return one row for each value of ``keys``, in order: columns of ``rows`` summed up as ``how`` says (mean, max, ...)."""
    grouped = rows.groupby(keys, sort=True)
    return pd.DataFrame({column: getattr(grouped[column], name)() for column, name in how.items()}).reset_index()


def largest(frame: pd.DataFrame, column: str) -> dict[str, Any]:
    """Return the row of ``frame`` with the largest value in ``column``, the first of several."""
    row = frame.sort_values(column, ascending=False, kind="stable").iloc[0]
    return {str(name): value for name, value in row.items()}


def slope(depths: np.ndarray, values: np.ndarray) -> float | None:
    """Return the least-squares slope of ln ``values`` over ``depths``; None with fewer than two positive values."""
    good = np.isfinite(values) & (values > 0)
    if good.sum() < 2 or np.ptp(depths[good]) == 0:
        return None
    return float(np.polyfit(depths[good], np.log(values[good]), 1)[0])


def block_states(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of block outputs alone: the last state of each block, without the embedding's."""
    inside = frame[frame["block"] >= 0]
    keys = [key for key in ("step", "stack", "block") if key in inside]
    return inside.sort_values("depth").groupby(keys, as_index=False).last()


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as dictionaries by column name."""
    names = [str(name) for name in frame.columns]
    columns = (column.tolist() for _, column in frame.items())
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
