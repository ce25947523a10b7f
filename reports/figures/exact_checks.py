"""Show which identities were proved on this model, check by check and place by place."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from rheoscope.diagnostics.exact import PROVES, by_check, exact_checks
from rheoscope.diagnostics.frames import records
from rheoscope.diagnostics.tables import Tables
from rheoscope.reports.theme import DEVIATES, HOLDS, UNCLAIMED, axis, figure, number, plain, plot_text

from .chart import Chart
from .places import place_name

_LEVELS = {"own": 0, "design": 0, "holds": 1, "deviates": 2}
_WORDS = {"own": "nothing claimed", "design": "by design", "holds": "holds", "deviates": "does not hold"}
_MARKS = {"own": "·", "design": "·", "holds": "✓", "deviates": "✗"}
_MOST_MARKED = 60  # rows in which a mark is legible
_NONE = "No active check was made: a training run makes none. rheoscope examine makes a check-up, which does."


def checks(tables: Tables) -> Chart:
    """List the checks, what each proves, and where it does not hold."""
    rows = exact_checks(tables)
    key, title = "exact-checks", "Exact checks"
    reading = (
        "Each of these holds in every sound model, whatever its weights, to rounding (of what dropout takes: to the number of "
        "elements). Not claimed: places in which each block has a factor of its own, or sees later positions by design."
    )
    if not len(rows):
        return Chart(key, title, reading, absent=_NONE)
    claimed, ill = rows[rows["state"].isin(["holds", "deviates"])], rows[rows["state"] == "deviates"]
    if len(ill):
        title = f"{len(ill)} of {len(claimed):,} exact checks do not hold: {_named(ill)}"
    else:
        title = f"All {len(claimed):,} exact checks hold"
    told = by_check(rows)
    return Chart(key, title, reading, table=told.assign(check=told["check"].str.replace("_", " ")))


def checks_by_place(tables: Tables) -> Chart:
    """Draw one cell a place and check."""
    rows = exact_checks(tables)
    key, title = "exact-checks-by-place", "Where each check was made"
    reading = (
        "✓ proved on this model; ✗ does not hold; · nothing is claimed; empty: it does not apply, or no hook sees it."
    )
    inside = rows[rows["block"].ge(0) & rows["depth"].notna()]
    if not len(inside):
        return Chart(key, title, reading, absent=_NONE)
    order = (
        inside[["stack", "depth", "block", "branch"]]
        .drop_duplicates(["stack", "depth"])
        .sort_values(["stack", "depth"])
    )
    many = int(order["stack"].nunique())
    names = {
        (row["stack"], row["depth"]): place_name(
            int(row["stack"]), int(row["block"]), str(row["branch"]), n_stacks=many
        )
        for row in records(order)
    }
    columns = [check for check in PROVES if (inside["check"] == check).any()]
    # Of several terms at one place the worst speaks.
    worst = inside.assign(level=inside["state"].map(_LEVELS)).sort_values("level", kind="stable")
    cells = {(row["stack"], row["depth"], row["check"]): row for row in records(worst)}
    table = [[cells.get((*place, check)) for check in columns] for place in names]
    is_marked = len(names) <= _MOST_MARKED
    drawn = figure(height=max(280, min(900, 120 + 22 * len(names))))
    drawn.add_trace(
        go.Heatmap(
            x=[check.replace("_", " ") for check in columns],
            y=[plot_text(name) for name in names.values()],
            z=[[None if cell is None else _LEVELS[cell["state"]] for cell in row] for row in table],
            customdata=[["" if cell is None else plot_text(_said(cell)) for cell in row] for row in table],
            text=[["" if cell is None else _MARKS[cell["state"]] for cell in row] for row in table]
            if is_marked
            else None,
            texttemplate="%{text}" if is_marked else None,
            textfont={"color": "white", "size": 15},
            colorscale=[
                [0, UNCLAIMED],
                [0.33, UNCLAIMED],
                [0.33, HOLDS],
                [0.67, HOLDS],
                [0.67, DEVIATES],
                [1, DEVIATES],
            ],
            zmin=0,
            zmax=2,
            showscale=False,
            hovertemplate="%{y}, %{x}<br>%{customdata}<extra></extra>",
            xgap=2,
            ygap=2 if is_marked else 0,
        )
    )
    drawn.update_xaxes(type="category", side="top", showgrid=False)
    drawn.update_yaxes(**axis(""), type="category", autorange="reversed", nticks=min(len(names), 30), showgrid=False)
    return Chart(key, title, reading, drawn, table=_sorted(rows))


def _said(cell: dict[str, object]) -> str:
    expected = cell["expected"]
    beside = "" if pd.isna(expected) else f", expected {number(float(str(expected)), 4)}"  # type: ignore[call-overload]
    return f"{_WORDS[str(cell['state'])]}: {number(float(str(cell['observed'])), 4)}{beside}"


def _named(ill: pd.DataFrame) -> str:
    first = records(ill)[:3]
    names = [
        f"{str(row['check']).replace('_', ' ')}"
        + (f" in block {int(row['block'])}'s {plain(row['branch'])}" if row["block"] >= 0 else "")
        for row in first
    ]
    return ", ".join(names) + (f" and {len(ill) - 3} more" if len(ill) > 3 else "")


def _sorted(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with what does not hold first."""
    order = rows.assign(level=-rows["state"].map(_LEVELS)).sort_values("level", kind="stable")
    return order.drop(columns="level").reset_index(drop=True)
