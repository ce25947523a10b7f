"""Show the hidden layers of the MLPs: how heavy their tails are, and how much of them is off."""

from __future__ import annotations

from rheoscope.diagnostics.tables import Tables
from rheoscope.reports.theme import number

from .chart import Chart
from .profile import profile

_NOTHING = "No hidden layer of an MLP was seen, or no step was sampled."


def kurtosis(tables: Tables) -> Chart:
    """Draw the kurtosis of every hidden layer."""
    frame = tables.hidden_layers().dropna(subset=["kurtosis"])
    key, title = "hidden-kurtosis", "Tails of the hidden layers"
    reading = (
        "Kurtosis of what the activation function or the gate gives, 3 for a Gaussian. High: a few units carry most of the "
        "energy, which low precision suffers from."
    )
    if not len(frame):
        return Chart(key, title, reading, absent=_NOTHING)
    last = frame[frame["step"] == frame["step"].max()]
    top = last.loc[last["kurtosis"].idxmax()]
    title = f"The hidden layer with the heaviest tails is block {int(top['block'])}'s: kurtosis {number(float(top['kurtosis']))}"
    return Chart(
        key,
        title,
        reading,
        profile(tables, frame, "kurtosis", "kurtosis"),
        table=frame,
    )


def zero_share(tables: Tables) -> Chart:
    """Draw the share of exact zeros in every hidden layer."""
    frame = tables.hidden_layers().dropna(subset=["zero_share"])
    key, title = "hidden-zeros", "Zeros of the hidden layers"
    reading = (
        "Share of hidden values that are exactly 0: about half at init with ReLU, next to none with smooth activations. A block "
        "that rises towards 1 has units that are off for every token: they get no gradient and stay off."
    )
    if not len(frame):
        return Chart(key, title, reading, absent=_NOTHING)
    if not frame["zero_share"].any():
        return Chart(
            key, title, reading, absent="No hidden value was exactly 0, as with a smooth activation.", table=frame
        )
    last = frame[frame["step"] == frame["step"].max()]
    top = last.loc[last["zero_share"].idxmax()]
    title = f"At most {number(100 * float(top['zero_share']))} % of a hidden layer is 0, in block {int(top['block'])}"
    drawn = profile(tables, frame, "zero_share", "share of zeros", log_y=False)
    return Chart(key, title, reading, drawn, table=frame)
