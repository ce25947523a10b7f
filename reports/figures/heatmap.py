"""Draw a quantity over places and steps as a heatmap, or as several on one scale of colours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rheoscope.reports.theme import PALETTE, SEQUENTIAL, axis, figure, number, plot_text

from .chart import rounded, standing_out
from .places import departures, n_stacks, place_name

MOST_COLUMNS = 240  # steps of a heatmap
MOST_ROWS = 300  # places: a screen shows no more lines
MOST_CELLS = 12_000  # of one: a tall one has fewer columns, so that the page stays small
_A_ROW = 2  # panels side by side


@dataclass(frozen=True)
class Cells:
    """What one heatmap draws.

    Attributes:
        labels: of the drawn rows, printable.
        steps: of the drawn columns.
        values: shape (rows, columns), NaN where nothing was recorded.
        colours: alike, the decimal logarithm where the scale is one; NaN where there is no colour.
        left_out: what is not drawn, in words; "" where all is.
    """

    labels: list[str]
    steps: list[int]
    values: np.ndarray
    colours: np.ndarray
    left_out: str


def heatmap(frame: pd.DataFrame, column: str, unit: str, *, by: str = "depth", log: bool = True) -> go.Figure:
    """Return a heatmap, depth (or block) by step; colours are of the decimal logarithm where ``log``.

    A value that is not finite is drawn as a grey cell with a cross; nothing was recorded where the ground shows. Of many
    steps or places the axis says how many are drawn: of each stretch the one that departs most from the usual.
    """
    cells = _cells(frame, column, by, MOST_CELLS, log=log)
    drawn = figure(x=_step_axis(cells), height=max(280, min(900, 120 + 18 * len(cells.labels))))
    scale = {"colorscale": SEQUENTIAL, "colorbar": _bar(unit, log=log)}
    for trace in _traces(cells, scale, log=log):
        drawn.add_trace(trace)
    drawn.update_yaxes(**axis(""), type="category", nticks=min(len(cells.labels), 30))
    drawn.update_xaxes(type="category", nticks=min(len(cells.steps), 12))
    return drawn


def heatmaps(
    frames: Mapping[str, pd.DataFrame], column: str, unit: str, *, by: str = "block", log: bool = True
) -> go.Figure:
    """Return one heatmap a title, two side by side, all on one scale of colours."""
    grids = [_cells(frame, column, by, MOST_CELLS // len(frames), log=log) for frame in frames.values()]
    n_rows = -(-len(grids) // _A_ROW)
    a_row = max(150, min(420, 70 + 14 * max(len(grid.labels) for grid in grids)))
    made = make_subplots(
        rows=n_rows,
        cols=_A_ROW if len(grids) > 1 else 1,
        subplot_titles=[plot_text(title) for title in frames],
        horizontal_spacing=0.12,
        vertical_spacing=min(0.3, 85 / (n_rows * (a_row + 85))),
    )
    height = 90 + n_rows * (a_row + 85)
    drawn = go.Figure(made).update_layout(figure(height=height).layout)
    known = np.concatenate([grid.colours[np.isfinite(grid.colours)] for grid in grids])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    for index, cells in enumerate(grids):
        place = {"row": index // _A_ROW + 1, "col": index % _A_ROW + 1}
        for trace in _traces(cells, {"coloraxis": "coloraxis"}, log=log):
            drawn.add_trace(trace, **place)
        drawn.update_yaxes(**axis(""), type="category", nticks=min(len(cells.labels), 12), **place)
        is_last = index >= len(grids) - _A_ROW
        drawn.update_xaxes(
            **axis(_step_axis(cells) if is_last or cells.left_out else ""),
            type="category",
            nticks=min(len(cells.steps), 8),
            **place,
        )
    shared = {"colorscale": SEQUENTIAL, "cmin": low, "cmax": high, "colorbar": _bar(unit, log=log)}
    return drawn.update_layout(coloraxis=shared, margin={"t": 50})


def _cells(frame: pd.DataFrame, column: str, by: str, most: int, *, log: bool) -> Cells:
    many = n_stacks(frame)
    keys = ["stack", by, *(["block", "branch"] if by == "depth" else [])]
    rows = frame[keys].drop_duplicates(["stack", by]).sort_values(["stack", by])
    labels = [
        place_name(int(row["stack"]), int(row["block"]), str(row.get("branch", "")), n_stacks=many)
        for row in rows.to_dict("records")
    ]
    grid = frame.pivot_table(index=["stack", by], columns="step", values=column, aggfunc="mean", dropna=False)
    steps = sorted(map(int, frame["step"].unique()))
    grid = grid.reindex(index=pd.MultiIndex.from_frame(rows[["stack", by]]), columns=steps)
    most_rows = max(24, min(MOST_ROWS, most // 20))
    chosen_rows = standing_out(departures(grid.T, log=log), most_rows)
    most_columns = max(16, min(MOST_COLUMNS, most // max(1, len(chosen_rows))))
    columns = standing_out(departures(grid, log=log), most_columns)
    left_out = [f"{len(columns)} of {len(steps):,}"] if len(columns) < len(steps) else []
    left_out += [f"{len(chosen_rows)} of {len(labels):,} places"] if len(chosen_rows) < len(labels) else []
    values = grid.to_numpy(dtype=float)[np.ix_(chosen_rows, columns)]
    with np.errstate(divide="ignore", invalid="ignore"):
        colours = np.where(values > 0, np.log10(values), np.nan) if log else values
    return Cells(
        [plot_text(labels[place]) for place in chosen_rows],
        [steps[place] for place in columns],
        values,
        np.where(np.isfinite(colours), colours, np.nan),
        f"{', '.join(left_out)} drawn: those that stand out" if left_out else "",
    )


def _step_axis(cells: Cells) -> str:
    return f"step ({cells.left_out})" if cells.left_out else "step"


def _bar(unit: str, *, log: bool) -> dict[str, Any]:
    return {"title": {"text": plot_text(f"log₁₀ {unit}" if log else unit), "side": "right"}, "thickness": 12}


def _traces(cells: Cells, scale: Mapping[str, Any], *, log: bool) -> list[Any]:
    """Return the heatmap, and a cross for every value that is not finite."""
    names = [str(step) for step in cells.steps]
    found = [
        go.Heatmap(
            x=names,
            y=cells.labels,
            z=np.array(
                [[None if v != v else rounded(v, 4) for v in row] for row in cells.colours.tolist()], dtype=object
            ),
            meta={"log": log, "words": _words(cells.values, cells.colours)},
            hovertemplate="%{y}, step %{x}<br>%{customdata}<extra></extra>",
            xgap=1 if len(names) < 60 else 0,
            ygap=1 if len(cells.labels) < 60 else 0,
            **scale,
        )
    ]
    ill = np.argwhere(np.isinf(cells.values))
    if len(ill):
        cross = {"symbol": "x", "color": PALETTE[1], "size": 9}
        said = "%{y}, step %{x}<br>not finite<extra></extra>"
        x, y = [names[j] for _, j in ill], [cells.labels[i] for i, _ in ill]
        found.append(go.Scatter(x=x, y=y, mode="markers", marker=cross, name="not finite", hovertemplate=said))
    return found


def _words(values: np.ndarray, colours: np.ndarray) -> list[tuple[int, int, str]]:
    """Return row, column and words of the cells without a colour but with a value: the page makes the others' of the colour."""
    bare = np.argwhere(np.isnan(colours) & ~np.isnan(values))
    return [(int(i), int(j), number(float(values[i, j]))) for i, j in bare]
