"""Draw a quantity over the depth of the stack, as lines at a few steps or as a heatmap over all of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from rheoscope.reports.theme import PALETTE, SEQUENTIAL, axis, figure, number, plain, plot_text, settled

from .chart import MOST_CELLS, MOST_COLUMNS, MOST_LINES, chosen, rounded, standing_out

MOST_EXACT = 300  # points of a line that keep all their digits


def place_name(stack: int, block: int, branch: str, *, n_stacks: int = 1) -> str:
    """Return what a reader calls a place of the stream."""
    outside = "final norm" if branch == "output" else "embedding"
    where = outside if block < 0 else f"block {block} {plain(branch)}".strip()
    return where if n_stacks == 1 else f"stack {stack}: {where}"


def n_stacks(frame: pd.DataFrame) -> int:
    """Return how many stacks a frame speaks of."""
    return int(frame["stack"].nunique()) if len(frame) else 0


def lines_over_depth(
    frame: pd.DataFrame, column: str, y: str, *, log_y: bool = True, theory: Mapping[int, pd.DataFrame] | None = None
) -> go.Figure:
    """Return one line a stack and step, first step to last, at most six steps; hovering names the place.

    Args:
        frame: columns step, stack, depth, block, branch and ``column``.
        column: what is drawn.
        y: title of the axis, with its unit.
        log_y: whether the axis is logarithmic; values of 0 are then drawn nowhere and stay in the table.
        theory: stack -> columns depth and expected, drawn thin and dashed.
    """
    drawn = figure(x="depth: residual adds passed", y=y, log_y=log_y)
    steps = chosen(sorted({int(step) for step in frame["step"]}), MOST_LINES)
    stacks = sorted({int(stack) for stack in frame["stack"]})
    named: list[list[str]] = []
    for stack in stacks:
        for index, step in enumerate(steps):
            rows = frame[(frame["step"] == step) & (frame["stack"] == stack)].sort_values("depth")
            if not len(rows):
                continue
            names = [
                place_name(stack, int(b), str(k), n_stacks=len(stacks)) for b, k in rows[["block", "branch"]].values
            ]
            drawn.add_trace(
                go.Scatter(
                    x=rows["depth"].tolist(),
                    y=shown(finite(rows[column], log=log_y)),
                    name=f"step {step}" if len(stacks) == 1 else f"stack {stack}, step {step}",
                    mode="lines+markers",
                    line={"color": PALETTE[index % len(PALETTE)], "dash": "solid" if stack == stacks[0] else "dash"},
                    marker={"size": 6},
                    meta=_named(named, [plot_text(name) for name in names]),
                    hovertemplate="%{text}<br>%{y:.4g}<extra>%{fullData.name}</extra>",
                )
            )
    for stack, rows in (theory or {}).items():
        drawn.add_trace(
            go.Scatter(
                x=rows["depth"].tolist(),
                y=finite(rows["expected"], log=log_y),
                name="closed form at init" if len(stacks) == 1 else f"stack {stack}, closed form at init",
                mode="lines",
                line={"color": PALETTE[-1], "dash": "dot", "width": 1.5},
                hovertemplate="depth %{x}<br>%{y:.4g}<extra>%{fullData.name}</extra>",
            )
        )
    drawn.update_layout(meta={"texts": named})
    return settled(drawn)


def shown(values: list[float | None]) -> list[float | None]:
    """Return the values of a long line with as many digits as it can show, of a short one as they are."""
    return values if len(values) <= MOST_EXACT else [None if value is None else rounded(value) for value in values]


def _named(named: list[list[str]], names: list[str]) -> int:
    """Return which of ``named`` a line's points are called by, added where they are new: most lines share them."""
    if names not in named:
        named.append(names)
    return named.index(names)


def heatmap(frame: pd.DataFrame, column: str, unit: str, *, by: str = "depth", log: bool = True) -> go.Figure:
    """Return a heatmap, depth (or block) by step; colours are of the decimal logarithm where ``log``.

    A value that is not finite is drawn as a grey cell with a cross; nothing was recorded where the ground shows. Of many
    steps the axis says how many are drawn: of each stretch the step that departs most from the usual.
    """
    many = n_stacks(frame)
    keys = ["stack", by, *(["block", "branch"] if by == "depth" else [])]
    rows = frame[keys].drop_duplicates(["stack", by]).sort_values(["stack", by])
    labels = [
        place_name(int(row["stack"]), int(row["block"]), str(row.get("branch", "")), n_stacks=many)
        for row in rows.to_dict("records")
    ]
    grid = frame.pivot_table(index=["stack", by], columns="step", values=column, aggfunc="mean", dropna=False)
    steps = sorted({int(step) for step in frame["step"]})
    grid = grid.reindex(index=pd.MultiIndex.from_frame(rows[["stack", by]]), columns=steps)
    places = standing_out(_departures(grid, log=log), max(16, min(MOST_COLUMNS, MOST_CELLS // max(1, len(rows)))))
    axis_title = (
        "step" if len(places) == len(steps) else f"step ({len(places)} of {len(steps):,} drawn: those that stand out)"
    )
    steps = [steps[place] for place in places]
    values = grid.to_numpy(dtype=float)[:, places]
    with np.errstate(divide="ignore", invalid="ignore"):
        colours = np.where(values > 0, np.log10(values), np.nan) if log else values
    colours = np.where(np.isfinite(colours), colours, np.nan)
    drawn = figure(x=axis_title, height=max(280, min(900, 120 + 18 * len(labels))))
    drawn.add_trace(
        go.Heatmap(
            x=[str(step) for step in steps],
            y=[plot_text(label) for label in labels],
            z=[[None if np.isnan(v) else rounded(float(v), 4) for v in row] for row in colours],
            meta={"log": log, "words": _words(values, colours)},
            colorscale=SEQUENTIAL,
            colorbar={"title": {"text": plot_text(f"log₁₀ {unit}" if log else unit), "side": "right"}, "thickness": 12},
            hovertemplate="%{y}, step %{x}<br>%{customdata}<extra></extra>",
            xgap=1 if len(steps) < 60 else 0,
            ygap=1 if len(labels) < 60 else 0,
        )
    )
    ill = [(str(steps[j]), plot_text(labels[i])) for i, j in np.argwhere(np.isinf(values))]
    if ill:
        drawn.add_trace(
            go.Scatter(
                x=[x for x, _ in ill],
                y=[y for _, y in ill],
                mode="markers",
                marker={"symbol": "x", "color": PALETTE[1], "size": 9},
                name="not finite",
                hovertemplate="%{y}, step %{x}<br>not finite<extra></extra>",
            )
        )
    drawn.update_yaxes(**axis(""), type="category", nticks=min(len(labels), 30))
    drawn.update_xaxes(type="category", nticks=min(len(steps), 12))
    return drawn


def _words(values: np.ndarray, colours: np.ndarray) -> list[tuple[int, int, str]]:
    """Return row, column and words of the cells without a colour but with a value: the page makes the others' of the colour."""
    bare = np.argwhere(np.isnan(colours) & ~np.isnan(values))
    return [(int(i), int(j), number(float(values[i, j]))) for i, j in bare]


def finite(values: pd.Series, *, log: bool = False) -> list[float | None]:
    """Return the values with None where one is missing, not finite or, for a logarithmic axis, not positive."""
    return [float(v) if np.isfinite(v) and (v > 0 or not log) else None for v in values.astype(float)]


def _departures(grid: pd.DataFrame, *, log: bool) -> np.ndarray:
    """Return, for every step of a grid of places by steps, how far it is from a place's median, where it is furthest."""
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
