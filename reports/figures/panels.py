"""Draw one panel a group of variants side by side, on one shared scale, each variant in its own style."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rheoscope.reports.compared import Compared, Style
from rheoscope.reports.theme import axis, figure, number, plot_text, settled

from .chart import extremes
from .lines import finite, shown

MOST_POINTS = 500  # of one line


@dataclass(frozen=True)
class Line:
    """One line of a panel: a frame with an x and a y column, and how it is drawn."""

    frame: pd.DataFrame
    x: str
    y: str
    is_theory: bool = False


Lines = Callable[[str], Iterable[Line]]


def panels(compared: Compared, lines: Lines, *, x: str, y: str, log_y: bool = False, log_x: bool = False) -> go.Figure:
    """Return one panel a group; ``lines(label)`` gives what is drawn for a variant. Theory is thin and unmarked."""
    groups = compared.groups
    titles = [plot_text(group) for group in groups] if any(groups) else None
    made = make_subplots(rows=1, cols=len(groups), shared_yaxes="all", subplot_titles=titles, horizontal_spacing=0.04)
    drawn = go.Figure(made).update_layout(figure(height=430).layout)
    seen: set[str] = set()
    along: set[str] = set()
    left_out = 0
    for column, group in enumerate(groups, start=1):
        predicted: set[str] = set()
        for label, style in compared.members(group):
            for whole in lines(label):
                line = _thinned(whole)
                left_out = max(left_out, len(whole.frame) - len(line.frame))
                along.add(line.x)
                if line.is_theory and style.colour in predicted:
                    continue  # the closed form knows no biases: one line a colour
                predicted |= {style.colour} if line.is_theory else set()
                trace = _trace(line, style, seen, log=log_y)
                drawn.add_trace(trace, row=1, col=column)
        note = f" (of the longest line {left_out:,} points are not drawn)" if left_out else ""
        drawn.update_xaxes(**axis(x + note, log=log_x), row=1, col=column)
        drawn.update_yaxes(**axis(y if column == 1 else "", log=log_y), row=1, col=column)
    if log_x:
        ticks = sorted({x for trace in drawn.data for x in trace.x})
        drawn.update_xaxes(tickvals=ticks, ticktext=[number(tick) for tick in ticks])
    drawn.update_layout(legend={"orientation": "h", "yanchor": "top", "y": -0.18, "x": 0}, margin={"t": 40, "b": 110})
    drawn.update_layout(
        meta={"by": "block"} if along == {"block"} else {"ends": compared.ends} if along == {"depth"} else {}
    )
    return settled(drawn)


def _thinned(line: Line) -> Line:
    """Return the line, of a long one at most so many points: the lowest and the highest of every stretch."""
    if len(line.frame) <= MOST_POINTS:
        return line
    return replace(line, frame=line.frame.iloc[extremes(line.frame[line.y].to_numpy(dtype=float), MOST_POINTS)])


def _trace(line: Line, style: Style, seen: set[str], *, log: bool) -> go.Scatter:
    name = "closed form, in the variant's colour" if line.is_theory else style.name
    is_new = name not in seen
    seen.add(name)
    return go.Scatter(
        x=line.frame[line.x].tolist(),
        y=shown(finite(line.frame[line.y], log=log)),
        name=plot_text(name),
        legendgroup=plot_text(name),
        showlegend=is_new,
        mode="lines" if line.is_theory or len(line.frame) > 30 else "lines+markers",
        line={
            "color": style.colour,
            "dash": "dash" if line.is_theory else style.dash,
            "width": 1 if line.is_theory else 2,
        },
        # Two variants that coincide stay visible: the open marker is larger than the filled one inside it.
        marker={"symbol": style.symbol, "size": 10 if style.symbol.endswith("open") else 6, "color": style.colour},
        hovertemplate="%{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
    )
