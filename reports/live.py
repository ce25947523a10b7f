"""Show a run in a terminal while it goes on: where it stands, its depth profile, its findings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
from rheoscope.diagnostics.diagnosis import Diagnosis
from rheoscope.diagnostics.latest import Latest
from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from . import words
from .terminal import COLOURS, SEVERITY_COLOURS
from .theme import number, plain

Update = Callable[[RenderableType], None]
MOST_BLOCKS, MOST_FINDINGS = 16, 6
BAR, SPARKS, MOST_SPARKS = 4, "▁▂▃▄▅▆▇█", 60
LEAST_SPAN = math.log(2)
# Title, whether bars are drawn and whether the change is told: what fits into 80 columns.
COLUMNS = {
    "state_rms": ("state RMS", True, True),
    "gradient_rms": ("gradient RMS", True, True),
    "update_ratio": ("update/weight", True, False),
    "logit_max": ("max logit", False, True),
}


@contextmanager
def live() -> Iterator[Update]:
    """Yield what redraws the view in place; where the output is no terminal each view is printed below the last."""
    console = Console(highlight=False)
    if not console.is_terminal:
        yield console.print
        return
    with Live(console=console, auto_refresh=False) as drawn:
        yield lambda found: drawn.update(found, refresh=True)


def print_view(found: RenderableType) -> None:
    """Print one view."""
    Console(highlight=False).print(found)


def waiting(folder: str, *, has_stages: bool) -> RenderableType:
    """Return what is shown before the run has written anything."""
    more = (
        " Stages of a pipeline are joined when it closes: watch one of those in its folder stages."
        if has_stages
        else ""
    )
    return Text(f"Waiting for the first steps in {plain(folder, 300)}.{more}", style="dim")


def view(latest: Latest, diagnosis: Diagnosis) -> RenderableType:
    """Return where the run stands, the blocks of the last sampled step, and the findings that matter most."""
    state = "closed" if latest.is_closed else "open"
    head = Text(diagnosis.verdict, style=COLOURS[diagnosis.verdict])
    head.append(f"  {plain(latest.label) or 'Recording'}, {state}, step {latest.step:,}", style="default")
    losses = [loss for loss in latest.losses if math.isfinite(loss)]
    said = [f"loss {number(latest.losses[-1])}" if latest.losses else "no loss yet"]
    said += [f"gradient norm {number(latest.gradient_norm)}"] if math.isfinite(latest.gradient_norm) else []
    said += [f"{number(latest.seconds)} s a step"] if math.isfinite(latest.seconds) else []
    lines: list[RenderableType] = [head, Text(f"{', '.join(said)}  {sparks(losses)}")]
    if len(latest.profile):
        lines.append(_profile(latest))
    lines.append(_findings(diagnosis))
    return Group(*lines)


def sparks(values: Sequence[float]) -> str:
    """Return the last values as a line of bars, the least the lowest."""
    shown = np.asarray(values[-MOST_SPARKS:], dtype=float)
    if len(shown) < 2:
        return ""
    low, high = float(shown.min()), float(shown.max())
    heights = (shown - low) / (high - low) if high > low else np.zeros(len(shown))
    return "".join(SPARKS[int(height * (len(SPARKS) - 1))] for height in heights)


def _profile(latest: Latest) -> Table:
    rows = latest.profile
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_BLOCKS)).round().astype(int))
    several = rows["stack"].nunique() > 1
    table = Table(
        box=SIMPLE,
        padding=(0, 1),
        show_edge=False,
        pad_edge=False,
        title=f"Step {latest.sampled_step:,}"
        + (f", {len(chosen)} of {len(rows)} blocks" if len(chosen) < len(rows) else ""),
        title_justify="left",
        caption="× is the change since the first sampled step; bars are logarithmic" if latest.step > 0 else None,
        caption_justify="left",
    )
    table.add_column("block", no_wrap=True)
    for title, _, _ in COLUMNS.values():
        table.add_column(title, no_wrap=True)
    spans = {name: _span(rows[name]) for name in COLUMNS}
    for row in rows.iloc[chosen].to_dict("records"):
        place = f"{int(row['stack'])}.{int(row['block'])}" if several else f"{int(row['block'])}"
        cells = [_cell(float(row[name]), float(row[f"first_{name}"]), spans[name], name) for name in COLUMNS]
        table.add_row(place, *cells)
    return table


def _cell(value: float, first: float, span: tuple[float, float], name: str) -> Text:
    if not math.isfinite(value):
        return Text("-", style="dim")
    _, has_bar, tells_change = COLUMNS[name]
    low, high = span
    share = (math.log(value) - low) / (high - low) if value > 0 and high > low else 0.0
    text = Text()
    if has_bar:
        text.append("█" * round(share * BAR) + "·" * (BAR - round(share * BAR)) + " ", style="cyan")
    text.append(f"{_short(value):<7}")
    if tells_change and math.isfinite(first) and first > 0 and value > 0:
        text.append(f"×{_short(value / first)}", style="dim")
    return text


def _short(value: float) -> str:
    """Return two digits in as few characters as they need: 0.019, 2.3, 1.6e3, 1.1e-6."""
    text = f"{value:.2g}" if 1e-3 <= abs(value) < 100 or value == 0 else f"{value:.1e}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


def _span(values: pd.Series) -> tuple[float, float]:
    """Return the ends of the bars, in logarithms: those of the values, a factor of two apart at least."""
    known = values.to_numpy(float)
    known = np.log(known[np.isfinite(known) & (known > 0)])
    if not len(known):
        return 0.0, 0.0
    low, high = float(known.min()), float(known.max())
    missing = max(0.0, LEAST_SPAN - (high - low)) / 2
    return low - missing, high + missing


def _findings(diagnosis: Diagnosis) -> Table:
    lines = Table.grid(padding=(0, 2))
    found = [item for item in words.items(diagnosis) if item.severity != "info"]
    for item in found[:MOST_FINDINGS]:
        lines.add_row(Text(item.kind, style=SEVERITY_COLOURS[item.severity]), Text(item.sentence))
        lines.add_row("", Text(f"What to do: {item.remedy}", style="dim"))
    if len(found) > MOST_FINDINGS:
        lines.add_row("", Text(f"and {len(found) - MOST_FINDINGS} more"))
    if not found:
        lines.add_row(Text(words.verdict_sentence(diagnosis), style="dim"))
    return lines
