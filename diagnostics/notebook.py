"""Show a verdict or a table in a notebook's cell: a little HTML in which every text is escaped, no script, no style sheet."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence

import pandas as pd

from .finding import Finding

MOST_FINDINGS, MOST_TEXT = 8, 600
# Named by words, not by colour alone; readable on light and on dark grounds.
_BADGE = "display:inline-block;padding:2px 10px;border-radius:6px;font-weight:700;color:#fff;background:{}"
_COLOURS = {"PASS": "#1a7f4b", "WARN": "#9a6700", "FAIL": "#b42318"}
_WORDS = {"error": "error", "warning": "warning", "info": "remark"}


def verdict_html(verdict: str, findings: Sequence[Finding], not_judged: Sequence[str]) -> str:
    """Return the verdict, the first findings with their remedies, and how much was not judged."""
    rows = "".join(_finding(finding) for finding in findings[:MOST_FINDINGS])
    more = len(findings) - MOST_FINDINGS
    notes = [f"{more} more findings"] * (more > 0) + [f"{len(not_judged)} matters were not judged"] * bool(not_judged)
    rest = f"<p>{'; '.join(notes)}.</p>" if notes else ""
    return f"<div>{badge(verdict)}<ol>{rows}</ol>{rest}</div>"


def comparison_html(title: str, verdicts: Sequence[tuple[str, str]], summary: pd.DataFrame) -> str:
    """Return the title, one badge a variant and the summary as a table."""
    labels = " ".join(f"{badge(verdict)} {text(label)}" for label, verdict in verdicts)
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in summary.columns)
    rows = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in summary.itertuples(index=False))
    return (
        f"<div><p><strong>{text(title)}</strong></p><p>{labels}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def badge(verdict: str) -> str:
    """Return the verdict as a word on its colour."""
    return f'<span style="{_BADGE.format(_COLOURS[verdict])}">{verdict}</span>'


def text(value: object) -> str:
    """Return one line of escaped text without control, bidirectional or invisible format characters."""
    shown = "".join(" " if unicodedata.category(c)[0] == "C" else c for c in str(value)[:MOST_TEXT])
    return html.escape(shown)


def _finding(finding: Finding) -> str:
    remedy = "" if finding.severity == "info" else f"<br>What to do: {text(finding.remedy)}"
    return f"<li>{_WORDS[finding.severity]}: <strong>{text(finding.sentence)}</strong>{remedy}</li>"


def _cell(value: object) -> str:
    if isinstance(value, float):
        shown = "–" if pd.isna(value) else f"{value:.4g}"
        return f'<td style="text-align:right">{shown}</td>'
    return f"<td>{'–' if value is None else text(value)}</td>"
