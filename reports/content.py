"""Gather what a report says, before it is written as a page, as JSON, as Markdown or as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from rheoscope.diagnostics.block_values import block_values
from rheoscope.diagnostics.comparison import Comparison
from rheoscope.diagnostics.diagnosis import Diagnosis, diagnose
from rheoscope.diagnostics.opened import opened
from rheoscope.diagnostics.tables import Tables
from rheoscope.probes.errors import RecordingError, ReportError
from rheoscope.probes.recording import Recording

from . import words
from .compared import Compared
from .designs import with_designs
from .figures import COMPARISON_SECTIONS, RUN_SECTIONS, attribution
from .figures.chart import Chart
from .figures.outlook import outlook
from .figures.profile import steps_to_bring_up
from .theme import plain

LEADING_CHARTS = ("skip-transmission", "amplification", "bias-share")  # whose titles head a comparison
# Drawn of the verdict as well.
OUTLOOK = (("forecasts-made", "Forecasts", "", (outlook,)),)
ATTRIBUTION = (
    (
        "attribution",
        "Attribution",
        "Which part is responsible: for the loss, for its change by an update, for a gradient.",
        (attribution.usefulness, attribution.ledger, attribution.blame, attribution.shares),
    ),
)
Rows = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """One section of a report, with its charts drawn."""

    key: str
    title: str
    intro: str
    charts: Sequence[Chart]


@dataclass(frozen=True)
class RunContent:
    """What a report says of one run or check-up.

    Attributes:
        title: the recording's label.
        recording: what was measured.
        diagnosis: the verdict on it.
        facts: what was measured, on what.
        anatomy: what discovery found, in a sentence.
        blocks: a few numbers of every block at the last sampled step.
        sections: the charts, with the tables behind them.
        not_measured: what was not measured and why, in sentences.
        events: what happened during the run, in sentences.
        steps_note: which steps the page can bring up, in words; "" where all are drawn.
        provenance: with what, and how, the recording was made.
    """

    title: str
    recording: Recording
    diagnosis: Diagnosis
    facts: Rows
    anatomy: str
    blocks: pd.DataFrame
    sections: Sequence[Section]
    not_measured: Sequence[str]
    events: Sequence[str]
    steps_note: str
    provenance: Rows


@dataclass(frozen=True)
class ComparisonContent:
    """What a report says of several recordings.

    Attributes:
        title: what is compared.
        comparison: the recordings, with their verdicts.
        leads: the comparison's notes, and what the leading charts show, in sentences.
        summary: one row a variant.
        sections: the charts, with the tables behind them.
        not_measured: what was not measured in which recording, in sentences.
        provenance: label -> what was measured, with what and how.
    """

    title: str
    comparison: Comparison
    leads: Sequence[str]
    summary: pd.DataFrame
    sections: Sequence[Section]
    not_measured: Sequence[str]
    provenance: Sequence[tuple[str, Rows]]


def content(subject: Recording | Comparison, diagnosis: Diagnosis | None = None) -> RunContent | ComparisonContent:
    """Return what a report of ``subject`` says; ``diagnosis`` is judged here if it is not given.

    Raises:
        ReportError: ``subject`` is neither a recording nor a comparison.
        RecordingError: a table cannot be read.
    """
    if isinstance(subject, Comparison):
        return _comparison(subject)
    if isinstance(subject, Recording):
        tables = opened(subject)  # held, so that the verdict reads the same ones
        return _run(tables, diagnose(subject) if diagnosis is None else diagnosis)
    raise ReportError(
        f"Expected a Recording or a Comparison, got {type(subject).__name__}. Pass probe.recording, or compare(...)."
    )


def _run(tables: Tables, diagnosis: Diagnosis) -> RunContent:
    recording = tables.recording
    return RunContent(
        title=plain(recording.manifest.get("label") or "") or "Stability report",
        recording=recording,
        diagnosis=diagnosis,
        facts=words.facts(recording),
        anatomy=words.anatomy_sentence(recording.anatomy),
        blocks=block_values(tables),
        sections=[
            *_sections(RUN_SECTIONS, tables),
            *(_sections(ATTRIBUTION, tables, diagnosis) if len(tables.attributions) else ()),
            *_sections(OUTLOOK, tables, diagnosis),
        ],
        not_measured=words.not_measured(recording),
        events=list(words.events(recording)),
        steps_note=words.steps_note(len(steps_to_bring_up(tables)), recording),
        provenance=words.provenance(recording),
    )


def _comparison(comparison: Comparison) -> ComparisonContent:
    compared = Compared(comparison)
    sections = _sections(COMPARISON_SECTIONS, compared)
    charts = {chart.key: chart for section in sections for chart in section.charts}
    recordings = comparison.recordings.items()
    return ComparisonContent(
        title=plain(comparison.title or "Comparison of " + ", ".join(comparison.labels), 200),
        comparison=comparison,
        leads=[
            *(plain(note, 600) for note in comparison.notes),
            *(f"{charts[key].title}." for key in LEADING_CHARTS if charts[key].figure is not None),
        ],
        summary=words.summary(with_designs(compared)),
        sections=sections,
        not_measured=[f"{plain(label)}: {sentence}" for label, r in recordings for sentence in words.not_measured(r)],
        provenance=[(plain(label), [*words.facts(r), *words.provenance(r)]) for label, r in recordings],
    )


def _sections(
    sections: Sequence[tuple[str, str, str, Sequence[Callable[..., Chart]]]], *subjects: object
) -> list[Section]:
    return [
        Section(key, title, intro, [_drawn(chart, *subjects) for chart in charts])
        for key, title, intro, charts in sections
    ]


def _drawn(figure: Callable[..., Chart], *subjects: object) -> Chart:
    """Return the chart with a title of printable text: branches and variants are named by others.

    One that cannot be drawn says so: a recording with tables that contradict each other still gets its other charts.
    """
    try:
        chart = figure(*subjects)
    except RecordingError:
        raise
    except Exception as error:  # noqa: BLE001 - the rest of the page is worth having
        name = figure.__name__.replace("_", " ")
        why = f"This could not be drawn from what is recorded ({type(error).__name__}: {str(error)[:200]})."
        return Chart(name.replace(" ", "-"), name.capitalize(), "", absent=plain(why, 400))
    return replace(chart, title=plain(chart.title, 400))
