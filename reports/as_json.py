"""Write what a report says as JSON, in the shape that docs/report_schema.json describes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import pandas as pd
from rheoscope.diagnostics.diagnosis import Diagnosis
from rheoscope.probes.anatomy import Anatomy

from .content import ComparisonContent, Rows, RunContent, Section
from .figures.chart import Chart
from .grid import excerpt
from .study_content import StudyContent
from .theme import plain
from .words import verdict_sentence

SCHEMA = 1  # changes whenever a reader of an older document could be misled


def as_json(content: RunContent | ComparisonContent | StudyContent) -> str:
    """Return one JSON document: verdict, findings, and the numbers behind every chart."""
    if isinstance(content, StudyContent):
        kind, said = "study", _study(content)
    elif isinstance(content, ComparisonContent):
        kind, said = "comparison", _comparison(content)
    else:
        kind, said = "run", _run(content)
    value = {"generator": "Rheoscope", "schema": SCHEMA, "kind": kind, "title": content.title, **said}
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _run(content: RunContent) -> dict[str, Any]:
    return {
        **_judged(content.diagnosis),
        "anatomy": _anatomy(content.recording.anatomy, content.anatomy),
        "facts": _facts(content.facts),
        "provenance": _facts(content.provenance),
        "not_measured": list(content.not_measured),
        "events": list(content.events),
        "sections": [_section(section) for section in content.sections],
    }


def _comparison(content: ComparisonContent) -> dict[str, Any]:
    comparison = content.comparison
    facts = dict(content.provenance)
    return {
        "leads": list(content.leads),
        "summary": _table(content.summary),
        "variants": [
            {
                "label": plain(label),
                **_judged(comparison.diagnoses[label]),
                "anatomy": _anatomy(recording.anatomy),
                "provenance": _facts(facts[plain(label)]),
            }
            for label, recording in comparison.recordings.items()
        ],
        "not_measured": list(content.not_measured),
        "sections": [_section(section) for section in content.sections],
    }


def _study(content: StudyContent) -> dict[str, Any]:
    study = content.study
    return {
        "name": study.name,
        "source": plain(study.source, 400),
        "sentence": study.sentence,
        "is_quick": study.is_quick,
        "claims": _table(study.claims),
        "variants": _table(study.variants),
        "notes": list(content.notes),
        "charts": [_chart(chart) for chart in content.charts],
        "setting": {plain(term): plain(text, 400) for term, text in study.setting},
    }


def _judged(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "verdict": diagnosis.verdict,
        "sentence": verdict_sentence(diagnosis),
        "findings": [_printable(finding.to_json()) for finding in diagnosis],
        "not_judged": [plain(sentence, 600) for sentence in diagnosis.not_judged],
    }


def _printable(value: Any) -> Any:
    """Return plain values in which every text is one line of printable characters and every number is one of JSON's."""
    if isinstance(value, dict):
        return {name: _printable(item) for name, item in value.items()}
    return plain(value, 600) if isinstance(value, str) else _value(value)


def _anatomy(anatomy: Anatomy, sentence: str | None = None) -> dict[str, Any]:
    found = {
        "n_blocks": anatomy.n_blocks,
        "n_branches": anatomy.n_branches,
        "placement": anatomy.placement,
        "norm_kind": anatomy.norm_kind,
        "is_complete": anatomy.is_complete,
        "ledger_error": _value(anatomy.ledger_error),
    }
    return found if sentence is None else {"sentence": sentence, **found}


def _facts(rows: Rows) -> dict[str, str]:
    return dict(rows)


def _section(section: Section) -> dict[str, Any]:
    return {"key": section.key, "title": section.title, "charts": [_chart(chart) for chart in section.charts]}


def _chart(chart: Chart) -> dict[str, Any]:
    return {
        "key": chart.key,
        "title": chart.title,
        "reading": chart.reading,
        "absent": chart.absent or None,
        "table": _table(chart.table),
    }


def _table(frame: pd.DataFrame) -> dict[str, Any]:
    shown, note = excerpt(frame)
    return {
        "columns": [str(column) for column in shown.columns],
        "rows": [[_value(item) for item in row] for row in shown.itertuples(index=False, name=None)],
        "n_rows": len(frame),
        "note": note or None,
    }


def _value(value: object) -> object:
    """Return one cell: null for what is absent, a word for what is infinite, text of printable characters alone."""
    if value is None or value is pd.NA or value is pd.NaT or isinstance(value, bool):
        return value if isinstance(value, bool) else None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        found = float(value)
        return None if math.isnan(found) else found if math.isfinite(found) else f"{found:+}inity".replace("inf", "Inf")
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_value(item) for item in value]
    return plain(value)
