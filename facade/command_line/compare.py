"""``rheoscope compare``: write the comparison of several recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    recordings: Annotated[list[Path], typer.Argument(help="Folders of the recordings, two or more.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path("comparison.html"),
) -> None:
    """Write one HTML page that sets several recordings side by side."""
    from rheoscope.diagnostics.comparison import compare as compare_recordings
    from rheoscope.probes.recording import Recording
    from rheoscope.reports.page import write_report

    found = {name: Recording.load(folder) for name, folder in _named(recordings).items()}
    typer.echo(f"Comparison: {write_report(compare_recordings(found), output)}")


def _named(folders: list[Path]) -> dict[str, Path]:
    """Return the folders by name, or by whole path where two share a name."""
    names = [folder.name for folder in folders]
    return {folder.name if names.count(folder.name) == 1 else str(folder): folder for folder in folders}
