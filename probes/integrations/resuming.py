"""Say where a run that a trainer starts, or goes on with, is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rheoscope.probes.log import MANIFEST


def place(folder: Path, n_done: int) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a run and what ``attach`` must know of it.

    A trainer that goes on from a checkpoint behind ``n_done`` steps goes on with the recording of that run; one that begins anew
    writes beside a recording that is there.
    """
    if not (folder / MANIFEST).exists():
        return folder, {}
    if n_done:
        return folder, {"resume": n_done}
    number = 2
    while (folder.with_name(f"{folder.name}-{number}") / MANIFEST).exists():
        number += 1
    return folder.with_name(f"{folder.name}-{number}"), {}
