"""Draw depth profiles in which the page can bring up any of the chosen steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from rheoscope.diagnostics.once import once
from rheoscope.diagnostics.tables import Tables

from .chart import standing_out
from .lines import lines_over_depth
from .places import departures

MOST_STEPS = 24


def profile(
    tables: Tables,
    frame: pd.DataFrame,
    column: str,
    y: str,
    *,
    log_y: bool = True,
    theory: Mapping[int, pd.DataFrame] | None = None,
) -> go.Figure:
    """Return ``column`` of ``frame`` over depth, as ``lines_over_depth`` draws it."""
    return lines_over_depth(frame, column, y, steps=steps_to_bring_up(tables), log_y=log_y, theory=theory)


@once
def steps_to_bring_up(tables: Tables) -> list[int]:
    """Return at most 24 sampled steps, of more those whose states or gradients stand out; none where there is one alone."""
    steps = tables.sampled_steps
    if len(steps) < 2:
        return []
    if len(steps) <= MOST_STEPS:
        return list(steps)
    away = np.zeros(len(steps))
    for frame in (tables.state_rms(), tables.gradient_profile()):
        if len(frame):
            grid = frame.pivot_table(index=["stack", "depth"], columns="step", values="rms", dropna=False)
            found = pd.Series(departures(grid, log=True), index=grid.columns).reindex(steps).fillna(0.0)
            away = np.maximum(away, found.to_numpy())
    return [steps[place] for place in standing_out(away, MOST_STEPS)]
