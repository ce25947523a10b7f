"""``rheoscope report``: write the report of a recording."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

STANDARD_OUTPUT = "-"
NAMES = {"html": "report.html", "json": "report.json", "markdown": "report.md", "text": STANDARD_OUTPUT}


class Format(StrEnum):
    """In what form a report is written."""

    html = "html"
    json = "json"
    markdown = "markdown"
    text = "text"


def report(
    recording: Annotated[Path, typer.Argument(help="Folder of the recording.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="The file to write, - for standard output; by default report.*."),
    ] = None,
    form: Annotated[Format | None, typer.Option("--format", help="By default what the file's suffix says.")] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Folder of a good run of the same model: warn of what leaves its band.")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Print the findings instead of writing a file.")] = False,
    chart: Annotated[
        str | None, typer.Option(help="Write one chart alone, by its anchor in the page: -o chart.svg, .png or .pdf.")
    ] = None,
) -> None:
    """Write the report of a recording. Needs neither torch nor the model nor a network."""
    from rheoscope.diagnostics.diagnosis import diagnose
    from rheoscope.probes.recording import Recording
    from rheoscope.reports.terminal import show

    found = Recording.load(recording)
    if chart is not None:
        from rheoscope.reports.image import write_chart

        typer.echo(f"Chart: {write_chart(found, chart, output or f'{chart}.svg')}")
        return
    diagnosis = diagnose(found, None if baseline is None else Recording.load(baseline))
    if text:
        show(diagnosis)
        return
    from rheoscope.reports.report import write_report

    path = output or NAMES[form or Format.html]
    if path != STANDARD_OUTPUT:
        show(diagnosis)
    written = write_report(found, path, diagnosis, form=form)
    if path != STANDARD_OUTPUT:
        typer.echo(f"Report: {written}")
