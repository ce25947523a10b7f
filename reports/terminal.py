"""Show findings and progress in a terminal; every text from outside is stripped of control characters first."""

from __future__ import annotations

from rheoscope.diagnostics.diagnosis import Diagnosis
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from . import words

_COLOURS = {"PASS": "bold green", "WARN": "bold yellow", "FAIL": "bold red"}
_MARKS = {"error": ("error", "red"), "warning": ("warning", "yellow"), "info": ("remark", "dim")}


def show(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print the verdict and the findings, root cause first."""
    console = console or Console(highlight=False)
    head = Text(diagnosis.verdict, style=_COLOURS[diagnosis.verdict])
    console.print(head.append(f"  {words.verdict_sentence(diagnosis)}", style="default"))
    rows = Table.grid(padding=(0, 2))
    for item in words.items(diagnosis):
        mark, colour = _MARKS[item.severity]
        rows.add_row(Text(mark, style=colour), Text(item.sentence))
        if item.remedy:
            rows.add_row("", Text(f"What to do: {item.remedy}", style="dim"))
    console.print(rows)


def progress() -> Progress:
    """Return a progress display with one bar a task; where the output is no terminal it prints nothing but the end."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))
