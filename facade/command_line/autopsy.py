"""``rheoscope autopsy``: what went wrong in a run that had no probes, from its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .examine import TARGET


def autopsy(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Safetensors files, or folders of them; the last number in a name is its step.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help=TARGET)],
    batch: Annotated[
        Path | None, typer.Option(help="A safetensors file with the batch: tensors by the forward's keywords.")
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="Losses of the run: a CSV, trainer_state.json, JSONL, or TensorBoard's event files."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write one HTML report of all of them.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print findings and drift as JSON.")] = False,
) -> None:
    """Examine a series of checkpoints on one batch: what is ill since when, and what drifted where."""
    from json import dumps, loads

    from rheoscope.lab.autopsy import autopsy as examined
    from rheoscope.lab.built import build
    from rheoscope.lab.loss_log import read_log
    from rheoscope.lab.stored import read_batch
    from rheoscope.reports.autopsy_screen import show_autopsy
    from rheoscope.reports.terminal import progress

    built = build(model, batch=None if batch is None else read_batch(batch), reads_weights=False)
    with progress() as shown:
        bar = shown.add_task("checkpoints", total=len(checkpoints))
        found = examined(
            checkpoints,
            built.model,
            built.batch,
            built.loss_fn,
            log=None if log is None else read_log(log),
            notes=() if batch is not None else built.notes[1:],
            on_progress=lambda done, total, text: shown.update(bar, completed=done, total=total, description=text),
        )
    if json:
        values = {"seen": found.seen, "drift": found.drift}
        typer.echo(dumps({name: loads(frame.to_json(orient="records")) for name, frame in values.items()}, indent=1))
    else:
        show_autopsy(found)
    if output is not None:
        from rheoscope.reports.report import write_report

        typer.echo(f"Report: {write_report(found.series, output, found.course)}", err=json)
