"""Show in one screen whether a model may fly: each thing looked at beside what is expected, then the findings."""

from __future__ import annotations

from typing import Any

from rheoscope.diagnostics.preflight import Preflight
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import words
from .live import sparks
from .terminal import SEVERITY_COLOURS
from .theme import plain

COLOURS = {"GO": "bold green", "GO, WITH A LOOK AT": "bold yellow", "NO-GO": "bold red"}
MARKS = {"ok": "green", "look": "yellow", "stop": "red", "": "dim"}
MOST_FINDINGS = 5


def show_preflight(found: Preflight, console: Console | None = None) -> None:
    """Print the verdict, the lines and the findings that matter most."""
    console = console or Console(highlight=False)
    looks = [line.what for line in found.lines if line.mark in ("look", "stop")]
    head = Text(found.verdict, style=COLOURS[found.verdict])
    console.print(head.append(f"  {plain(', '.join(looks), 200)}", style="default") if looks else head)
    for note in found.notes:
        console.print(Text(plain(note, 300), style="dim"))
    table = Table(box=SIMPLE, show_header=False, show_edge=False, pad_edge=False, padding=(0, 1))
    for line in found.lines:
        measured = Text(plain(line.measured, 300))
        if line.profile:
            measured.append(f"  {sparks(line.profile)}", style="cyan")
        expected = Text(f"expected: {plain(line.expected, 200)}" if line.expected else "", style="dim")
        table.add_row(Text(line.mark, style=MARKS[line.mark]), Text(line.what), measured, expected)
    console.print(table)
    lines = Table.grid(padding=(0, 2))
    for item in [item for item in words.items(found.diagnosis) if item.severity != "info"][:MOST_FINDINGS]:
        lines.add_row(Text(item.kind, style=SEVERITY_COLOURS[item.severity]), Text(item.sentence))
        lines.add_row("", Text(f"What to do: {item.remedy}", style="dim"))
    console.print(lines)
    console.print(Text(f"Trained: {plain(found.setting, 200)}.", style="dim"))


def preflight_json(found: Preflight) -> dict[str, Any]:
    """Return the same as plain values."""
    cost = found.cost
    return {
        "verdict": found.verdict,
        "lines": [
            {"what": line.what, "measured": line.measured, "expected": line.expected, "mark": line.mark}
            for line in found.lines
        ],
        "findings": [finding.to_json() for finding in found.diagnosis],
        "seconds": {"plain": cost.seconds, "sampled": cost.sampled_seconds},
        "memory_bytes": {"plain": cost.memory, "sampled": cost.sampled_memory},
        "setting": found.setting,
        "notes": list(found.notes),
    }
