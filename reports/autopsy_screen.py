"""Show in a terminal what an autopsy found: what is ill since when, what drifted where, how the losses went."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from rheoscope.diagnostics.autopsy import Autopsy
from rheoscope.diagnostics.drift import WHOLE
from rheoscope.diagnostics.frames import records
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .live import sparks
from .terminal import COLOURS, SEVERITY_COLOURS
from .theme import number, plain

MOST_ROWS = 12
FROM = 1.1  # factors nearer to 1 are left out


def show_autopsy(found: Autopsy, console: Console | None = None) -> None:
    """Print the verdict of each checkpoint, findings since when, drift, and the log's losses."""
    console = console or Console(highlight=False)
    several = len(next(iter(found.recordings.values())).anatomy.stacks) > 1
    for note in found.notes:
        console.print(Text(plain(note, 300), style="dim"))
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False)
    for title in ("checkpoint", "step", "verdict", "loss on the batch"):
        table.add_column(title)
    for step, name in found.names.items():
        verdict = found.diagnoses[step].verdict
        loss = float(found.recordings[step].table("steps", columns=["loss"])["loss"].iloc[0])
        table.add_row(Text(plain(name)), f"{step:,}", Text(verdict, style=COLOURS[verdict]), number(loss))
    console.print(table)
    losses = [value for value in found.log["loss"].astype(float) if math.isfinite(value)]
    if losses:
        console.print(
            Text(
                f"Logged losses, {len(losses):,} steps, {number(losses[0])} to {number(losses[-1])}: {sparks(_thin(losses))}"
            )
        )
    _print_seen(found, console)
    _print_drift(found.drift, console, several=several)


def _thin(values: list[float]) -> list[float]:
    """Return at most 60 of them, evenly spread."""
    stride = max(1, len(values) // 60)
    return values[::-stride][::-1]


def _print_seen(found: Autopsy, console: Console) -> None:
    alone = [finding for finding in found.course if finding.severity != "info"]
    told = set(found.seen["code"])
    lines = Table.grid(padding=(0, 2))
    for row in records(found.seen):
        first, last = int(row["first_step"]), int(row["last_step"])
        since = f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"
        kind = Text(row["severity"], style=SEVERITY_COLOURS[row["severity"]])
        lines.add_row(kind, Text(since), Text(plain(row["sentence"], 600)))
    for finding in alone:
        if finding.code not in told:
            kind = Text(finding.severity, style=SEVERITY_COLOURS[finding.severity])
            lines.add_row(kind, Text("the course"), Text(plain(finding.sentence, 600)))
    console.print(Text("Found at checkpoints", style="bold"))
    console.print(lines if lines.row_count else Text("No warning and no error at any checkpoint.", style="dim"))


def _print_drift(drift: pd.DataFrame, console: Console, *, several: bool) -> None:
    rows = drift[drift["is_apart"] | (drift["ratio"] > FROM) | (drift["ratio"] < 1 / FROM)]
    console.print(Text("What drifted, first checkpoint to last", style="bold"))
    if not len(rows):
        console.print(Text("Nothing by more than a tenth.", style="dim"))
        return
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1))
    for title in ("quantity", "where", "first", "last", "factor", "siblings", "half of it by"):
        table.add_column(title)
    for row in records(rows.head(MOST_ROWS)):
        is_apart = bool(row["is_apart"])
        siblings = f"×{number(row['siblings'], 2)}" if is_apart else ""
        half = "" if pd.isna(row["half_at"]) else f"step {int(row['half_at']):,}"
        cells = (
            row["quantity"],
            _where(row, several=several),
            number(row["first"]),
            number(row["last"]),
            f"×{number(row['ratio'], 2)}",
        )
        table.add_row(*(Text(cell) for cell in (*cells, siblings, half)), style="yellow" if is_apart else "")
    console.print(table)
    if len(rows) > MOST_ROWS:
        console.print(Text(f"and {len(rows) - MOST_ROWS} more that changed by over a tenth", style="dim"))


def _where(row: dict[str, Any], *, several: bool) -> str:
    block, branch = int(row["block"]), str(row["branch"])
    if branch == "output":
        return branch
    place = "median block" if block == WHOLE else f"block {block}"
    return f"{place} {plain(branch)}".rstrip() + (f" in stack {int(row['stack'])}" if several else "")
