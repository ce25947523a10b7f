"""Turn a frame into a table of the page: named columns, readable numbers, a bounded number of rows."""

from __future__ import annotations

import math
from numbers import Integral, Real

import pandas as pd
from markupsafe import Markup, escape

from .theme import number, plain

MOST_ROWS = 300


def excerpt(frame: pd.DataFrame, most: int = MOST_ROWS) -> tuple[pd.DataFrame, str]:
    """Return the frame, of a longer one the last step alone, and of that the first rows; and a sentence that says so."""
    shown, note = frame, ""
    if len(shown) > most and "step" in shown:
        last = shown["step"].max()
        shown, note = shown[shown["step"] == last], f"Step {int(last)} alone; the recording holds the others."
    if len(shown) > most:
        note = f"The first {most} of {len(shown):,} rows; the recording holds the others."
        shown = shown.head(most)
    return shown, note


def grid(frame: pd.DataFrame) -> Markup:
    """Return an HTML table, of a long frame an excerpt."""
    shown, note = excerpt(frame)
    is_text = [not pd.api.types.is_numeric_dtype(shown[column]) for column in shown]
    head = Markup("").join(
        Markup('<th scope="col"{}{}>{}</th>').format(_kind(text), _key(column), str(column).replace("_", " "))
        for column, text in zip(shown.columns, is_text, strict=True)
    )
    rows = Markup("").join(_row(values, is_text) for values in shown.itertuples(index=False, name=None))
    caption = Markup("<caption>{}</caption>").format(note) if note else Markup("")
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="Numbers"><table>{}<thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>"
    ).format(caption, head, rows)


def cell(value: object) -> str:
    """Return what stands in one cell."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return _whole(int(value))
    if isinstance(value, Real):
        found = float(value)
        return _whole(int(found)) if found.is_integer() and 1e4 <= abs(found) < 1e9 else number(found, 4)
    if isinstance(value, tuple):
        return ", ".join(plain(item) for item in value) or "–"
    return plain(value)


def _whole(value: int) -> str:
    return f"{value:,}" if abs(value) >= 10_000 else f"{value}"


def _row(values: tuple[object, ...], is_text: list[bool]) -> Markup:
    cells = (
        Markup("<td{}>{}</td>").format(_kind(text), escape(cell(value)))
        for value, text in zip(values, is_text, strict=True)
    )
    return Markup("<tr>{}</tr>").format(Markup("").join(cells))


def _key(column: object) -> Markup:
    """Return what tells the page which block a row is of."""
    return Markup(' data-key="{}"').format(column) if column in ("stack", "block") else Markup("")


def _kind(is_text: bool) -> Markup:
    return Markup(' class="text"') if is_text else Markup("")
