"""Show a recording in a notebook's cell: a small table in which every text is escaped."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence

MOST_TEXT = 300


def recording_html(title: object, facts: Sequence[tuple[str, object]]) -> str:
    """Return a heading and one row a fact, as HTML without script or style sheet."""
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left">{_text(name)}</th><td style="text-align:left">{_text(value)}</td></tr>'
        for name, value in facts
    )
    return f"<div><p><strong>{_text(title)}</strong></p><table><tbody>{rows}</tbody></table></div>"


def _text(value: object) -> str:
    shown = "".join(" " if unicodedata.category(c)[0] == "C" else c for c in str(value)[:MOST_TEXT])
    return html.escape(shown)
