"""Tell of every new finding of a run, once: to a command of the user's, without a shell, or as a line of JSON."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rheoscope.probes.errors import RheoscopeError

if TYPE_CHECKING:
    from rheoscope.diagnostics.diagnosis import Diagnosis
    from rheoscope.diagnostics.finding import Finding

Tell = Callable[["Finding", Path], "list[str]"]  # returns what failed, in sentences
TIMEOUT = 60.0  # seconds that a command may take
MOST_TEXT = 2_000  # characters of one environment variable
VARIABLES = ("code", "severity", "stack", "block", "component", "module", "step", "sentence", "recording")


def place(finding: Finding) -> tuple[object, ...]:
    """Return by what a finding is known again: a step later its numbers differ."""
    return (finding.code, finding.severity, finding.stack, finding.block, finding.component, finding.module_path)


class Alarm:
    """What is told of findings at or above a severity, and those that it was told of."""

    def __init__(self, tell: Tell, fail_on: str) -> None:
        """Tell of findings from severity ``fail_on`` on."""
        self._tell, self._fail_on = tell, fail_on
        self._told: set[tuple[object, ...]] = set()

    def sound(self, diagnosis: Diagnosis, folder: Path) -> list[str]:
        """Tell of each finding at or above the limit that was not told of; return what failed, in sentences."""
        from rheoscope.diagnostics.finding import SEVERITIES

        failed = []
        for finding in diagnosis:
            is_high = SEVERITIES.index(finding.severity) >= [*SEVERITIES].index(self._fail_on)  # type: ignore[arg-type]
            if is_high and place(finding) not in self._told:
                self._told.add(place(finding))
                failed += self._tell(finding, folder)
        return failed


def by_command(command: str) -> Tell:
    """Return what starts ``command`` for a finding.

    It gets the finding as JSON on its standard input, and its parts as environment variables ``RHEOSCOPE_CODE``,
    ``RHEOSCOPE_SEVERITY``, ``_STACK``, ``_BLOCK``, ``_COMPONENT``, ``_MODULE``, ``_STEP``, ``_SENTENCE`` and ``_RECORDING``:
    names that a stranger chose never become part of a command line. The command is split as a shell would, without one.

    Raises:
        RheoscopeError: it is empty, its quotes do not match, or its program is not there.
    """
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise RheoscopeError(f"Expected a command, got {command!r} ({error}). Close its quotes.") from error
    if not arguments or shutil.which(arguments[0]) is None:
        raise RheoscopeError(
            f"Expected a program that can be started, got {command!r}. Give its path; put a shell's syntax into a script."
        )
    return lambda finding, folder: _started(arguments, finding, folder)


def as_line(finding: Finding, folder: Path) -> str:
    """Return a finding as one line of JSON."""
    return json.dumps({**finding.to_json(), "recording": str(folder)})


def _started(arguments: list[str], finding: Finding, folder: Path) -> list[str]:
    named = {**finding.to_json(), "module": finding.module_path, "recording": str(folder)}
    variables = {f"RHEOSCOPE_{name.upper()}": _plain(named[name]) for name in VARIABLES}
    environment = {**os.environ, **variables}
    try:
        done = subprocess.run(
            arguments, input=as_line(finding, folder), text=True, env=environment, timeout=TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"The command for {finding.code} failed: {str(error)[:200]}."]
    return [] if done.returncode == 0 else [f"The command for {finding.code} ended with {done.returncode}."]


def _plain(value: object) -> str:
    """Return a value as printable text, "" for None."""
    text = "" if value is None else str(value)[:MOST_TEXT]
    return "".join(c if c.isprintable() else " " for c in text)
