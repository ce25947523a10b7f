"""Render one self-contained HTML page of a run, a check-up or a comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rheoscope.diagnostics.comparison import Comparison
from rheoscope.diagnostics.finding import Finding
from rheoscope.diagnostics.frames import records
from rheoscope.diagnostics.study import AGREES, DIFFERS
from rheoscope.probes.anatomy import Anatomy

from . import words
from .content import ComparisonContent, RunContent, Section
from .grid import grid
from .script import digest, packed, plotly_script
from .sketch import describe, is_uniform, sketch, typical_block
from .strip import left_out, strip
from .study_content import DEFINITIONS, StudyContent
from .theme import counted, plain

N_LEADING = 3  # findings at the head of a run, ill variants at the head of a comparison
SCRIPTS = ("places.js", "charts.js", "controls.js", "boot.js")  # one script of the page, in this order
MOST_FINDINGS = 200  # that one list of the page holds: a fault of a thousand blocks is told by the first of them


@dataclass(frozen=True)
class Picture:
    """One drawing of a block."""

    title: str
    reading: str
    svg: Markup


def page(content: RunContent | ComparisonContent | StudyContent) -> str:
    """Return the page as text; the same for the same recording, to the byte."""
    if isinstance(content, StudyContent):
        sections = [Section("curves", "Curves", "", content.charts)] if content.charts else []
        return _page("study.html.j2", sections, **_study(content))
    if isinstance(content, ComparisonContent):
        return _page("comparison.html.j2", content.sections, **_comparison(content))
    return _page("run.html.j2", content.sections, **_run(content))


def _run(content: RunContent) -> dict[str, Any]:
    found, anatomy = words.items(content.diagnosis), content.recording.anatomy
    return {
        "title": content.title,
        "verdict": content.diagnosis.verdict,
        "verdict_sentence": words.verdict_sentence(content.diagnosis),
        "top": [replace(item, anchor=f"leading-{index}") for index, item in enumerate(found[:N_LEADING], start=1)],
        "findings": found[:MOST_FINDINGS],
        "n_more": max(0, len(found) - MOST_FINDINGS),
        "facts": content.facts,
        "anatomy_sentence": content.anatomy,
        "sketches": _pictures(anatomy),
        "strips": _strips(content.blocks, n_stacks=len(anatomy.stacks)),
        "branches": anatomy.to_frame().drop(columns=[c for c in ("stack",) if len(anatomy.stacks) < 2]),
        "not_judged": [plain(sentence, 500) for sentence in content.diagnosis.not_judged],
        "not_measured": content.not_measured,
        "events": content.events,
        "provenance": content.provenance,
        "blocks": [stack.n_blocks for stack in anatomy.stacks],
        "steps_note": content.steps_note,
    }


def _study(content: StudyContent) -> dict[str, Any]:
    marks = {AGREES: "", DIFFERS: "error"}
    return {
        "title": content.title,
        "sentence": content.study.sentence,
        "is_quick": content.study.is_quick,
        "claims": [
            {name: plain(value, 400) for name, value in row.items()} | {"mark": marks.get(row["verdict"], "warning")}
            for row in records(content.study.claims)
        ],
        "variants": content.study.variants,
        "notes": content.notes,
        "setting": [(plain(term), plain(text, 400)) for term, text in content.study.setting],
        "blocks": [],
        "steps_note": "",
        "definitions": DEFINITIONS,
    }


def _comparison(content: ComparisonContent) -> dict[str, Any]:
    return {
        "title": content.title,
        "ill": _ill(content.comparison),
        "n_variants": len(content.comparison.labels),
        "leads": content.leads,
        "sketches": _variants(content.comparison),
        "summary": content.summary,
        "verdicts": [
            (plain(label), diagnosis.verdict, words.items(diagnosis, f"finding-{index}")[:MOST_FINDINGS])
            for index, (label, diagnosis) in enumerate(content.comparison.diagnoses.items(), start=1)
        ],
        "not_measured": content.not_measured,
        "provenance": content.provenance,
        "blocks": [max(r.anatomy.n_blocks for r in content.comparison.recordings.values())],
        "steps_note": "",
    }


def _pictures(anatomy: Anatomy) -> list[Picture]:
    found = []
    for stack in anatomy.stacks:
        branches = typical_block(stack)
        title = counted(stack.n_blocks, "block")
        if len(anatomy.stacks) > 1:
            title = f"Stack {stack.index}: {title}"
        if stack.n_blocks > 1:
            title += ", all like this one" if is_uniform(stack) else ", the commonest of them like this one"
        found.append(Picture(title, "; ".join(describe(branch) for branch in branches), sketch(branches)))
    return found


def _strips(blocks: pd.DataFrame, *, n_stacks: int) -> list[Picture]:
    """Return one coloured column of blocks a stack."""
    return [
        Picture(
            "Its blocks as measured" if n_stacks == 1 else f"Stack {stack}: its blocks as measured", left_out(rows),
            strip(rows, n_stacks=n_stacks),
        )
        for stack, rows in blocks.groupby("stack")
    ]  # fmt: skip


def _ill(comparison: Comparison) -> list[tuple[str, str, words.Item]]:
    """Return label, verdict and leading finding of the variants that do not pass, the worst first."""
    ill = [(label, diagnosis) for label, diagnosis in comparison.diagnoses.items() if diagnosis.verdict != "PASS"]
    ill.sort(key=lambda pair: pair[1].verdict != "FAIL")
    return [(_placed(label, diagnosis[0]), diagnosis.verdict, words.items(diagnosis)[0]) for label, diagnosis in ill]


def _placed(label: str, finding: Finding) -> str:
    """Return the label, with the block where the finding's sentence does not name it."""
    name = f"block {finding.block}"
    hidden = finding.block is not None and name not in finding.sentence.lower()
    return plain(label, 60) + (f", {name}" if hidden else "")


def _variants(comparison: Comparison) -> list[Picture]:
    """Return one drawing a distinct block."""
    found: dict[str, Picture] = {}
    for label in comparison.labels:
        for stack in comparison.recordings[label].anatomy.stacks:
            branches = typical_block(stack)
            svg = sketch(branches)
            reading = "; ".join(describe(branch) for branch in branches)
            found.setdefault(str(svg), Picture(plain(comparison.variant(label)), reading, svg))
    return list(found.values())


def _page(template: str, sections: Sequence[Section], **context: Any) -> str:
    boot, plotly = "".join(map(_asset, SCRIPTS)), plotly_script()
    charts = {chart.key: chart.figure for section in sections for chart in section.charts if chart.figure is not None}
    policy = (
        f"default-src 'none'; script-src '{plotly.digest}' '{digest(boot)}'; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template(template)
        .render(
            sections=sections,
            policy=Markup(policy),
            style=Markup(_asset("style.css")),
            boot=Markup(boot),
            packed=Markup(plotly.packed),
            figures=_data({key: json.loads(figure.to_json()) for key, figure in charts.items()}),
            **{"definitions": words.DEFINITIONS, **context},
        )
    )


def _data(value: object) -> Markup:
    """Return JSON, packed."""
    return Markup(packed(json.dumps(value, allow_nan=False, separators=(",", ":"), sort_keys=True), level=6))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("rheoscope.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["grid"] = grid
    return environment


@cache
def _asset(name: str) -> str:
    return files("rheoscope.reports").joinpath("templates", name).read_text(encoding="utf-8")
