"""Say what a chart is: a figure with the sentence that reads it and the table behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
import plotly.graph_objects as go
from rheoscope.diagnostics.tables import Tables
from rheoscope.reports.compared import Compared

MOST_COLUMNS = 240  # steps of a heatmap
MOST_LINES = 6


@dataclass(frozen=True)
class Chart:
    """One chart of a report.

    Attributes:
        key: its anchor in the page, of letters and hyphens.
        title: what the eye should take away, with its number.
        reading: how to read it, in one or two sentences.
        figure: None where there is nothing to draw.
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
