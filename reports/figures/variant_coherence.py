"""Compare how far the tokens agree on where to push the biases, and list the bias directions on which they have no say."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from rheoscope.diagnostics.coherence import bias_coherence
from rheoscope.diagnostics.coherence_growth import coherence_growth
from rheoscope.diagnostics.frames import records
from rheoscope.diagnostics.redundant_biases import redundant_biases, summed
from rheoscope.reports.compared import Compared
from rheoscope.reports.theme import PALETTE, axis, figure, number, plot_text, settled

from .chart import Chart


def coherence(compared: Compared) -> Chart:
    """Draw the coherence of the bias gradients against the tokens of a batch."""
    key, title = "bias-coherence", "Coherence of bias gradients against batch tokens"
    reading = (
        "A bias's gradient is the sum of the tokens' gradients at its branch's output. Coherence is its squared norm over the "
        "sum of the tokens' squared norms: 1 where they point in random directions (dotted), the number of tokens where "
        "all agree. With a mean cosine c between two tokens it is 1 + (n - 1) c for n tokens. Mean over the biases, at "
        "the first sampled step; bars from the lowest to the highest."
    )
    rows = {row["label"]: row for row in records(compared.summary)}
    cells = {str(label): f"{row['group']}|{row['placement']}|{row['has_biases']}" for label, row in rows.items()}
    found = coherence_growth({label: bias_coherence(tables) for label, tables in compared.runs.items()}, cells)
    if not len(found):
        return Chart(
            key, title, reading, absent="No bias at the end of a branch was recorded with the gradients of its tokens."
        )
    tested = found.dropna(subset=["predicted"])
    low, high = (number(float(value)) for value in (found["coherence"].min(), found["coherence"].max()))
    if len(tested):
        off = (tested["coherence"] / tested["predicted"]).agg(["min", "max"])
        title = (
            f"Bias gradients gather with the batch: {number(float(off['min']))} to {number(float(off['max']))} of what the "
            "smallest batch's cosine predicts"
        )
        reading += " Crosses: what the cosine of the smallest batch of the same design predicts."
    else:
        sizes = " and ".join(f"{int(n):,}" for n in sorted(found["n_tokens"].unique()))
        title = f"At {sizes} tokens the bias gradients have {low} to {high} times the energy of random directions"
        reading += (
            " No two runs of one design differ in their number of tokens, so that nothing tests the growth with n."
        )
    drawn = figure(y="coherence", log_y=True)
    is_axis = found["n_tokens"].nunique() > 1  # one batch size alone makes no axis: then variants stand side by side
    for row in records(found):
        style, name = compared.styles[row["label"]], plot_text(row["label"])
        drawn.add_trace(_point(row["n_tokens"] if is_axis else name, row, name, style.colour, style.symbol))
    if len(tested):
        cross = {"symbol": "x-thin", "size": 13, "line": {"width": 2, "color": PALETTE[-1]}}
        said = "%{x} tokens: %{y:.4g} predicted<extra></extra>"
        x, y = tested["n_tokens"].tolist(), tested["predicted"].tolist()
        drawn.add_trace(go.Scatter(x=x, y=y, mode="markers", name="predicted", marker=cross, hovertemplate=said))
    ends: list[Any] = [float(found["n_tokens"].min()), float(found["n_tokens"].max())]
    if not is_axis:
        ends = [plot_text(found["label"].iloc[place]) for place in (0, -1)]
        drawn.update_layout(showlegend=False)
    dotted = {"dash": "dot", "color": PALETTE[-1], "width": 1.5}
    drawn.add_trace(go.Scatter(x=ends, y=[1, 1], mode="lines", line=dotted, name="random directions", hoverinfo="skip"))
    counts = sorted(found["n_tokens"].unique())
    ticks = {"tickvals": counts, "ticktext": [f"{int(n):,}" for n in counts]}
    drawn.update_xaxes(**(axis("tokens in the batch", log=True) | ticks if is_axis else {"type": "category"}))
    return Chart(key, title, reading, settled(drawn), table=found.drop(columns="cell"))


def _point(x: object, row: dict[str, float], name: str, colour: str, symbol: str) -> go.Scatter:
    up, down = row["highest"] - row["coherence"], row["coherence"] - row["lowest"]
    return go.Scatter(
        x=[x],
        y=[row["coherence"]],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [up],
            "arrayminus": [down],
            "thickness": 1,
            "color": colour,
        },
        mode="markers",
        name=name,
        marker={"symbol": symbol, "size": 9, "color": colour},
        hovertemplate="%{y:.4g}<extra>%{fullData.name}</extra>",
    )


def redundant(compared: Compared) -> Chart:
    """List the directions of biases that have no gradient by construction."""
    key, title = "redundant-biases", "Bias directions without any gradient"
    reading = (
        "Exact, whatever the weights: a bias on the keys shifts all logits of a query alike, which the softmax takes away "
        "(without rotary positions and QK-norm); the mean of a bias that only LayerNorms read is subtracted by them. "
        "Such directions cost memory and do nothing. Measured: the largest gradient of such a key bias over that of the "
        "branch's other biases, 0 up to rounding."
    )
    frames = {label: redundant_biases(tables) for label, tables in compared.runs.items()}
    found = pd.concat(
        [frame.assign(variant=label) for label, frame in frames.items() if len(frame)] or [pd.DataFrame()]
    )
    if not len(found):
        return Chart(
            key, title, reading, absent="No variant has a bias that the anatomy proves to be redundant in part."
        )
    totals = found.groupby("variant", sort=False)["redundant"].sum()
    low, high = int(totals.min()), int(totals.max())
    many = f"{high:,}" if low == high else f"{low:,} to {high:,}"
    title = f"Of the bias vectors, {many} directions in each variant with biases have no gradient at all"
    return Chart(key, title, reading, table=summed(found, ["variant", "branch"]))
