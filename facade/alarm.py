"""Start a command of the user's for every new finding of a run: no shell, nothing of the finding in its arguments."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from rheoscope.probes.errors import RheoscopeError

if TYPE_CHECKING:
    from rheoscope.diagnostics.diagnosis import Diagnosis
    from rheoscope.diagnostics.finding import Finding

TIMEOUT = 60.0  # seconds that a command may take
MOST_TEXT = 2_000  # characters of one environment variable


class Alarm:
    """The command, and the findings it was started for.

    It gets a finding as JSON on its standard input, and its parts as environment variables ``RHEOSCOPE_CODE``,
    ``RHEOSCOPE_SEVERITY``, ``_STACK``, ``_BLOCK``, ``_COMPONENT``, ``_MODULE``, ``_STEP``, ``_SENTENCE`` and ``_RECORDING``:
    names that a stranger chose never become part of a command line.
    """

    def __init__(self, command: str, fail_on: str) -> None:
        """Split the command as a shell would, without one.

        Raises:
            RheoscopeError: it is empty, its quotes do not match, or its program is not there.
        """
        try:
            self._arguments = shlex.split(command)
        except ValueError as error:
            raise RheoscopeError(f"Expected a command, got {command!r} ({error}). Close its quotes.") from error
        if not self._arguments or shutil.which(self._arguments[0]) is None:
            raise RheoscopeError(
                f"Expected a program that can be started, got {command!r}. Give its path; put a shell's syntax into a script."
            )
        self._fail_on = fail_on
        self._told: set[tuple[object, ...]] = set()

    def sound(self, diagnosis: Diagnosis, folder: Path) -> list[str]:
        """Start the command for each finding at or above the limit, once; return what failed, in sentences."""
        from rheoscope.diagnostics.finding import SEVERITIES

        failed = []
        for finding in diagnosis:
            place = (
                finding.code,
                finding.severity,
                finding.stack,
                finding.block,
                finding.component,
                finding.module_path,
            )
            is_high = SEVERITIES.index(finding.severity) >= [*SEVERITIES].index(self._fail_on)  # type: ignore[arg-type]
            if is_high and place not in self._told:
                self._told.add(place)
                failed += self._start(finding, folder)
        return failed

    def _start(self, finding: Finding, folder: Path) -> list[str]:
        value = {**finding.to_json(), "recording": str(folder)}
        named = {**value, "module": finding.module_path}
        names = ("code", "severity", "stack", "block", "component", "module", "step", "sentence", "recording")
        variables = {f"RHEOSCOPE_{name.upper()}": _plain(named[name]) for name in names}
        try:
            done = subprocess.run(
                self._arguments,
                input=json.dumps(value),
                text=True,
                env={**os.environ, **variables},
                timeout=TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return [f"The command for {finding.code} failed: {str(error)[:200]}."]
        return [] if done.returncode == 0 else [f"The command for {finding.code} ended with {done.returncode}."]


def _plain(value: object) -> str:
    """Return a value as printable text, "" for None."""
    text = "" if value is None else str(value)[:MOST_TEXT]
    return "".join(c if c.isprintable() else " " for c in text)
