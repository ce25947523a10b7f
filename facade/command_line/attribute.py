"""``rheoscope attribute``: say which block, branch or sample of a model is responsible for its loss and gradients."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer


class What(StrEnum):
    """What may be asked."""

    usefulness = "usefulness"
    ledger = "ledger"
    gradient = "gradient"
    all = "all"


def attribute(
    target: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face config.json, its folder or a model type such as gpt2 (random weights, nothing is "
            "downloaded); or module:function that returns (model, batch), of a checkpoint for instance."
        ),
    ],
    what: Annotated[
        What,
        typer.Option(
            help="usefulness: which blocks matter; ledger: what each branch contributes; gradient: which samples it came from."
        ),
    ] = What.all,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the HTML report of a check-up with the attribution in it."),
    ] = None,
    blocks: Annotated[int | None, typer.Option(min=1, help="Build the config with so many blocks.")] = None,
) -> None:
    """Say which part of a model is responsible, with what the numbers do and do not say; the cost is told before it starts."""
    from rheoscope.lab.built import built
    from rheoscope.probes.attribution.knock_out import usefulness
    from rheoscope.probes.attribution.ledger import output_ledger
    from rheoscope.probes.attribution.shares import gradient_shares
    from rheoscope.probes.check_up import examine
    from rheoscope.probes.discovery.dissect import discover
    from rheoscope.probes.errors import ProbeError
    from rheoscope.reports.report import write_report
    from rheoscope.reports.terminal import progress

    model, batch = built(target, n_blocks=blocks)
    recording = None if output is None else examine(model, batch, label=f"{target}, attributed")
    anatomy = discover(model, batch) if recording is None else recording.anatomy
    asked = {What.usefulness: usefulness, What.ledger: output_ledger, What.gradient: gradient_shares}
    for name, ask in asked.items():
        if what not in (name, What.all):
            continue
        try:
            with progress() as shown:
                bar = shown.add_task(name.value, total=None)
                found = ask(
                    model,
                    batch,
                    anatomy=anatomy,
                    on_progress=partial(_show, shown, bar),
                )
        except ProbeError as error:
            # Of several questions the others are answered.
            if what != What.all:
                raise
            typer.echo(f"{name.value}: {error}")
            continue
        typer.echo(f"{name.value} ({found.cost}): {found}")
        recording = recording if recording is None else found.into(recording)
    if recording is not None and output is not None:
        typer.echo(f"Report: {write_report(recording, output)}")


def _show(shown: Any, bar: Any, done: int, total: int, text: str) -> None:
    shown.update(bar, completed=done, total=total, description=text)
