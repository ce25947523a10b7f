"""Show what every norm does: how large its input is, how much of it the mean takes away, its gain on the way back."""

from __future__ import annotations

import pandas as pd
from rheoscope.diagnostics.tables import Tables
from rheoscope.reports.theme import number

from .chart import Chart
from .profile import profile

_NO_NORM = "No norm was found between tensors that are recorded, or no step was sampled."


def norm_inputs(tables: Tables) -> Chart:
    """Draw the RMS of what every norm reads."""
    key, title = "norm-inputs", "What every norm reads"
    reading = (
        "Root mean square of each norm's input, the final norm's last. A norm multiplies by about one over this, forward and "
        "back: an input far below 1 multiplies the gradient, one far above 1 damps it."
    )
    frame = one_a_place(tables, "input_rms")
    if not len(frame):
        return Chart(key, title, reading, absent=_NO_NORM)
    last = frame[frame["step"] == frame["step"].max()]["input_rms"]
    title = f"The norms read inputs of RMS {number(float(last.min()))} to {number(float(last.max()))}"
    return Chart(
        key,
        title,
        reading,
        profile(tables, frame, "input_rms", "input RMS"),
        table=frame,
    )


def norm_gains(tables: Tables) -> Chart:
    """Draw the gain of the gradient through every norm."""
    key, title = "norm-gains", "Gain of the gradient through every norm"
    reading = (
        "RMS of the gradient at a norm's input over RMS of the gradient at its output, through this norm alone. Before a branch "
        "it scales what the branch sends back; on the stream (post-norm) it multiplies along depth."
    )
    frame = one_a_place(tables, "jacobian_gain")
    if not len(frame):
        return Chart(key, title, reading, absent=f"{_NO_NORM} Or no gradient came back to both of a norm's ends.")
    last = frame[frame["step"] == frame["step"].max()]["jacobian_gain"]
    title = f"The norms multiply the gradient by {number(float(last.min()))} to {number(float(last.max()))}"
    return Chart(
        key,
        title,
        reading,
        profile(tables, frame, "jacobian_gain", "gain of the gradient"),
        table=frame,
    )


def mean_energy(tables: Tables) -> Chart:
    """Draw the share of energy that every LayerNorm's mean takes away."""
    key, title = "mean-energy", "What LayerNorms take away with the mean"
    reading = (
        "Share of a norm's input energy that lies in the tokens' own means, which a LayerNorm subtracts and an RMSNorm would "
        "keep. Near 0 the two are the same but for their parameters."
    )
    frame = one_a_place(tables, "mean_energy_removed")
    frame = frame[frame["kind"] == "layernorm"]
    if not len(frame):
        return Chart(key, title, reading, absent="No LayerNorm was found whose input is recorded.")
    last = frame[frame["step"] == frame["step"].max()]["mean_energy_removed"]
    title = f"LayerNorms take away up to {number(100 * float(last.max()))} % of their input's energy with the mean"
    drawn = profile(tables, frame, "mean_energy_removed", "share of energy", log_y=False)
    return Chart(key, title, reading, drawn, table=frame)


def gain_parameters(tables: Tables) -> Chart:
    """Draw the RMS of every norm's gain."""
    key, title = "norm-gain-parameters", "Gains of the norms"
    reading = (
        "Root mean square of each norm's gain, its parameter, after the step: 1 at the usual init. What it grows to multiplies "
        "all that this norm hands on, and the gradient that comes back through it."
    )
    frame = one_a_place(tables, "gain_rms")
    if not len(frame):
        return Chart(key, title, reading, absent="No norm with a gain of its own was recorded.")
    last = frame[frame["step"] == frame["step"].max()]["gain_rms"]
    title = f"The norms' gains have an RMS of {number(float(last.min()))} to {number(float(last.max()))}"
    return Chart(key, title, reading, profile(tables, frame, "gain_rms", "gain RMS", log_y=False), table=frame)


def one_a_place(tables: Tables, column: str) -> pd.DataFrame:
    """Return the norms with a value in ``column``, one a place: a branch's output norm only where it has no other."""
    frame = tables.norms.dropna(subset=[column])
    before = frame.assign(is_after=frame["role"] == "output").sort_values("is_after", kind="stable")
    one = before.drop_duplicates(["step", "stack", "depth"]).drop(columns=["is_after", "not_known"])
    return one.sort_values(["step", "stack", "depth"])
