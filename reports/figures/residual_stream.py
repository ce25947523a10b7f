"""Show the activations: how large the residual stream is by depth and step, and what the branches write into it."""

from __future__ import annotations

from rheoscope.diagnostics.frames import block_states
from rheoscope.diagnostics.growth_law import growth_power
from rheoscope.diagnostics.tables import Tables
from rheoscope.reports.theme import number

from .chart import Chart
from .closed_form import closed_forms
from .heatmap import heatmap
from .profile import profile

_NOTHING = "No step was sampled, so no activation was recorded."


def state_by_depth(tables: Tables) -> Chart:
    """Draw the RMS of every state at a few steps."""
    frame = tables.state_rms()
    key = "state-by-depth"
    reading = (
        "Root mean square of every state. Branches with normed inputs add energy, so that the stream grows like the square "
        "root of depth; a straight rise on this logarithmic axis is growth that multiplies. Under post-norm every state is "
        "normed and the line is flat by construction."
    )
    if not len(frame):
        return Chart(key, "Residual stream by depth", reading, absent=_NOTHING)
    blocks = block_states(frame)
    last = blocks[blocks["step"] == blocks["step"].max()].sort_values(["stack", "depth"])
    if not len(last):
        return Chart(
            key,
            "Residual stream by depth",
            reading,
            absent="No step was sampled, so no state behind a block was recorded.",
        )
    theory = closed_forms(tables, "rms")
    reading += (
        " Dotted: the closed form of the weights at init, grey the band within which it claims to hold."
        if theory
        else ""
    )
    first, final = float(last["rms"].iloc[0]), float(last["rms"].iloc[-1])
    title = f"The stream's RMS goes from {number(first)} after the first block to {number(final)} after the last"
    power = growth_power(last)
    if power is not None and not tables.anatomy.placement.startswith("post"):
        title += f": it grows like the block's number to the power {number(power)}"
        reading += (
            " The power is 0.5 where writes are alike in size and independent, and 1 where they all point one way."
        )
    return Chart(
        key,
        title,
        reading,
        profile(tables, frame, "rms", "state RMS", theory=theory),
        table=frame,
    )


def state_heatmap(tables: Tables) -> Chart:
    """Draw the RMS of every state at every sampled step."""
    frame = tables.state_rms()
    key, title = "state-heatmap", "Stream RMS at every state and step"
    reading = "A row that brightens with the steps is a place whose scale drifts in training."
    if not len(frame):
        return Chart(key, title, reading, absent=_NOTHING)
    return Chart(key, title, reading, heatmap(frame, "rms", "state RMS"))


def writes_by_depth(tables: Tables) -> Chart:
    """Draw the RMS of every write at a few steps."""
    frame = tables.sites("write")
    key, title = "writes-by-depth", "What each branch writes"
    reading = (
        "Root mean square of what each branch adds to the stream, after its dropout, bias and output norm. One branch far "
        "above its siblings dominates the stream; one far below is idle."
    )
    if not len(frame):
        return Chart(key, title, reading, absent="No hook sees a branch's write on this model, or no step was sampled.")
    last = frame[frame["step"] == frame["step"].max()]
    top = last.loc[last["rms"].idxmax()] if last["rms"].notna().any() else None
    if top is not None:
        times = float(top["rms"]) / float(last["rms"].median()) if last["rms"].median() > 0 else None
        title = (
            f"The largest write is block {int(top['block'])}'s {top['branch']}: {number(times)} times the median write"
        )
    return Chart(key, title, reading, profile(tables, frame, "rms", "write RMS"), table=frame)
