"""``rheoscope examine``: check one model as it is, and print its anatomy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TARGET = (
    "A Hugging Face folder (its safetensors weights, real text by its tokenizer), a config.json or a model type such as gpt2 "
    "(random weights); or module:function that returns (model, batch). Nothing is downloaded or unpickled."
)


def examine(
    target: Annotated[str, typer.Argument(help=TARGET)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the HTML report of the check-up.")
    ] = None,
    blocks: Annotated[int | None, typer.Option(min=1, help="Build the config with so many blocks.")] = None,
    batch: Annotated[
        Path | None, typer.Option(help="A safetensors file with the batch: tensors by the forward's keywords.")
    ] = None,
    anatomy_only: Annotated[bool, typer.Option("--anatomy", help="Print the anatomy alone: no backward.")] = False,
) -> None:
    """Find the residual stream of a model, prove it, and check one forward and backward."""
    from rheoscope.diagnostics.diagnosis import diagnose
    from rheoscope.diagnostics.suppression import Suppression, gate
    from rheoscope.lab.built import build
    from rheoscope.lab.stored import read_batch
    from rheoscope.reports.terminal import show, show_anatomy

    found = build(target, n_blocks=blocks, batch=None if batch is None else read_batch(batch))
    for note in found.notes:
        typer.echo(note)
    if anatomy_only:
        from rheoscope.probes.discovery.dissect import discover

        show_anatomy(discover(found.model, found.batch))
        return
    from rheoscope.probes.check_up import examine as examine_model

    recording = examine_model(found.model, found.batch, found.loss_fn, label=f"{target}, a check-up")
    show_anatomy(recording.anatomy)
    known = [Suppression("worse-than-guessing", "the tokens are random")] if found.is_guessing else []
    diagnosis = gate(diagnose(recording), known).diagnosis
    show(diagnosis)
    if output is not None:
        from rheoscope.reports.report import write_report

        typer.echo(f"Report: {write_report(recording, output, diagnosis)}")
