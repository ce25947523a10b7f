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
    suppress: Annotated[
        Path | None,
        typer.Option(help="TOML file of known findings, each with a reason; by default rheoscope.toml, if it is here."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Judge a recording: exit 0 when clean, 1 with a finding at or above --fail-on, 3 when it cannot be read.

    A known finding is set aside by an entry of the TOML file, and still shown as suppressed.
    """
    from json import dumps

    from rheoscope.diagnostics.diagnosis import diagnose
    from rheoscope.diagnostics.suppression import FILE, gate, read_suppressions
    from rheoscope.probes.recording import Recording
    from rheoscope.reports.terminal import show_gate

    path = suppress or (Path(FILE) if Path(FILE).is_file() else None)
    known = () if path is None else read_suppressions(path)
    diagnosis = diagnose(Recording.load(recording), None if baseline is None else Recording.load(baseline))
    gated = gate(diagnosis, known)
    if json:
        typer.echo(dumps(gated.to_json(), indent=1, allow_nan=False))
    else:
        show_gate(gated)
    if gated.fails(fail_on.value):
        raise typer.Exit(1)
