"""Show how far the optimizer moves the weights of each block."""

from __future__ import annotations

from rheoscope.diagnostics.tables import Tables
from rheoscope.reports.theme import number

from .chart import Chart
from .heatmap import heatmap


def update_ratio(tables: Tables) -> Chart:
    """Draw the update ratio of every block at every sampled step."""
    frame = tables.update_ratios().dropna(subset=["ratio"])
    key, title = "update-ratio", "Update ratio of every block"
    reading = (
        "RMS of one optimizer step over RMS of the weights, over a block's weight matrices together. About 0.001 is a common "
        "rule of thumb; what matters is a block far from its siblings."
    )
    if not len(frame):
        return Chart(key, title, reading, absent="No optimizer step was recorded: pass the optimizer to attach.")
    last = frame[frame["step"] == frame["step"].max()]
    title = f"The last sampled step moves a block's weights by {number(float(last['ratio'].median()))} of their size (median)"
    return Chart(key, title, reading, heatmap(frame, "ratio", "update ratio", by="block"), table=frame)
