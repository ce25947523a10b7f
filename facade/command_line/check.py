"""``rheoscope check``: judge a recording and answer with an exit code."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class FailOn(StrEnum):
    """The severity from which on a finding fails the check."""

    warning = "warning"
    error = "error"


def check(
    recording: Annotated[Path, typer.Argument(help="Folder of the recording.")],
    fail_on: Annotated[FailOn, typer.Option(help="Lowest severity that fails the check.")] = FailOn.error,
    baseline: Annotated[
        Path | None, typer.Option(help="Folder of a good run of the same model: warn of what leaves its band.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Judge a recording: exit 0 when clean, 1 with a finding at or above --fail-on, 3 when it cannot be read."""
    from rheoscope.diagnostics.diagnosis import diagnose
    from rheoscope.diagnostics.finding import SEVERITIES
    from rheoscope.probes.recording import Recording
    from rheoscope.reports.terminal import show

    diagnosis = diagnose(Recording.load(recording), None if baseline is None else Recording.load(baseline))
    if json:
        typer.echo(diagnosis.to_json())
    else:
        show(diagnosis)
    worst = diagnosis.worst
    if worst is not None and SEVERITIES.index(worst) >= SEVERITIES.index(fail_on.value):
        raise typer.Exit(1)
