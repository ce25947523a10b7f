"""Compare final losses: against the learning rate where it was swept, and over seeds where placement and biases are crossed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rheoscope.diagnostics.designs import interaction, learning_rates, sweep
from rheoscope.diagnostics.frames import records
from rheoscope.reports.compared import Compared
from rheoscope.reports.theme import PALETTE, axis, figure, number, plot_text

from .chart import Chart

_CELL = ["group", "placement", "has_biases"]


def learning_rate(compared: Compared) -> Chart:
    """Draw the final loss against the learning rate, for every placement with and without biases."""
    key, title = "loss-by-learning-rate", "Final loss against the learning rate"
    reading = (
        "Mean loss over the last tenth of each run, over the stable runs at each learning rate; bars are 95 % intervals over "
        "seeds where there are several. Crosses at the top: no run was stable there. The deeper and the further to the right a "
        "curve reaches, the more learning rates its design bears."
    )
    swept = sweep(compared.outcomes)
    if not len(swept):
        why = "No two runs of one placement, with and without biases apart, were trained at different learning rates."
        return Chart(key, title, reading, absent=why)
    best = learning_rates(swept)
    said = [f"{number(row['best_lr'])} ({cell_name(row)})" for row in records(best) if row["best_lr"] > 0]
    title = f"The loss is lowest at a learning rate of {', '.join(said)}" if said else title
    drawn = figure(y="final loss", height=430)
    top = float(swept[["loss", "high"]].max().max()) if swept["loss"].notna().any() else 1.0
    for index, (cell, rows) in enumerate(swept.groupby(_CELL, sort=False)):
        named = dict(zip(_CELL, cell, strict=True))
        colour, is_solid = PALETTE[index % len(PALETTE)], bool(named["has_biases"])
        line = {"color": colour, "dash": "solid" if is_solid else "dot"}
        marker = {"size": 8, "color": colour, "symbol": "circle" if is_solid else "circle-open"}
        name = plot_text(cell_name(named))
        known, lost = rows.dropna(subset=["loss"]), rows[rows["loss"].isna()]
        drawn.add_trace(_intervals(known["lr"].tolist(), known, name, line=line, marker=marker))
        if len(lost):
            cross = {"symbol": "x", "size": 9, "color": colour}
            said_of = "%{x}: no stable run<extra></extra>"
            x, y = lost["lr"].tolist(), [top * 1.03] * len(lost)
            drawn.add_trace(
                go.Scatter(x=x, y=y, mode="markers", marker=cross, name=f"{name}: unstable", hovertemplate=said_of)
            )
    drawn.update_xaxes(**axis("learning rate", log=True))
    return Chart(key, title, reading, drawn, table=swept.merge(best, on=_CELL, how="left"))


def crossed(compared: Compared) -> Chart:
    """Draw what biases change under one placement more than under another, with intervals over seeds."""
    key, title = "interaction", "Interaction of placement and biases"
    reading = (
        "Left: mean final loss of every cell with its 95 % interval over seeds. Right: how much more biases change the loss "
        "under one placement than under the other, with Welch's 95 % interval. An interval that holds 0 shows no "
        "interaction that these seeds could tell from chance."
    )
    found = interaction(compared.outcomes)
    if not len(found):
        why = (
            "It needs two placements, each with and without biases, in two runs or more that differ in their seed alone: nothing "
            "else tells an effect from chance."
        )
        return Chart(key, title, reading, absent=why)
    cells, effects = found[found["effect"] == ""], found[found["effect"] != ""]
    said = []
    for row in records(effects):
        is_clear = row["low"] > 0 or row["high"] < 0
        where = f" ({row['group']})" if row["group"] else ""
        said.append(
            f"{row['placement']}-norm: {number(row['loss'])} ({number(row['low'])} to {number(row['high'])}), "
            f"{'beyond' if is_clear else 'not beyond'} chance{where}"
        )
    title = f"Biases change the final loss, {'; '.join(said)}"
    made = make_subplots(rows=1, cols=2, column_widths=[0.65, 0.35], horizontal_spacing=0.12)
    drawn = go.Figure(made).update_layout(figure(height=380).layout)
    names = [plot_text(cell_name(row)) for row in records(cells)]
    dot = {"size": 9, "color": PALETTE[0]}
    drawn.add_trace(_intervals(names, cells, "final loss", marker=dot, mode="markers"), row=1, col=1)
    pairs = [plot_text(f"{row['placement']} {row['group']}".strip()) for row in records(effects)]
    square = {"size": 10, "color": PALETTE[1], "symbol": "square"}
    drawn.add_trace(_intervals(pairs, effects, "interaction", marker=square, mode="markers"), row=1, col=2)
    drawn.add_hline(y=0, line={"dash": "dot", "color": PALETTE[-1]}, row=1, col=2)
    drawn.update_yaxes(**axis("final loss"), row=1, col=1)
    drawn.update_yaxes(**axis("change of the loss"), row=1, col=2)
    drawn.update_xaxes(type="category")
    return Chart(key, title, reading, drawn.update_layout(showlegend=False), table=found)


def cell_name(row: Mapping[str, Any]) -> str:
    """Return what a reader calls a cell of the design."""
    biases = "biases" if row["has_biases"] else "no biases"
    return f"{row['placement']}-norm, {biases}" + (f", {row['group']}" if row["group"] else "")


def _intervals(x: list[Any], rows: pd.DataFrame, name: str, **style: Any) -> go.Scatter:
    up, down = (rows["high"] - rows["loss"]).fillna(0.0), (rows["loss"] - rows["low"]).fillna(0.0)
    bars = {"type": "data", "symmetric": False, "array": up.tolist(), "arrayminus": down.tolist()}
    said = "%{x}: %{y:.4g}<extra>%{fullData.name}</extra>"
    mode = style.pop("mode", "lines+markers")
    return go.Scatter(x=x, y=rows["loss"].tolist(), name=name, mode=mode, error_y=bars, hovertemplate=said, **style)
