"""Gather what a report says of a controlled experiment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
from rheoscope.diagnostics.study import Study

from .figures.chart import Chart
from .theme import PALETTE, axis, figure, number, plain, plot_text, settled

WIDE = 30.0  # a range of so many times is drawn on a logarithmic axis
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "pentagon")
DEFINITIONS = (
    ("agrees", "The 95 % interval over seeds lies in the range that the published figure allows."),
    ("differs", "It lies outside of that range."),
    (
        "not settled at this scale",
        "It lies on both sides of the range's end, or the effect is known to need a larger model or a longer run.",
    ),
    ("best learning rate", "That of the lowest mean last loss over seeds: every variant is judged at its own."),
    (
        "largest stable learning rate",
        "The largest, from the best one on, up to which no seed diverges or loses half of what the best one learned.",
    ),
    (
        "sensitivity",
        "Mean over learning rates of the last loss, at most that of chance, less the best (Wortsman et al. 2023): 0 means that "
        "the learning rate does not matter.",
    ),
    ("loss", "Mean cross-entropy of the last 20 steps, in nats, each on a new batch unless it is said otherwise."),
)


@dataclass(frozen=True)
class StudyContent:
    """What a report says of an experiment.

    Attributes:
        title: the question.
        study: what was found.
        charts: of its curves.
        notes: in printable text.
    """

    title: str
    study: Study
    charts: Sequence[Chart]
    notes: Sequence[str]


def study_content(study: Study) -> StudyContent:
    """Return what a report of ``study`` says."""
    curves = study.curves
    names = list(dict.fromkeys(curves["chart"])) if len(curves) else []
    charts = [drawn(str(name), curves[curves["chart"] == name], index) for index, name in enumerate(names, start=1)]
    return StudyContent(plain(study.question, 200), study, charts, [plain(note, 600) for note in study.notes])


def drawn(name: str, rows: pd.DataFrame, index: int) -> Chart:
    """Draw the lines of one chart with their intervals over seeds."""
    vertical, _, horizontal = name.partition(" against ")
    chart = figure(x=horizontal, y=vertical, height=400)
    told = []
    for place, (series, mine) in enumerate(rows.groupby("series", sort=False)):
        known = mine.dropna(subset=["y"]).sort_values("x")
        if known.empty:
            continue
        colour = PALETTE[place % len(PALETTE)]
        bars = {
            "type": "data",
            "symmetric": False,
            "array": (known["high"] - known["y"]).tolist(),
            "arrayminus": (known["y"] - known["low"]).tolist(),
        }
        chart.add_trace(
            go.Scatter(
                x=known["x"].tolist(),
                y=known["y"].tolist(),
                error_y=bars,
                name=plot_text(series),
                mode="lines+markers",
                line={"color": colour, "dash": "solid" if place < len(PALETTE) else "dot"},
                marker={"size": 8, "color": colour, "symbol": SYMBOLS[place % len(SYMBOLS)]},
                hovertemplate="%{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
            )
        )
        first, last = known.iloc[0], known.iloc[-1]
        told.append(f"{plain(series, 40)} {number(float(first['y']))} to {number(float(last['y']))}")
    if not told:
        return Chart(f"curve-{index}", plain(name, 200), "", absent="No finite value was measured.")
    if _is_wide(rows["x"]):
        chart.update_xaxes(**axis(horizontal, log=True))
    if _is_wide(rows["y"]):
        chart.update_yaxes(**axis(vertical, log=True))
    title = f"{vertical[:1].upper()}{vertical[1:]}, from left to right: {'; '.join(told[:4])}"
    reading = f"{vertical[:1].upper()}{vertical[1:]} against {horizontal}; bars are 95 % intervals over seeds."
    table = rows.drop(columns="chart").reset_index(drop=True)
    return Chart(f"curve-{index}", plain(title, 400), plain(reading, 300), settled(chart), table=table)


def _is_wide(values: pd.Series) -> bool:
    known = [value for value in values if math.isfinite(value)]
    return bool(known) and min(known) > 0 and max(known) > WIDE * min(known)
