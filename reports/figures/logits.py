"""Show the logits: how their normaliser drifts."""

from __future__ import annotations

import plotly.graph_objects as go
from rheoscope.diagnostics.frames import groups
from rheoscope.diagnostics.tables import Tables
from rheoscope.reports.theme import PALETTE, figure, number

from .chart import MOST_POINTS, Chart, extremes
from .lines import finite


def log_z(tables: Tables) -> Chart:
    """Draw log Z over the steps."""
    frame = tables.log_z().dropna(subset=["log_z"])
    key, title = "log-z", "Normaliser of the logits"
    reading = (
        "Mean over tokens of log Z, the logarithm of the softmax's denominator. The loss does not hold it in place: a drift far "
        "from its start makes logits lose precision, which a z-loss prevents."
    )
    if not len(frame):
        return Chart(key, title, reading, absent="No logits were seen, or no step was sampled.")
    drawn = figure(x="step", y="log Z")
    for index, ((stack,), whole) in enumerate(groups(frame, "stack")):
        rows = whole.iloc[extremes(whole["log_z"].to_numpy(dtype=float), MOST_POINTS)]
        drawn.add_trace(
            go.Scatter(
                x=rows["step"].tolist(),
                y=finite(rows["log_z"]),
                name=f"stack {stack}",
                mode="lines" if len(rows) > 60 else "lines+markers",
                line={"color": PALETTE[index % len(PALETTE)]},
                marker={"size": 6},
                showlegend=index > 0,
                hovertemplate="step %{x}<br>log Z %{y:.4g}<extra>%{fullData.name}</extra>",
            )
        )
    if any(len(rows) > MOST_POINTS for _, rows in groups(frame, "stack")):
        reading += (
            f" Of each line {MOST_POINTS:,} points at most are drawn, the lowest and the highest of every stretch."
        )
    first, last = float(frame["log_z"].iloc[0]), float(frame["log_z"].iloc[-1])
    if frame["step"].nunique() > 1:
        title = f"The logits' log Z goes from {number(first)} to {number(last)}"
    else:
        title = f"The logits' log Z is {number(first)}"
    return Chart(key, title, reading, drawn, table=frame)
