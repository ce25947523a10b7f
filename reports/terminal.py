"""Show findings and progress in a terminal; every text from outside is stripped of control characters first."""

from __future__ import annotations

from rheoscope.diagnostics.diagnosis import Diagnosis
from rheoscope.probes.anatomy import Anatomy
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from . import words
from .details import details
from .sketch import typical_block
from .text_sketch import rows, text_sketch
from .theme import plain

_COLOURS = {"PASS": "bold green", "WARN": "bold yellow", "FAIL": "bold red"}
_MARKS = {"error": ("error", "red"), "warning": ("warning", "yellow"), "info": ("remark", "dim")}


def show(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print the verdict and the findings, root cause first."""
    console = console or Console(highlight=False)
    head = Text(diagnosis.verdict, style=_COLOURS[diagnosis.verdict])
    console.print(head.append(f"  {words.verdict_sentence(diagnosis)}", style="default"))
    lines = Table.grid(padding=(0, 2))
    for item in words.items(diagnosis):
        mark, colour = _MARKS[item.severity]
        lines.add_row(Text(mark, style=colour), Text(item.sentence))
        if item.remedy:
            lines.add_row("", Text(f"What to do: {item.remedy}", style="dim"))
    console.print(lines)


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
