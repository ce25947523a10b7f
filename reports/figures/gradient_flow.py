"""Show how the gradient flows down the stream: its size by depth and step, and which of an add's two paths carries it."""

from __future__ import annotations

import plotly.graph_objects as go
from rheoscope.diagnostics.frames import block_states
from rheoscope.diagnostics.tables import Tables
from rheoscope.reports.theme import PALETTE, figure, number, plot_text, settled

from .chart import Chart
from .closed_form import closed_forms
from .heatmap import heatmap
from .lines import finite
from .places import n_stacks, place_name
from .profile import profile

_NO_BACKWARD = "No backward pass was recorded, so there is no gradient to show."


def gradient_by_depth(tables: Tables) -> Chart:
    """Draw the gradient RMS of every state at a few steps."""
    frame = tables.gradient_profile()
    key, reading = (
        "gradient-by-depth",
        (
            "Root mean square of the loss's gradient with respect to every state of the stream. Flat is sound; a straight "
            "slope on this logarithmic axis means that every block multiplies the gradient."
        ),
    )
    if not len(frame):
        return Chart(key, "Gradient by depth", reading, absent=_NO_BACKWARD)
    blocks = block_states(frame)
    last = blocks[blocks["step"] == blocks["step"].max()].sort_values(["stack", "depth"])
    if not len(last):
        return Chart(key, "Gradient by depth", reading, absent="No state behind a block shows its gradient.")
    theory = closed_forms(tables, "gradient")
    reading += (
        " Dotted: the closed form of the weights at init, grey the band within which it claims to hold."
        if theory
        else ""
    )
    first, final = float(last["rms"].iloc[0]), float(last["rms"].iloc[-1])
    ratio = first / final if final > 0 else None
    title = f"Gradient RMS after the first block is {number(ratio)} times that after the last"
    return Chart(
        key,
        title,
        reading,
        profile(tables, frame, "rms", "gradient RMS", theory=theory),
        table=frame,
    )


def gradient_heatmap(tables: Tables) -> Chart:
    """Draw the gradient RMS of every state at every sampled step."""
    frame = tables.gradient_profile()
    key, title = "gradient-heatmap", "Gradient RMS at every state and step"
    reading = "A dark row is a place that little gradient reaches; a bright column is a step with a large gradient."
    if not len(frame):
        return Chart(key, title, reading, absent=_NO_BACKWARD)
    return Chart(key, title, reading, heatmap(frame, "rms", "gradient RMS"))


def gradient_paths(tables: Tables) -> Chart:
    """Draw the gradient's share through the skip path and through the branch, at every add, at the last sampled step."""
    frame = tables.paths().dropna(subset=["skip_rms", "branch_rms"])
    key, title = "gradient-paths", "What each add sends through the skip and through the branch"
    reading = (
        "The gradient of a state is the sum of what comes back along the skip and what comes back through the branch. "
        "Where the branch's part is far below the skip's, the branch hardly changes what lies under it."
    )
    if not len(frame):
        return Chart(key, title, reading, absent="The two paths of the gradient were not recorded.")
    frame = frame[frame["step"] == frame["step"].max()].sort_values(["stack", "depth"])
    many = n_stacks(frame)
    names = [place_name(int(r.stack), int(r.block), str(r.branch), n_stacks=many) for r in frame.itertuples()]
    drawn = figure(y="gradient RMS", log_y=True)
    for index, (column, label) in enumerate((("skip_rms", "along the skip"), ("branch_rms", "through the branch"))):
        drawn.add_trace(
            go.Scatter(
                x=[plot_text(name) for name in names],
                y=finite(frame[column], log=True),
                name=label,
                mode="lines+markers",
                line={"color": PALETTE[index]},
                marker={"symbol": ["circle", "diamond"][index], "size": 7},
                hovertemplate="%{x}<br>%{y:.4g}<extra>%{fullData.name}</extra>",
            )
        )
    drawn.update_xaxes(type="category", nticks=min(len(names), 16))
    ratio = float((frame["branch_rms"] / frame["skip_rms"].where(frame["skip_rms"] > 0)).median())
    title = f"Through the branches comes {number(ratio)} of what comes along the skips (median, last sampled step)"
    return Chart(key, title, reading, settled(drawn), table=frame)


def skip_transmission(tables: Tables) -> Chart:
    """Draw the gain of the gradient along the skip path alone."""
    frame = tables.skip_transmission().dropna(subset=["transmission"])
    key, title = "skip-transmission", "Skip transmission"
    reading = (
        "The gain of the gradient along the skip path alone, from the last state down to each state: the product of what "
        "the norms and scales on the stream do to it. It is 1 wherever the stream is an identity (pre, double and "
        "reordered norms); norms on the stream (post) multiply it away with depth. Each norm's gain is that of the gradient "
        "which really arrives at it."
    )
    if not len(frame):
        return Chart(key, title, reading, absent="No hook sees the sums on both sides of the norms on the stream.")
    blocks = tables.block_transmission()
    value = float(blocks["transmission"].iloc[-1]) if len(blocks) else None
    title = f"Skip transmission from the last state to the first block: {number(value)}"
    return Chart(
        key,
        title,
        reading,
        profile(tables, frame, "transmission", "skip transmission"),
        table=frame,
    )
