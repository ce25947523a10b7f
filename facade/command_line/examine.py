"""``rheoscope examine``: check one model as it is, and print its anatomy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def examine(
    target: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face config.json, its folder or a model type such as gpt2 (random weights, nothing is "
            "downloaded); or module:function that returns (model, batch)."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the HTML report of the check-up.")
    ] = None,
    blocks: Annotated[int | None, typer.Option(min=1, help="Build the config with so many blocks.")] = None,
    anatomy_only: Annotated[bool, typer.Option("--anatomy", help="Print the anatomy alone: no backward.")] = False,
) -> None:
    """Find the residual stream of a model, prove it, and check one forward and backward."""
    from rheoscope.diagnostics.diagnosis import diagnose
    from rheoscope.lab.built import built
    from rheoscope.reports.terminal import show, show_anatomy

    model, batch = built(target, n_blocks=blocks)
    if anatomy_only:
        from rheoscope.probes.discovery.dissect import discover

        show_anatomy(discover(model, batch))
        return
    from rheoscope.probes.check_up import examine as examine_model

    recording = examine_model(model, batch, label=f"{target}, a check-up")
    show_anatomy(recording.anatomy)
    diagnosis = diagnose(recording)
    show(diagnosis)
    if output is not None:
        from rheoscope.reports.report import write_report

        typer.echo(f"Report: {write_report(recording, output, diagnosis)}")
