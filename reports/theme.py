"""Keep every colour, line and text of the figures in one place."""

from __future__ import annotations

import html
import math
import unicodedata
from typing import Any

import plotly.graph_objects as go

# Okabe and Ito's colour-blind-safe palette, in the order of best contrast on both white and dark grey.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F")
SEQUENTIAL = "Cividis"  # made for colour-blind readers; monotone in luminance, so that it prints in grey
HOLDS, DEVIATES, UNCLAIMED = (
    "#00795A",
    "#C24E00",
    "#6E7781",
)  # green, vermilion, grey: white marks have contrast 4.5 on each
HEIGHT = 360
MOST_TEXT = 120  # characters of a name inside a figure


def plain(value: object, most: int = MOST_TEXT) -> str:
    """Return ``value`` as one line of printable text: no control, bidirectional or invisible format characters."""
    text = "".join(" " if unicodedata.category(c)[0] == "C" else c for c in str(value)[: 4 * most])
    return text if len(text) <= most else text[: most - 1] + "…"


def plot_text(value: object) -> str:
    """Return ``value`` as text that plotly draws as it stands: its pseudo-HTML is escaped."""
    return html.escape(plain(value), quote=False)


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as a reader wants it: three digits, powers of ten outside 0.001 to 10,000, "not recorded"."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "not recorded"
    if math.isinf(value):
        return "infinite"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        short = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{short} × 10{_raised(int(exponent))}".removeprefix("1 × ")
    return f"{value:.{digits}g}"


def counted(n: int, noun: str) -> str:
    """Return a number of things in words: ``1 block``, ``12 blocks``, ``2 branches``."""
    plural = f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{n:,} {noun if n == 1 else plural}"


def amount(n_bytes: int) -> str:
    """Return a number of bytes as a reader wants it: in units of a thousand."""
    value, units = float(n_bytes), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def figure(*, x: str = "", y: str = "", log_y: bool = False, height: int = HEIGHT) -> go.Figure:
    """Return an empty figure with the shared layout; the page sets the colours of its own light or dark theme."""
    drawn = go.Figure()
    drawn.update_layout(
        template="none",
        height=height,
        margin={"l": 70, "r": 20, "t": 30, "b": 55},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        hovermode="closest",
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        colorway=list(PALETTE),
    )
    drawn.update_xaxes(**axis(x))
    drawn.update_yaxes(**axis(y, log=log_y))
    return drawn


def axis(title: str, *, log: bool = False) -> dict[str, Any]:
    """Return the settings of one axis."""
    settings: dict[str, Any] = {"title": {"text": plot_text(title)}, "zeroline": False, "automargin": True}
    if log:
        settings["type"] = "log"
    return settings


def settled(drawn: go.Figure) -> go.Figure:
    """Give every logarithmic axis of values a range of at least one decade and ticks that do not crowd; return it."""
    values = [y for trace in drawn.data for y in (trace.y if trace.type == "scatter" else ()) if _is_positive(y)]
    if values:
        low, high = math.log10(min(values)), math.log10(max(values))
        missing = max(0.0, 1 - (high - low)) / 2
        low, high = low - missing - 0.06 * (high - low), high + missing + 0.06 * (high - low)
        drawn.for_each_yaxis(lambda found: _settle(found, low, high))
    return drawn


def _settle(found: Any, low: float, high: float) -> None:
    if found.type == "log":
        found.range = [low, high]
        mantissas = (1,) if high - low > 2.5 else (1, 2, 5)
        decades = range(math.floor(low), math.ceil(high) + 1)
        ticks = [m * 10.0**k for k in decades for m in mantissas if low <= math.log10(m * 10.0**k) <= high]
        every = max(1, len(ticks) // 9)
        found.tickvals = ticks[::every]
        found.ticktext = [number(tick) for tick in ticks[::every]]


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _raised(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
