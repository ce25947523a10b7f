"""Show the run itself: loss, gradient norm and learning rate over the steps."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rheoscope.diagnostics.tables import Tables
from rheoscope.reports.theme import PALETTE, axis, counted, figure, number

from .chart import MOST_POINTS, Chart, extremes, rounded
from .lines import finite

_ROWS = (
    ("loss", "loss", False),
    ("gradient_norm", "gradient norm", True),
    ("clip_coefficient", "clipped to", False),
    ("lr", "learning rate", False),
)
MOST_MARKED = 40  # events drawn


def loss_and_norms(tables: Tables) -> Chart:
    """Draw loss, gradient norm and learning rate over the steps, one above the other."""
    frame = tables.steps
    key, title = "the-run", "Loss, gradient norm and learning rate"
    reading = "The gradient norm is of the whole gradient, as the optimizer saw it, on sampled steps."
    losses = frame["loss"].dropna()
    if len(frame) < 2:
        return Chart(key, title, reading, absent="A check-up is one step; there is no run to draw.", table=frame)
    present = [(column, label, log) for column, label, log in _ROWS if _says_something(frame, column)]
    if not present:
        return Chart(key, title, reading, absent="No loss was passed to probe.step, and no optimizer to attach.")
    shared = make_subplots(rows=len(present), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    drawn = go.Figure(shared).update_layout(figure(height=150 + 130 * len(present)).layout)
    left_out = 0
    for row, (column, label, log) in enumerate(present, start=1):
        whole = frame if column == "loss" else frame.dropna(subset=[column])
        rows = whole.iloc[extremes(whole[column].to_numpy(dtype=float), MOST_POINTS)]
        left_out = max(left_out, len(whole) - len(rows))
        drawn.add_trace(
            go.Scatter(
                x=rows["step"].tolist(),
                y=[None if y is None else rounded(y) for y in finite(rows[column], log=log)],
                name=label,
                mode="lines" if len(rows) > 60 else "lines+markers",
                marker={"size": 5},
                line={"color": PALETTE[row - 1], "width": 1.5},
                showlegend=False,
                hovertemplate=f"step %{{x}}<br>{label} %{{y:.5g}}<extra></extra>",
            ),
            row=row,
            col=1,
        )
        drawn.update_yaxes(**axis(label, log=log), row=row, col=1)
        drawn.update_xaxes(**axis("step" if row == len(present) else ""), row=row, col=1)
    reading += _clipping(frame)
    marked = tables.events.dropna(subset=["step"]).drop_duplicates("step").head(MOST_MARKED)
    for step in marked["step"].astype(int):
        drawn.add_vline(x=step, line={"dash": "dot", "color": PALETTE[-1], "width": 1})
    if len(marked):
        reading += f" Dotted: {counted(len(marked), 'step')} with an event, listed under all findings."
    if len(losses):
        title = f"The loss goes from {number(float(losses.iloc[0]))} to {number(float(losses.iloc[-1]))}"
    if left_out:
        reading += (
            f" Of each line {MOST_POINTS:,} points at most are drawn, the lowest and the highest of every stretch; at most "
            f"{left_out:,} are left out."
        )
    return Chart(key, title, reading, drawn, table=frame)


def _says_something(frame: pd.DataFrame, column: str) -> bool:
    """Return whether a column has values; of clipping, whether anything was clipped."""
    known = frame[column].dropna()
    return bool((known != 1).any()) if column == "clip_coefficient" else bool(len(known))


def _clipping(frame: pd.DataFrame) -> str:
    found = frame["clip_coefficient"].dropna().astype(float)
    if not len(found):
        return ""
    clipped = found[found < 1]
    if not len(clipped):
        return f" Nothing was clipped at the {len(found):,} steps at which clipping was seen."
    return (
        f" Gradients were clipped at {len(clipped):,} of the {len(found):,} steps at which clipping was seen, down to "
        f"{number(float(clipped.min()))} of their size."
    )
