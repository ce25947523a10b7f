"""Show in a terminal what is installed, and say whether pictures of charts can be drawn."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .theme import plain

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
    "brave-browser",
)
_COLOURS = {"ok": "green", "absent": "dim", "slow": "yellow"}


def pictures() -> list[dict[str, str]]:
    """Return kaleido and the browser it needs, as rows: part, state, found, advice."""
    has_kaleido = find_spec("kaleido") is not None
    browser = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)
    return [
        {
            "part": "kaleido",
            "state": "ok" if has_kaleido else "absent",
            "found": version("kaleido") if has_kaleido else "not installed; optional",
            "advice": ""
            if has_kaleido
            else "pip install 'rheoscope[pictures]', if charts are wanted as SVG, PNG or PDF",
        },
        {
            "part": "browser",
            "state": "ok" if browser else "absent",
            "found": browser or "no Chrome or Chromium on PATH; only kaleido needs one, a report opens in any browser",
            "advice": ""
            if browser
            else "apt install chromium, or name one in BROWSER_PATH, if charts are wanted as pictures",
        },
    ]


def show_health(rows: Sequence[Mapping[str, str]], console: Console | None = None) -> None:
    """Print the parts as a table, and below it what to do."""
    console = console or Console(highlight=False)
    table = Table(box=SIMPLE)
    for name in ("part", "state", "found"):
        table.add_column(name, no_wrap=name != "found")
    for row in rows:
        state = Text(row["state"], style=_COLOURS.get(row["state"], ""))
        table.add_row(Text(plain(row["part"])), state, Text(plain(row["found"], 300)))
    console.print(table)
    for row in rows:
        if row["advice"]:
            console.print(Text(f"{plain(row['part'])}: {plain(row['advice'], 300)}"))
