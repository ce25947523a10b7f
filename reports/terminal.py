"""Show findings and progress in a terminal; every text from outside is stripped of control characters first."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rheoscope.diagnostics.diagnosis import Diagnosis
from rheoscope.diagnostics.finding import Finding
from rheoscope.diagnostics.study import AGREES, DIFFERS, Study
from rheoscope.diagnostics.suppression import Gate
from rheoscope.probes.anatomy import Anatomy
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from . import words
from .content import ComparisonContent, RunContent
from .details import details
from .grid import cell, excerpt
from .sketch import typical_block
from .study_content import StudyContent
from .text_sketch import rows, text_sketch
from .theme import plain

if TYPE_CHECKING:
    import pandas as pd

COLOURS = {"PASS": "bold green", "WARN": "bold yellow", "FAIL": "bold red"}
SEVERITY_COLOURS = {"error": "red", "warning": "yellow", "info": "dim"}
_CLAIM_COLOURS = {AGREES: "green", DIFFERS: "red"}
_WIDTH = 110  # of text that is written to a file


def as_text(content: RunContent | ComparisonContent | StudyContent) -> str:
    """Return what a report says as plain text: verdict, findings, anatomy or summary, what was not measured."""
    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, highlight=False, color_system=None, force_terminal=False)
    console.print(Text("Written by Rheoscope."), Text(content.title, style="bold"), Text(""), sep="\n")
    if isinstance(content, StudyContent):
        show_study(content.study, console)
        return _lines(out)
    if isinstance(content, ComparisonContent):
        _print_comparison(content, console)
    else:
        show(content.diagnosis, console)
        console.print(*(Text(f"{term}: {text}") for term, text in content.facts), Text(""), sep="\n")
        show_anatomy(content.recording.anatomy, console)
        _print_list("Not judged", content.diagnosis.not_judged, console)
    _print_list("Not measured", content.not_measured, console)
    return _lines(out)


def _lines(out: io.StringIO) -> str:
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _print_comparison(content: ComparisonContent, console: Console) -> None:
    console.print(*(Text(sentence) for sentence in content.leads), sep="\n")
    shown, _ = excerpt(content.summary)
    show_table(shown, console=console)
    for label, diagnosis in content.comparison.diagnoses.items():
        console.print(Text(plain(label), style="bold"))
        show(diagnosis, console)


def show_table(frame: pd.DataFrame, title: str = "", console: Console | None = None) -> None:
    """Print a frame as a table."""
    console = console or Console(highlight=False)
    table = Table(box=SIMPLE)
    for column in frame.columns:
        table.add_column(Text(plain(str(column))))
    for row in frame.itertuples(index=False, name=None):
        table.add_row(*(Text(cell(value)) for value in row))
    if title:
        console.print(Text(title, style="bold"))
    console.print(table)


def show_study(study: Study, console: Console | None = None) -> None:
    """Print an experiment: what was measured beside what is published, the variants, and what is not settled."""
    console = console or Console(highlight=False)
    console.print(Text(study.question, style="bold"), Text(study.sentence), Text(""), sep="\n")
    lines = Table.grid(padding=(0, 2))
    for claim in study.claims.itertuples():
        style = _CLAIM_COLOURS.get(str(claim.verdict), "dim")
        lines.add_row(Text(str(claim.verdict), style=style), Text(plain(f"{claim.what}: {claim.measured}", 400)))
        lines.add_row("", Text(plain(f"published: {claim.published} ({claim.source})", 400), style="dim"))
    console.print(lines, Text(""))
    show_table(study.variants, "Variants", console)
    for note in study.notes:
        console.print(Text(plain(note, 600)))
    if study.is_quick:
        console.print(Text("A quick run: small, few seeds and learning rates. Leave out --quick for the full size."))


def _print_list(title: str, sentences: Sequence[str], console: Console) -> None:
    if sentences:
        console.print(Text(""), Text(title, style="bold"), sep="\n")
        console.print(*(Text(f"- {plain(sentence, 600)}") for sentence in sentences), sep="\n")


def show(diagnosis: Diagnosis, console: Console | None = None, *, with_codes: bool = False) -> None:
    """Print the verdict and the findings, root cause first; with their codes where these are wanted for suppressions."""
    console = console or Console(highlight=False)
    head = Text(diagnosis.verdict, style=COLOURS[diagnosis.verdict])
    console.print(head.append(f"  {words.verdict_sentence(diagnosis)}", style="default"))
    lines = Table.grid(padding=(0, 2))
    for finding, item in zip(diagnosis, words.items(diagnosis), strict=True):
        lines.add_row(Text(item.kind, style=SEVERITY_COLOURS[item.severity]), Text(item.sentence))
        if with_codes:
            lines.add_row("", Text(place(finding), style="dim"))
        if item.remedy:
            lines.add_row("", Text(f"What to do: {item.remedy}", style="dim"))
    console.print(lines)


def show_gate(gate: Gate, console: Console | None = None) -> None:
    """Print what is left of a diagnosis, what was set aside and why, and entries that matched nothing."""
    console = console or Console(highlight=False)
    show(gate.diagnosis, console, with_codes=True)
    for note in gate.notes:
        console.print(Text(plain(note, 700), style="dim"))


def gate_text(gate: Gate) -> str:
    """Return the same as plain text."""
    out = io.StringIO()
    show_gate(gate, Console(file=out, width=_WIDTH, highlight=False, color_system=None, force_terminal=False))
    return _lines(out)


def place(finding: Finding) -> str:
    """Return code and place of a finding, as a suppression names them."""
    named = {"stack": finding.stack, "block": finding.block, "component": finding.component or None}
    return ", ".join([finding.code, *(f"{key} {plain(value)}" for key, value in named.items() if value is not None)])


def show_anatomy(anatomy: Anatomy, console: Console | None = None) -> None:
    """Print what discovery found: each stack as a table of its blocks and the sketch of one of them."""
    console = console or Console(highlight=False)
    console.print(Text(words.anatomy_sentence(anatomy)))
    for stack in anatomy.stacks:
        table = Table(box=SIMPLE)
        for name in ("blocks", "branch", "placement", "norms", "bias", "inside", "ledger"):
            table.add_column(name, no_wrap=name in ("blocks", "ledger"))
        for row in rows(stack):
            table.add_row(*(Text(cell) for cell in row))
        title = f"Stack {stack.index}: {stack.n_blocks} blocks, {stack.width} wide"
        console.print(Text(title, style="bold"), table, Text(text_sketch(typical_block(stack))), Text(""))
    for sentence in details(anatomy):
        console.print(Text(sentence))
    for note in anatomy.notes:
        console.print(Text(f"Note: {plain(note, 600)}"))
    for problem in anatomy.problems:
        console.print(Text(f"Not certain: {plain(problem, 600)}", style="yellow"))


def progress() -> Progress:
    """Return a progress display with one bar a task; where the output is no terminal it prints nothing but the end."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))
