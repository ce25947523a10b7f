"""Say what a chart is: a figure with the sentence that reads it and the table behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from rheoscope.diagnostics.tables import Tables
from rheoscope.reports.compared import Compared

MOST_LINES = 6
MOST_POINTS = 1_000  # of one line


@dataclass(frozen=True)
class Chart:
    """One chart of a report.

    Attributes:
        key: its anchor in the page, of letters and hyphens.
        title: what the eye should take away, with its number.
        reading: how to read it, in one or two sentences.
        figure: None where there is nothing to draw; without ``absent`` the table itself is what is shown.
        table: the drawn numbers, for those who cannot see the figure or want them exactly.
        absent: why there is nothing to draw.
    """

    key: str
    title: str
    reading: str
    figure: go.Figure | None = None
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    absent: str = ""


RunChart = Callable[[Tables], Chart]
ComparisonChart = Callable[[Compared], Chart]


def chosen(values: list[int], most: int) -> list[int]:
    """Return at most ``most`` of the sorted ``values``, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    places = [round(index * (len(values) - 1) / (most - 1)) for index in range(most)]
    return [values[place] for place in dict.fromkeys(places)]


def standing_out(departures: np.ndarray, most: int) -> list[int]:
    """Return at most ``most`` places, in order: the first, the last, and of each stretch between the one that departs most.

    Args:
        departures: shape (places); how far each departs from what is usual. NaN where that is not known.
        most: at least 3.
    """
    n = len(departures)
    if n <= most:
        return list(range(n))
    known = np.where(np.isnan(departures), -1.0, departures)
    edges = np.linspace(1, n - 1, most - 1).round().astype(int)
    inside = [int(low + known[low:high].argmax()) for low, high in pairwise(edges)]
    return [0, *inside, n - 1]


def extremes(values: np.ndarray, most: int) -> list[int]:
    """Return at most ``most`` places, in order: the first, the last, and of each stretch the lowest and the highest value.

    Args:
        values: shape (places).
        most: at least 4.
    """
    n = len(values)
    if n <= most:
        return list(range(n))
    edges = np.linspace(0, n, (most - 2) // 2 + 1).round().astype(int)
    found = {0, n - 1}
    for low, high in pairwise(edges):
        part = values[low:high]
        if not np.isnan(part).all():
            found |= {int(low + np.nanargmin(part)), int(low + np.nanargmax(part))}
    return sorted(found)


def rounded(value: float, digits: int = 6) -> float:
    """Return a number with as many digits as a chart can show: the page is the smaller for it."""
    return float(f"{value:.{digits - 1}e}")
