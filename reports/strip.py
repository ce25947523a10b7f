"""Draw a stack as a column of blocks, each coloured by what was measured in it and labelled with the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup
from plotly.colors import sample_colorscale, unlabel_rgb
from rheoscope.diagnostics.frames import records

from .figures.chart import standing_out
from .figures.places import departures
from .theme import SEQUENTIAL, number

MOST_BLOCKS = 96  # of one picture
_ROW, _GAP, _NAME, _CELL, _HEAD = 22, 2, 74, 166, 54
QUANTITIES = (
    ("state_rms", "state RMS", True),
    ("gradient_rms", "gradient RMS", True),
    ("skip_share", "skip share", False),
)


def strip(values: pd.DataFrame, *, n_stacks: int) -> Markup:
    """Return an SVG of one stack: a row a block, the last on top, a cell a quantity; each row links to its block.

    Args:
        values: columns stack, block and those of ``QUANTITIES``, one stack's; see ``block_values``.
        n_stacks: of the model: with several a link names the stack.
    """
    present = [(column, name, log) for column, name, log in QUANTITIES if values[column].notna().any()]
    kept = standing_out(_departures(values, present), MOST_BLOCKS)
    rows = values.sort_values("block").iloc[kept].iloc[::-1]
    width, height = _NAME + _CELL * len(present), _HEAD + len(rows) * (_ROW + _GAP)
    scales = {column: _scale(values[column], log=log) for column, _, log in present}
    parts = [_legend(index, name, *scales[column], log=log) for index, (column, name, log) in enumerate(present)]
    parts += [_block(row, index, present, scales, n_stacks=n_stacks) for index, row in enumerate(records(rows))]
    label = f"Blocks of the stack with {', '.join(name for _, name, _ in present)}"
    return Markup(
        '<svg class="strip" viewBox="0 0 {} {}" width="{}" height="{}" role="group" aria-label="{}">{}</svg>'
    ).format(width, height, width, height, label, Markup("").join(parts))


def left_out(values: pd.DataFrame) -> str:
    """Return how many blocks are drawn, where it is not all."""
    return (
        f"{MOST_BLOCKS} of {len(values):,} blocks are drawn: those that stand out." if len(values) > MOST_BLOCKS else ""
    )


def _block(
    row: Mapping[str, float],
    index: int,
    present: Sequence[tuple[str, str, bool]],
    scales: Mapping[str, tuple[float, float]],
    *,
    n_stacks: int,
) -> Markup:
    block = int(row["block"])
    place = f"{int(row['stack'])}.{block}" if n_stacks > 1 else f"{block}"
    said = f"block {block}: " + ", ".join(f"{name} {number(row[column])}" for column, name, _ in present)
    y = _HEAD + index * (_ROW + _GAP)
    cells = [
        _cell(_NAME + place_ * _CELL, y, row[column], *scales[column], log=log)
        for place_, (column, _, log) in enumerate(present)
    ]
    return Markup(
        '<a href="#block={}" data-place="{}" aria-label="{}"><title>{}</title>'
        '<rect class="row" x="0" y="{}" width="{}" height="{}"/>'
        '<text class="name" x="{}" y="{}" text-anchor="end">block {}</text>{}</a>'
    ).format(
        place, place, said, said, y, _NAME + _CELL * len(present), _ROW, _NAME - 8, y + 15, block, Markup("").join(cells)
    )  # fmt: skip


def _cell(x: float, y: float, value: float, low: float, high: float, *, log: bool) -> Markup:
    share = _share(value, low, high, log=log)
    fill, ink = ("none", "currentColor") if share is None else _colours(share)
    return Markup(
        '<rect x="{}" y="{}" width="{}" height="{}" fill="{}"/><text x="{}" y="{}" text-anchor="middle" style="fill:{}">{}</text>'
    ).format(x, y, _CELL - _GAP, _ROW, fill, x + (_CELL - _GAP) / 2, y + 15, ink, number(value))


def _legend(index: int, name: str, low: float, high: float, *, log: bool) -> Markup:
    x, n = _NAME + index * _CELL, 10
    wide = (_CELL - 5 * _GAP) / n
    bar = Markup("").join(
        Markup('<rect x="{:.1f}" y="20" width="{:.1f}" height="10" fill="{}"/>').format(
            x + place * wide, wide, _colours(place / (n - 1))[0]
        )
        for place in range(n)
    )
    said = f"{name} (log)" if log else name
    ends = Markup(
        '<text x="{}" y="13">{}</text><text x="{}" y="44">{}</text><text x="{}" y="44" text-anchor="end">{}</text>'
    ).format(x, said, x, number(low), x + _CELL - 5 * _GAP, number(high))
    return bar + ends


def _colours(share: float) -> tuple[str, str]:
    """Return a colour of the scale, and black or white, whichever stands out more from it."""
    found = sample_colorscale(SEQUENTIAL, [share])[0]
    red, green, blue = unlabel_rgb(found)
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return f"#{round(red):02x}{round(green):02x}{round(blue):02x}", "#000000" if luminance > 0.179 else "#ffffff"


def _scale(values: pd.Series, *, log: bool) -> tuple[float, float]:
    known = values[np.isfinite(values.astype(float)) & ((values > 0) if log else True)]
    return (float(known.min()), float(known.max())) if len(known) else (math.nan, math.nan)


def _share(value: float, low: float, high: float, *, log: bool) -> float | None:
    """Return where on the scale a value lies; None where it is on none."""
    if not math.isfinite(value) or (log and value <= 0):
        return None
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return 0.5 if high <= low else min(1.0, max(0.0, (value - low) / (high - low)))


def _departures(values: pd.DataFrame, present: Sequence[tuple[str, str, bool]]) -> np.ndarray:
    columns = [column for column, _, _ in present]
    return departures(values.sort_values("block")[columns].T, log=True) if columns else np.zeros(len(values))
