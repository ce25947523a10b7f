"""Write what a report says as Markdown for a pull request: the verdict, the leading findings, small tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd
from rheoscope.diagnostics.diagnosis import Diagnosis

from . import words
from .content import ComparisonContent, RunContent, Section
from .grid import cell, excerpt
from .study_content import StudyContent
from .theme import plain

N_FINDINGS = 5
N_ROWS = 12  # of a table
_SPECIAL = re.compile(r"([\\`*_\[\]|~])")
# Forges turn these into notifications, references and links; an invisible joiner keeps them text.
_ALIVE = re.compile(r"@(?=\w)|#(?=\d)|://|\bwww\.", re.IGNORECASE)
_JOINER = "\u2060"


def as_markdown(content: RunContent | ComparisonContent | StudyContent) -> str:
    """Return Markdown without HTML of its own but a comment; every name in it is text, and notifies nobody."""
    if isinstance(content, StudyContent):
        lines = _study(content)
    else:
        lines = _comparison(content) if isinstance(content, ComparisonContent) else _run(content)
    return "<!-- Written by Rheoscope -->\n" + "\n".join(lines) + "\n"


def _run(content: RunContent) -> Iterator[str]:
    diagnosis = content.diagnosis
    yield f"## {diagnosis.verdict}: {escaped(content.title)}"
    yield ""
    yield escaped(words.verdict_sentence(diagnosis))
    yield ""
    yield from _findings(diagnosis)
    yield from _pairs(content.facts)
    yield f"Anatomy: {escaped(content.anatomy)}"
    yield ""
    yield from _shown(content.sections)
    yield from _list("Not judged", diagnosis.not_judged)
    yield from _list("Not measured", content.not_measured)


def _comparison(content: ComparisonContent) -> Iterator[str]:
    yield f"## {escaped(content.title)}"
    yield ""
    yield from (f"- {escaped(sentence)}" for sentence in content.leads)
    yield ""
    yield from _table(content.summary)
    for label, diagnosis in content.comparison.diagnoses.items():
        yield f"### {diagnosis.verdict}: {escaped(plain(label))}"
        yield ""
        yield from _findings(diagnosis)
    yield from _list("Not measured", content.not_measured)


def _study(content: StudyContent) -> Iterator[str]:
    yield f"## {escaped(content.title)}"
    yield ""
    yield escaped(content.study.sentence)
    yield ""
    yield from _table(content.study.claims)
    yield from _table(content.study.variants)
    yield from _list("Not settled", content.notes)


def escaped(text: str) -> str:
    """Return one line of text as Markdown that shows exactly that text, and nothing else."""
    kept = _ALIVE.sub(lambda found: found[0][0] + _JOINER + found[0][1:], text)
    kept = kept.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", kept)


def _findings(diagnosis: Diagnosis) -> Iterator[str]:
    found = words.items(diagnosis)
    for index, item in enumerate(found[:N_FINDINGS], start=1):
        mark = item.kind if item.severity == "info" else f"**{item.kind}**"
        yield f"{index}. {mark}: {escaped(item.sentence)}  "
        yield f"   {escaped(item.evidence)}" + ("  " if item.remedy else "")
        if item.remedy:
            yield f"   What to do: {escaped(item.remedy)}"
    if len(found) > N_FINDINGS:
        yield f"\n{len(found) - N_FINDINGS} more in the report."
    yield ""


def _shown(sections: Sequence[Section]) -> Iterator[str]:
    """Yield the title of every chart that has something to show: each says what is to be seen."""
    yield "### What the charts show"
    yield ""
    for section in sections:
        yield from (f"- {escaped(chart.title)}" for chart in section.charts if not chart.absent)
    yield ""


def _pairs(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield from _table(pd.DataFrame(list(rows), columns=["", "what"]))


def _table(frame: pd.DataFrame) -> Iterator[str]:
    shown, note = excerpt(frame, N_ROWS)
    yield "| " + " | ".join(escaped(str(column)) for column in shown.columns) + " |"
    sides = [":--" if not pd.api.types.is_numeric_dtype(shown[column]) else "--:" for column in shown]
    yield "| " + " | ".join(sides) + " |"
    for row in shown.itertuples(index=False, name=None):
        yield "| " + " | ".join(escaped(cell(value)) for value in row) + " |"
    yield ""
    if note:
        yield f"{note}\n"


def _list(title: str, sentences: Sequence[str]) -> Iterator[str]:
    if sentences:
        yield f"### {title}"
        yield ""
        yield from (f"- {escaped(plain(sentence, 600))}" for sentence in sentences)
        yield ""
