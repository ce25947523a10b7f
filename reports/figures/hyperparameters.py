"""Show the hyperparameters beside those of published models, and what the blocks would send between devices."""

from __future__ import annotations

import math

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rheoscope.diagnostics.communication import DEVICES, communication
from rheoscope.diagnostics.frames import records
from rheoscope.diagnostics.hyperparameters import beside_published, published_models
from rheoscope.diagnostics.tables import Tables
from rheoscope.reports.theme import PALETTE, amount, axis, figure, number, plot_text

from .chart import Chart

_NAMES = {
    "mlp_ratio": "d_ff / width",
    "aspect": "width / blocks",
    "head_ratio": "heads × head size / width",
    "vocabulary": "vocabulary",
    "dropout": "dropout",
    "weight_decay": "weight decay",
}
_DRAWN = ("mlp_ratio", "aspect", "vocabulary")  # enough models publish them for a cloud of points


def beside(tables: Tables) -> Chart:
    """List this model's hyperparameters, what is usual, and what published models have."""
    rows = beside_published(tables)
    key, title = "hyperparameters", "Hyperparameters beside published models"
    reading = (
        "What this model has, the range that is usual, and the median and extremes over published language models (Stanford "
        "CS336, spring 2026, lecture 3). A value outside is a remark: these are habits, and small models break them with reason."
    )
    if not len(rows):
        return Chart(key, title, reading, absent="No size is known: the recording names no residual stream.")
    outside = rows[(rows["here"] < rows["usual_low"]) | (rows["here"] > rows["usual_high"])]
    names = ", ".join(dict.fromkeys(f"{_NAMES[row['quantity']]} {number(row['here'])}" for row in records(outside)))
    title = (
        f"Outside what is usual: {names}" if names else f"All {len(rows)} hyperparameters that are known are usual ones"
    )
    usual = [_range(row) for row in records(rows)]
    shown = rows.assign(quantity=rows["quantity"].map(_NAMES), usual=usual)
    order = ["quantity", "here", "usual", "published_median", "lowest", "highest", "n_models", "why"]
    return Chart(key, title, reading, table=shown[(["stack"] if rows["stack"].nunique() > 1 else []) + order])


def published(tables: Tables) -> Chart:
    """Draw this model among the published ones."""
    rows = beside_published(tables)
    key, title = "published-models", "This model among published ones"
    reading = "One point a published model, by year; the line is this model. Hovering names the model; the table holds them all."
    quantities = [name for name in _DRAWN if (rows["quantity"] == name).any()]
    if not quantities:
        return Chart(key, title, reading, absent="No size is known: the recording names no residual stream.")
    models = published_models()
    shared = make_subplots(rows=1, cols=len(quantities), horizontal_spacing=0.09)
    drawn = go.Figure(shared).update_layout(figure(height=330).layout)
    for column, quantity in enumerate(quantities, start=1):
        known = models.dropna(subset=[quantity])
        drawn.add_trace(
            go.Scatter(
                x=known["year"].tolist(),
                y=known[quantity].tolist(),
                text=[plot_text(name) for name in known["model"]],
                mode="markers",
                marker={"color": PALETTE[0], "size": 7, "opacity": 0.6},
                showlegend=False,
                hovertemplate="%{text}, %{x}<br>%{y:.4g}<extra></extra>",
            ),
            row=1,
            col=column,
        )
        for row in records(rows[rows["quantity"] == quantity]):
            drawn.add_trace(
                go.Scatter(
                    x=[int(models["year"].min()), int(models["year"].max())],
                    y=[row["here"]] * 2,
                    mode="lines",
                    line={"color": PALETTE[1], "width": 2},
                    name="this model",
                    showlegend=bool(column == 1 and row["stack"] == rows["stack"].min()),
                    hovertemplate="this model: %{y:.4g}<extra></extra>",
                ),
                row=1,
                col=column,
            )
        marks = _ticks([*known[quantity], *rows.loc[rows["quantity"] == quantity, "here"]])
        ticks = {"tickvals": marks, "ticktext": [number(mark) if mark < 1e3 else f"{mark:,.0f}" for mark in marks]}
        drawn.update_yaxes(**axis(_NAMES[quantity], log=True), **ticks, row=1, col=column)
        drawn.update_xaxes(**axis("year"), dtick=3, row=1, col=column)
    return Chart(key, title, reading, drawn, table=models)


def sent(tables: Tables) -> Chart:
    """List what every block would send under tensor and under pipeline parallelism."""
    rows = communication(tables)
    key, title = "communication", "What each block would send between devices"
    reading = (
        "Computed for one micro-batch of the recorded size, at the parameters' type; nothing is measured. Tensor parallelism: "
        "every add needs one all-reduce of the write forward and one of the gradient backward (Shoeybi et al. 2019); a parallel "
        f"block adds once, a serial one twice. Each of {DEVICES} devices in a ring sends 7/4 of the payload. A pipeline sends "
        "the state and its gradient over each cut. Not counted: experts' exchanges, recomputation, data parallelism."
    )
    if not len(rows):
        return Chart(
            key, title, reading, absent="The size of the states, or the type of the parameters, is not recorded."
        )
    most, cut = int(rows["all_reduced"].max()), int(rows["between_blocks"].max())
    title = (
        f"A block would all-reduce {amount(most)} under tensor parallelism; a pipeline's cut would pass {amount(cut)}"
    )
    named = rows.rename(
        columns={
            "elements": "elements of a write",
            "all_reduced": "bytes all-reduced",
            "sent_by_each": f"bytes sent by each of {DEVICES}",
            "between_blocks": "bytes over a pipeline's cut",
        }
    )
    return Chart(key, title, reading, table=named if rows["stack"].nunique() > 1 else named.drop(columns="stack"))


def _ticks(values: list[float]) -> list[float]:
    """Return powers of two around the values; of ten where they span more than two decades."""
    low, high = min(values), max(values)
    base = 10.0 if high > 100 * low else 2.0
    first, last = math.floor(math.log(low, base)), math.ceil(math.log(high, base))
    return [base**power for power in range(first, last + 1)]


def _range(row: dict[str, object]) -> str:
    low, high = float(str(row["usual_low"])), float(str(row["usual_high"]))
    return "–" if high == float("inf") else f"{number(low)} to {number(high)}"
