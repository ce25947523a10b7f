"""``rheoscope demo``: two reports on real text, of a small GPT-2 and of four reference transformers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer


def demo(
    folder: Annotated[Path, typer.Option(help="Where the reports and the recordings are written.")] = Path(
        "rheoscope-demo"
    ),
) -> None:
    """Train a small GPT-2 under probes, compare norm placements and biases, and write a report of each.

    Everything is on this machine: the text is the standard library's own source, the weights are random. A new
    recording is made every time; earlier reports in the folder are replaced.
    """
    from rheoscope.diagnostics.diagnosis import diagnose
    from rheoscope.lab.experiments.first_run import N_STEPS, first_run
    from rheoscope.lab.experiments.norm_placement_and_biases import norm_placement_and_biases
    from rheoscope.probes.errors import ReportError
    from rheoscope.reports.report import write_report
    from rheoscope.reports.terminal import progress, show

    try:
        folder.mkdir(parents=True, exist_ok=True)
        recordings = Path(tempfile.mkdtemp(prefix="recordings-", dir=folder))
    except OSError as error:
        raise ReportError(
            f"Expected a folder that can be written, got {str(folder)!r} ({error.strerror or error}). Pass --folder."
        ) from error
    with progress() as shown:
        bar = shown.add_task("GPT-2 on real text", total=N_STEPS)
        run = first_run(recordings / "gpt2", on_step=lambda done: shown.update(bar, completed=done))
    diagnosis = diagnose(run)
    first = write_report(run, folder / "report.html", diagnosis)
    with progress() as shown:
        bar = shown.add_task("Norm placement and biases", total=None)
        comparison = norm_placement_and_biases(
            recordings,
            on_progress=lambda done, total, text: shown.update(bar, completed=done, total=total, description=text),
        )
    second = write_report(comparison, folder / "comparison.html")
    show(diagnosis)
    typer.echo(f"What norm placement and biases do: {second}")
    typer.echo(f"The run: {first}")
