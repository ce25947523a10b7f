"""``rheoscope preflight``: go or no-go in the first minute, before a long run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .examine import TARGET


def preflight(
    target: Annotated[
        str, typer.Argument(help=f"{TARGET} The function may return an optimizer and a loss_fn(output, batch) as well.")
    ],
    lr: Annotated[
        float, typer.Option(min=0.0, help="Learning rate of AdamW, where the target brings no optimizer.")
    ] = 1e-3,
    steps: Annotated[int, typer.Option(min=3, help="First steps, every one sampled in full.")] = 10,
    blocks: Annotated[int | None, typer.Option(min=1, help="Build the config with so many blocks.")] = None,
    batch: Annotated[
        Path | None, typer.Option(help="A safetensors file with the batch: tensors by the forward's keywords.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the HTML report of the check-up.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say go or no-go: anatomy, initial loss, bf16, first updates, findings, and what a step costs with and without probes.

    Exits 1 on NO-GO. The model is trained for a few steps, on one batch, in this process alone.
    """
    from json import dumps

    from rheoscope.lab.built import build
    from rheoscope.lab.preflight import preflight as looked_at
    from rheoscope.lab.stored import read_batch
    from rheoscope.reports.preflight_screen import preflight_json, show_preflight
    from rheoscope.reports.terminal import progress

    built = build(target, n_blocks=blocks, batch=None if batch is None else read_batch(batch))
    with progress() as shown:
        bar = shown.add_task(target, total=None)
        found = looked_at(
            built.model,
            built.batch,
            built.optimizer,
            built.loss_fn,
            lr=lr,
            n_steps=steps,
            label=target,
            notes=built.notes,
            on_progress=lambda text: shown.update(bar, description=text),
        )
    if json:
        typer.echo(dumps(preflight_json(found), indent=1, allow_nan=False))
    else:
        show_preflight(found)
    if output is not None:
        from rheoscope.reports.report import write_report

        typer.echo(f"Report: {write_report(found.check_up, output, found.diagnosis)}", err=json)
    if found.verdict == "NO-GO":
        raise typer.Exit(1)
