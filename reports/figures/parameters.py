"""Show the parameters of each block: how large they are, how far the optimizer moves them, what Adam remembers of them."""

from __future__ import annotations

from rheoscope.diagnostics.block_parameters import block_rms, block_share
from rheoscope.diagnostics.frames import largest
from rheoscope.diagnostics.tables import Tables
from rheoscope.reports.theme import number

from .chart import Chart
from .heatmap import heatmap

_NO_ADAM = "No Adam or AdamW of torch's own was seen at work."


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


def weights(tables: Tables) -> Chart:
    """Draw the RMS of every block's weight matrices at every sampled step."""
    frame = block_rms(tables, ["weight"]).dropna(subset=["rms"])
    key, title = "weights", "Size of every block's weights"
    reading = (
        "RMS over all weight matrices of a block, after the optimizer's step. A row that brightens with the steps is a block "
        "whose weights grow: its share of the stream grows with them, unless a norm takes that away again."
    )
    if not len(frame):
        return Chart(key, title, reading, absent="No weights of blocks were recorded.")
    first, last = (frame.loc[frame["step"] == step, "rms"] for step in (frame["step"].min(), frame["step"].max()))
    title = f"The blocks' weights have an RMS of {number(float(first.median()))} (median)"
    if frame["step"].nunique() > 1:
        ends = f"{number(float(first.median()))} to {number(float(last.median()))}"
        title = f"The blocks' weights go from an RMS of {ends} (median)"
    return Chart(key, title, reading, heatmap(frame, "rms", "weight RMS", by="block"), table=frame)


def staleness(tables: Tables) -> Chart:
    """Draw how large gradients are beside what Adam remembers of them."""
    frame = block_rms(tables, ["weight"], "staleness").dropna(subset=["rms"])
    key, title = "adam-staleness", "Gradients beside Adam's memory of them"
    reading = (
        "RMS of the gradient over the root of Adam's second moment, over a block's weights. About 1 is steady; far above 1 the "
        "gradient has grown faster than Adam remembers, and steps are larger than meant: loss spikes begin so."
    )
    if not len(frame):
        return Chart(key, title, reading, absent=_NO_ADAM)
    top = largest(frame, "rms")
    title = (
        f"Gradients reach {number(float(top['rms']))} times what Adam remembers, in block {int(top['block'])} at step "
        f"{int(top['step'])}"
    )
    return Chart(key, title, reading, heatmap(frame, "rms", "gradient over memory", by="block"), table=frame)


def below_epsilon(tables: Tables) -> Chart:
    """Draw the share of weights whose second moment Adam's epsilon hides."""
    frame = block_share(tables, ["weight"], "below_epsilon_share").dropna(subset=["share"])
    key, title = "adam-epsilon", "Weights whose gradient is lost under Adam's epsilon"
    reading = (
        "Share of a block's weights whose root second moment lies below epsilon: their steps are smaller than Adam means them to "
        "be, and a block in which most are such hardly learns. A smaller epsilon helps."
    )
    if not len(frame):
        return Chart(key, title, reading, absent=_NO_ADAM)
    last, top = frame[frame["step"] == frame["step"].max()], largest(frame, "share")
    if not frame["share"].any():
        return Chart(
            key, title, reading, absent="At no sampled step did a weight of a block lie below epsilon.", table=last
        )
    title = (
        f"Up to {number(100 * float(top['share']))} % of block {int(top['block'])}'s weights lie below Adam's epsilon (step "
        f"{int(top['step'])}); at the last sampled step at most {number(100 * float(last['share'].max()))} % of a block's do"
    )
    return Chart(key, title, reading, heatmap(frame, "share", "share", by="block", log=False), table=frame)
