"""Compare what bias terms do: their share of the writes as training goes on, and of each block's gradient."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from rheoscope.reports.compared import Compared
from rheoscope.reports.theme import number, plain

from .chart import Chart
from .panels import Line, panels

_NO_BIAS = "No variant has a bias at the end of a branch."


def bias_share_in_training(compared: Compared) -> Chart:
    """Draw the largest bias share over the branches, by step."""
    key, title = "bias-share", "Largest bias share over the branches, by step"
    reading = (
        "Energy of the last projection's bias over energy of the branch's output, the largest over all branches. Biases "
        "start at 0, which this logarithmic axis cannot show; what they grow to is what they contribute. Variants without "
        "biases have no line."
    )
    frames = {
        label: tables.bias_share().groupby("step", as_index=False)[["bias_share"]].max()
        for label, tables in compared.runs.items()
    }
    frames = {label: frame.dropna() for label, frame in frames.items() if frame["bias_share"].notna().any()}
    if not frames:
        return Chart(key, title, reading, absent=_NO_BIAS)

    def lines(label: str) -> Iterable[Line]:
        if label in frames:
            yield Line(frames[label], "step", "bias_share")

    ends = {
        label: (float(frame["bias_share"].iloc[0]), float(frame["bias_share"].iloc[-1]))
        for label, frame in frames.items()
    }
    top = max(ends, key=lambda label: ends[label][1])
    title = f"The largest bias share grows from {number(ends[top][0])} to {number(ends[top][1])} ({top})"
    table = pd.concat([frame.assign(label=label) for label, frame in frames.items()], ignore_index=True)
    return Chart(
        key, title, reading, panels(compared, lines, x="step", y="largest bias share", log_y=True), table=table
    )


def bias_share_by_depth(compared: Compared) -> Chart:
    """Draw the bias share of every branch at the last sampled step."""
    key, title = "bias-share-by-depth", "Bias share of every branch at the last sampled step"
    reading = "The same share, branch by branch: where in the stack the biases speak."
    frames = {}
    for label, tables in compared.runs.items():
        shares = tables.bias_share().dropna(subset=["bias_share"])
        if len(shares):
            frames[label] = shares[shares["step"] == shares["step"].max()].sort_values(["stack", "depth"])
    if not frames:
        return Chart(key, title, reading, absent=_NO_BIAS)

    def lines(label: str) -> Iterable[Line]:
        if label in frames:
            yield Line(frames[label], "depth", "bias_share")

    table = pd.concat([frame.assign(label=label) for label, frame in frames.items()], ignore_index=True)
    top = table.loc[table["bias_share"].idxmax()]
    title = (
        f"At the last sampled step biases speak loudest in block {int(top['block'])}'s {plain(top['branch'], 24)}: "
        f"{number(float(top['bias_share']))} ({top['label']})"
    )
    return Chart(key, title, reading, panels(compared, lines, x="depth", y="bias share", log_y=True), table=table)


def bias_gradient_share(compared: Compared) -> Chart:
    """Draw the share of each block's gradient energy that its biases receive, at the last sampled step."""
    key, title = "bias-gradient-share", "Share of each block's gradient energy in its biases"
    reading = (
        "Squared gradient norm of a block's biases (those of its norms included) over that of all its parameters, at the "
        "last sampled step. Few parameters, each of which gathers the gradient of every token."
    )
    frames = {}
    for label, tables in compared.runs.items():
        shares = tables.bias_gradient_share().dropna(subset=["share"])
        last = shares[shares["step"] == shares["step"].max()].sort_values(["stack", "block"])
        if (last["share"] > 0).any():
            frames[label] = last
    if not frames:
        return Chart(key, title, reading, absent=_NO_BIAS)

    def lines(label: str) -> Iterable[Line]:
        if label in frames:
            yield Line(frames[label], "block", "share")

    table = pd.concat([frame.assign(label=label) for label, frame in frames.items()], ignore_index=True)
    means = table.groupby("label")["share"].mean()
    title = (
        f"The biases receive {number(float(means.min()))} to {number(float(means.max()))} of a block's gradient energy"
    )
    return Chart(key, title, reading, panels(compared, lines, x="block", y="share", log_y=True), table=table)


def losses(compared: Compared) -> Chart:
    """Draw the loss of every run."""
    key, title = "losses", "Loss"
    reading = (
        "Every run is one line. Runs that differ in their seed alone differ too: a gap of that size between two designs is "
        "chance, not a ranking."
    )
    frames = {label: tables.steps.dropna(subset=["loss"]) for label, tables in compared.runs.items()}
    if not any(len(frame) > 1 for frame in frames.values()):
        return Chart(key, title, reading, absent="No variant was trained.")

    def lines(label: str) -> Iterable[Line]:
        yield Line(frames[label], "step", "loss")

    table = compared.summary[["label", "loss_first", "loss_last"]]
    lowest, highest = float(table["loss_last"].min()), float(table["loss_last"].max())
    title = f"The losses end between {number(lowest)} and {number(highest)}"
    return Chart(key, title, reading, panels(compared, lines, x="step", y="loss"), table=table)
