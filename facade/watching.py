"""Call a function of the user's for every new finding while a run trains: judged in a process of its own, from the log alone."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .alarm import place

if TYPE_CHECKING:
    from rheoscope.diagnostics.finding import Finding

logger = logging.getLogger("rheoscope")
PATIENCE = 60.0  # seconds for the last look at a run


@contextmanager
def watch(
    folder: str | Path,
    on_finding: Callable[[Finding], object],
    *,
    fail_on: Literal["warning", "error"] = "warning",
    every: float = 10.0,
) -> Iterator[None]:
    """Call ``on_finding`` with each new finding of the run that is recorded in ``folder``, while the block runs and at its end.

    Rules are asked in a process of its own, so that training shares neither memory nor interpreter with them; the function
    itself is called in a thread of this one. What it raises, and what fails in the other process, is logged and stops nothing.
    Enter it before ``attach``, so that it leaves after it and sees the closed run::

        with rs.watch("runs/a", tell), rs.attach(model, optimizer, folder="runs/a") as probe:
            ...

    Args:
        folder: of the recording; it may be made later. Of several ranks let the first one watch.
        on_finding: called once for a code and place.
        fail_on: lowest severity that is told.
        every: seconds between two looks.
    """
    told: set[tuple[object, ...]] = set()

    def hear(line: str) -> None:
        finding = _finding(line)
        if finding is not None and place(finding) not in told:
            told.add(place(finding))
            try:
                on_finding(finding)
            except Exception:
                logger.exception("on_finding failed")

    command = [sys.executable, "-m", "rheoscope", "watch", str(folder), "--json", "--fail-on", fail_on]
    child = _start([*command, "--every", str(every)])
    thread = threading.Thread(target=_read, args=(child, hear), daemon=True)
    thread.start()
    try:
        yield
    finally:
        if child is not None:
            child.terminate()
        thread.join(PATIENCE)
    # Only where the block ended by itself: whoever interrupts a run does not want to wait.
    if (Path(folder) / "manifest.json").is_file():
        last = _start([*command, "--once"])
        thread = threading.Thread(target=_read, args=(last, hear), daemon=True)
        thread.start()
        thread.join(PATIENCE)
        if last is not None and last.poll() is None:
            last.kill()
            logger.warning("The last look at %s took more than %.0f s and was given up.", folder, PATIENCE)


def _start(command: list[str]) -> subprocess.Popen[str] | None:
    pipe: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        return subprocess.Popen(command, text=True, errors="replace", **pipe)
    except OSError as error:
        logger.warning("The run is not watched: %s", error)
        return None


def _read(child: subprocess.Popen[str] | None, hear: Callable[[str], None]) -> None:
    if child is not None and child.stdout is not None:
        with child.stdout:
            for line in child.stdout:
                hear(line)
        child.wait()


def _finding(line: str) -> Finding | None:
    """Return the finding of a line; None, and a note in the log, of any other."""
    from rheoscope.diagnostics.finding import Finding

    try:
        return Finding.from_json(json.loads(line))
    except (ValueError, TypeError, KeyError):
        if line.strip():
            logger.warning("watching: %s", line.strip()[:300])
        return None
