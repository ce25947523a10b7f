"""Draw a quantity over the depth of the stack, one line a step, of which the page can bring up any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from rheoscope.reports.theme import PALETTE, figure, plot_text, settled

from .chart import MOST_LINES, chosen, rounded, standing_out
from .places import departures, n_stacks, place_name

MOST_EXACT = 300  # points of a line that keep all their digits
MOST_PLACES = 400  # of one line
MOST_NUMBERS = 2_400  # of the steps that can be brought up in one chart


def lines_over_depth(
    frame: pd.DataFrame,
    column: str,
    y: str,
    *,
    steps: Sequence[int] = (),
    log_y: bool = True,
    theory: Mapping[int, pd.DataFrame] | None = None,
) -> go.Figure:
    """Return one line a stack and step, first step to last, at most six steps; hovering names the place.

    Args:
        frame: columns step, stack, depth, block, branch and ``column``; one row a step and place.
        column: what is drawn.
        y: title of the axis, with its unit.
        steps: which the page can bring up, each as the bold line, drawn or not.
        log_y: whether the axis is logarithmic; values of 0 are then drawn nowhere and stay in the table.
        theory: stack -> columns depth, expected and band, the factor within which the closed form claims to hold.
    """
    title = "depth: residual adds passed"
    drawn = figure(x=title, y=y, log_y=log_y)
    lines = chosen(sorted(map(int, frame["step"].unique())), MOST_LINES)
    many = n_stacks(frame)
    named: list[list[str]] = []
    scrubbed = []
    for stack, rows in frame.groupby("stack", sort=True):
        grid = rows.pivot_table(index="depth", columns="step", values=column, aggfunc="mean", dropna=False)
        kept = standing_out(departures(grid.T, log=log_y), MOST_PLACES)
        if len(kept) < len(grid):
            drawn.update_xaxes(
                title={"text": f"{title} ({len(kept)} of {len(grid):,} places drawn: those that stand out)"}
            )
        places = rows.drop_duplicates("depth").set_index("depth")[["block", "branch"]].reindex(grid.index[kept])
        names = [place_name(int(str(stack)), int(b), str(k), n_stacks=many) for b, k in places.to_numpy()]
        named.append([plot_text(name) for name in names])
        depths = [int(depth) for depth in grid.index[kept]]
        present = [step for step in lines if step in grid]
        values = {step: shown(finite(grid[step].iloc[kept], log=log_y)) for step in grid if step in {*present, *steps}}
        first = len(drawn.data)
        for step in present:
            colour = PALETTE[lines.index(step) % len(PALETTE)]
            drawn.add_trace(
                go.Scatter(
                    x=depths,
                    y=values[step],
                    name=f"step {step}" if many == 1 else f"stack {stack}, step {step}",
                    mode="lines+markers" if len(depths) <= MOST_EXACT else "lines",
                    line={"color": colour, "dash": "solid" if stack == frame["stack"].min() else "dash"},
                    marker={"size": 6},
                    meta=len(named) - 1,
                    hovertemplate="%{text}<br>%{y:.4g}<extra>%{fullData.name}</extra>",
                )
            )
        scrubbed.append(_scrubbed(first, present, [step for step in steps if step in grid], values))
    for stack, rows in (theory or {}).items():
        name = "closed form at init" if many == 1 else f"stack {stack}, closed form at init"
        for trace in _theory(rows, name, log=log_y):
            drawn.add_trace(trace)
    drawn.update_layout(meta={"texts": named, "scrubbed": scrubbed})
    return settled(drawn)


def _scrubbed(
    first: int, lines: list[int], steps: list[int], values: Mapping[int, list[float | None]]
) -> dict[str, object]:
    """Return what the page needs to bring up a step: of a drawn one the number of its line, of another its values."""
    n = max(1, len(next(iter(values.values()), [])))
    steps = [step for step in steps if step in lines or n * len(steps) <= MOST_NUMBERS]
    rows = [first + lines.index(step) if step in lines else _coarse(values[step]) for step in steps]
    return {"line": first, "steps": steps, "rows": rows}


def _coarse(values: list[float | None]) -> list[float | None]:
    return [None if value is None else rounded(value, 4) for value in values]


def _theory(rows: pd.DataFrame, name: str, *, log: bool) -> list[go.Scatter]:
    """Return the closed form, and the band within which it claims to hold."""
    x, grey = rows["depth"].tolist(), PALETTE[-1]
    edges = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "legendgroup": name}
    low, high = (finite(rows["expected"] * rows["band"] ** side, log=log) for side in (-1, 1))
    return [
        go.Scatter(x=x, y=low, showlegend=False, **edges),
        go.Scatter(x=x, y=high, fill="tonexty", fillcolor="rgba(127,127,127,0.18)", name=f"{name}: its band", **edges),
        go.Scatter(
            x=x,
            y=finite(rows["expected"], log=log),
            name=name,
            legendgroup=name,
            mode="lines",
            line={"color": grey, "dash": "dot", "width": 1.5},
            hovertemplate="depth %{x}<br>%{y:.4g}<extra>%{fullData.name}</extra>",
        ),
    ]


def shown(values: list[float | None]) -> list[float | None]:
    """Return the values of a long line with as many digits as it can show, of a short one as they are."""
    return values if len(values) <= MOST_EXACT else [None if value is None else rounded(value) for value in values]


def finite(values: pd.Series, *, log: bool = False) -> list[float | None]:
    """Return the values with None where one is missing, not finite or, for a logarithmic axis, not positive."""
    return [float(v) if np.isfinite(v) and (v > 0 or not log) else None for v in values.astype(float)]
