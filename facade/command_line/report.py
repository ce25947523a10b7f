"""``rheoscope report``: write the report of a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    recording: Annotated[Path, typer.Argument(help="Folder of the recording.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path("report.html"),
    text: Annotated[bool, typer.Option("--text", help="Print the findings instead of writing a file.")] = False,
) -> None:
    """Write the HTML report of a recording. Needs neither torch nor the model nor a network."""
    from rheoscope.diagnostics.diagnosis import diagnose
    from rheoscope.probes.recording import Recording
    from rheoscope.reports.terminal import show

    found = Recording.load(recording)
    diagnosis = diagnose(found)
    show(diagnosis)
    if not text:
        from rheoscope.reports.page import write_report

        typer.echo(f"Report: {write_report(found, output, diagnosis)}")
