"""Write one self-contained HTML report of a run, a check-up or a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rheoscope.diagnostics.comparison import Comparison
from rheoscope.diagnostics.diagnosis import Diagnosis, diagnose
from rheoscope.diagnostics.tables import Tables
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.errors import RecordingError, ReportError
from rheoscope.probes.recording import Recording

from . import words
from .compared import Compared
from .figures import COMPARISON_SECTIONS, RUN_SECTIONS
from .figures.chart import Chart
from .grid import grid
from .output import write_page
from .script import digest, plotly_script
from .sketch import describe, is_uniform, sketch, typical_block
from .theme import plain

N_LEADING = 3  # findings at the head of a run
LEADING_CHARTS = ("skip-transmission", "amplification", "bias-share")  # whose titles head a comparison


@dataclass(frozen=True)
class Section:
    """One section of the page, with its charts drawn."""

    key: str
    title: str
    intro: str
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Picture:
    """One drawing of a block."""

    title: str
    reading: str
    svg: Markup


def write_report(
    subject: Recording | Comparison, path: str | Path = "report.html", diagnosis: Diagnosis | None = None
) -> Path:
    """Write the report of a recording, or of a comparison, to one HTML file that opens without a network.

    Args:
        subject: what to show.
        path: of the file; an earlier report there is replaced, anything else is left alone.
        diagnosis: the verdict on a recording; judged here if it is not given.

    Returns:
        The absolute path of the file.

    Raises:
        ReportError: ``subject`` is neither, or the path cannot be written.
        RecordingError: a table cannot be read.
    """
    return write_page(render(subject, diagnosis), path)


def render(subject: Recording | Comparison, diagnosis: Diagnosis | None = None) -> str:
    """Return the page as text; the same for the same recording, to the byte.

    Raises:
        ReportError: ``subject`` is neither a recording nor a comparison.
    """
    if isinstance(subject, Comparison):
        return _page("comparison.html.j2", **_comparison(subject))
    if isinstance(subject, Recording):
        return _page("run.html.j2", **_run(subject, diagnose(subject) if diagnosis is None else diagnosis))
    raise ReportError(
        f"Expected a Recording or a Comparison, got {type(subject).__name__}. Pass probe.recording, or compare(...)."
    )


def _run(recording: Recording, diagnosis: Diagnosis) -> dict[str, Any]:
    tables = Tables(recording)
    found = words.items(diagnosis)
    frame = recording.anatomy.to_frame()
    label = plain(recording.manifest.get("label") or "") or "Stability report"
    return {
        "title": label,
        "sections": [
            Section(key, title, intro, [_drawn(chart, tables) for chart in charts])
            for key, title, intro, charts in RUN_SECTIONS
        ],
        "verdict": diagnosis.verdict,
        "verdict_sentence": words.verdict_sentence(diagnosis),
        "top": found[:N_LEADING],
        "findings": found,
        "facts": words.facts(recording),
        "anatomy_sentence": words.anatomy_sentence(recording.anatomy),
        "sketches": _pictures(recording.anatomy),
        "branches": frame.drop(columns=[c for c in ("stack",) if len(recording.anatomy.stacks) < 2]),
        "not_judged": [plain(sentence, 500) for sentence in diagnosis.not_judged],
        "not_measured": words.not_measured(recording),
        "events": list(words.events(recording)),
        "provenance": words.provenance(recording),
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    compared = Compared(comparison)
    sections = [
        Section(key, title, intro, [_drawn(chart, compared) for chart in charts])
        for key, title, intro, charts in COMPARISON_SECTIONS
    ]
    verdicts = comparison.diagnoses
    charts = {chart.key: chart for section in sections for chart in section.charts}
    hidden = [
        f"{plain(label)}: {sentence}"
        for label, recording in comparison.recordings.items()
        for sentence in words.not_measured(recording)
    ]
    return {
        "title": plain(comparison.title or "Comparison of " + ", ".join(comparison.labels), 200),
        "sections": sections,
        "leads": [f"{charts[key].title}." for key in LEADING_CHARTS if charts[key].figure is not None],
        "sketches": _variants(comparison),
        "summary": words.summary(compared.summary),
        "verdicts": [
            (plain(label), diagnosis.verdict, words.items(diagnosis, f"finding-{index}"))
            for index, (label, diagnosis) in enumerate(verdicts.items(), start=1)
        ],
        "not_measured": hidden,
        "provenance": [(plain(k), [*words.facts(r), *words.provenance(r)]) for k, r in comparison.recordings.items()],
    }


def _drawn(figure: Callable[[Any], Chart], subject: Any) -> Chart:
    """Return the chart with a title of printable text: branches and variants are named by others.

    One that cannot be drawn says so: a recording with tables that contradict each other still gets its other charts.
    """
    try:
        chart = figure(subject)
    except RecordingError:
        raise
    except Exception as error:  # noqa: BLE001 - the rest of the page is worth having
        name = figure.__name__.replace("_", " ")
        why = f"This could not be drawn from what is recorded ({type(error).__name__}: {str(error)[:200]})."
        return Chart(name.replace(" ", "-"), name.capitalize(), "", absent=plain(why, 400))
    return replace(chart, title=plain(chart.title, 400))


def _pictures(anatomy: Anatomy) -> list[Picture]:
    found = []
    for stack in anatomy.stacks:
        branches = typical_block(stack)
        title = (
            f"Stack {stack.index}: {stack.n_blocks} blocks" if len(anatomy.stacks) > 1 else f"{stack.n_blocks} blocks"
        )
        title += ", all like this one" if is_uniform(stack) else ", the commonest of them like this one"
        found.append(Picture(title, "; ".join(describe(branch) for branch in branches), sketch(branches)))
    return found


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


def _page(template: str, sections: list[Section], **context: Any) -> str:
    boot, plotly = _asset("boot.js"), plotly_script()
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
            definitions=words.DEFINITIONS,
            **context,
        )
    )


def _data(value: object) -> Markup:
    """Return JSON that cannot end the script element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), sort_keys=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


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


__all__ = ["render", "write_report"]
