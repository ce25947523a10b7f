"""``rheoscope compare``: write the comparison of several recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .report import STANDARD_OUTPUT, Format


def compare(
    recordings: Annotated[list[Path], typer.Argument(help="Folders of the recordings, two or more.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="The file to write, - for standard output.")
    ] = "comparison.html",
    form: Annotated[Format | None, typer.Option("--format", help="By default what the file's suffix says.")] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Folder of a good run of the same model: warn of what leaves its band, in every recording."),
    ] = None,
    chart: Annotated[
        str | None, typer.Option(help="Write one chart alone, by its anchor in the page: -o chart.svg, .png or .pdf.")
    ] = None,
) -> None:
    """Write one page that sets several recordings side by side; or the same as JSON, Markdown or text."""
    from rheoscope.diagnostics.comparison import compare as compare_recordings
    from rheoscope.probes.recording import Recording
    from rheoscope.reports.report import write_report

    found = {name: Recording.load(folder) for name, folder in _named(recordings).items()}
    comparison = compare_recordings(found, baseline=None if baseline is None else Recording.load(baseline))
    if chart is not None:
        from rheoscope.reports.image import write_chart

        typer.echo(f"Chart: {write_chart(comparison, chart, output)}")
        return
    written = write_report(comparison, output, form=form)
    if output != STANDARD_OUTPUT:
        typer.echo(f"Comparison: {written}")


def _named(folders: list[Path]) -> dict[str, Path]:
    """Return the folders by name, or by whole path where two share a name."""
    names = [folder.name for folder in folders]
    return {folder.name if names.count(folder.name) == 1 else str(folder): folder for folder in folders}
