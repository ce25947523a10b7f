"""Show what the biases do: their share of what branches write, and of the gradient."""

from __future__ import annotations

from rheoscope.diagnostics.tables import Tables
from rheoscope.reports.theme import number

from .chart import Chart
from .depth import heatmap

_NO_BIAS = "No branch of this model ends in a bias that a hook can tell apart."


def bias_share(tables: Tables) -> Chart:
    """Draw the bias share of every branch at every sampled step."""
    frame = tables.bias_share().dropna(subset=["bias_share"])
    key, title = "bias-share", "Bias share of every branch"
    reading = (
        "Energy of the last projection's bias over energy of the branch's output: the part that is the same vector at every "
        "token. 0 at the usual init; what it grows to is what the biases do."
    )
    if not len(frame):
        return Chart(key, title, reading, absent=_NO_BIAS)
    last = frame[frame["step"] == frame["step"].max()]
    top = last.loc[last["bias_share"].idxmax()]
    title = (
        f"The largest bias share is {number(float(top['bias_share']))}, in block {int(top['block'])}'s {top['branch']} "
        f"(step {int(top['step'])})"
    )
    return Chart(key, title, reading, heatmap(frame, "bias_share", "bias share", log=False), table=frame)


def bias_gradient_share(tables: Tables) -> Chart:
    """Draw the share of each block's gradient energy that its biases receive."""
    frame = tables.bias_gradient_share().dropna(subset=["share"])
    key, title = "bias-gradient-share", "Share of the gradient's energy that the biases receive"
    reading = (
        "Squared gradient norm of all biases of a block over that of all its parameters. A bias gathers the gradient of "
        "every token, so that few parameters can hold much of it."
    )
    if not len(frame) or not (frame["share"] > 0).any():
        return Chart(key, title, reading, absent="No bias inside a block received a gradient.")
    last = frame[frame["step"] == frame["step"].max()]
    title = f"The biases receive {number(float(last['share'].mean()))} of a block's gradient energy (mean, last sampled step)"
    return Chart(key, title, reading, heatmap(frame, "share", "share", by="block", log=False), table=frame)
