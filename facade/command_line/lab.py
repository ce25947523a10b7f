"""``rheoscope lab``: answer questions about design choices by controlled experiments, beside the published results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def lab(
    name: Annotated[str, typer.Argument(help="Name of an experiment, or list.")] = "list",
    quick: Annotated[bool, typer.Option("--quick", help="A smaller size, two seeds, fewer learning rates.")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Where runs are kept, and gone on with; by default lab-runs/NAME.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds; two with --quick.")] = 3,
) -> None:
    """Carry out one experiment, or list them; every architecture is judged at its own best learning rate."""
    if name == "list":
        _list()
        return
    from rheoscope.lab.experiment import Setting
    from rheoscope.lab.experiments import experiment
    from rheoscope.reports.terminal import progress, show_claims, show_table

    chosen = experiment(name)
    size = "quick" if quick else "full"
    place = folder or Path("lab-runs") / f"{name}-{size}"
    with progress() as shown:
        bar = shown.add_task(name, total=None)
        setting = Setting(
            place,
            is_quick=quick,
            seeds=tuple(range(min(seeds, 2) if quick else seeds)),
            on_progress=lambda done, total, text: shown.update(bar, completed=done, total=total, description=text),
        )
        result = chosen.carry_out(setting)
    typer.echo(f"{chosen.question}\n")
    show_claims(result.claims_frame())
    typer.echo("")
    show_table(result.shown_variants(), "Variants")
    for note in result.notes:
        typer.echo(note)
    if quick:
        typer.echo("A quick run: small, two seeds, few learning rates. Leave out --quick for the full size.")


def _list() -> None:
    import pandas as pd
    from rheoscope.lab.experiments import NAMES, experiment
    from rheoscope.reports.terminal import show_table

    rows = [experiment(name) for name in NAMES]
    frame = pd.DataFrame(
        [
            (each.name, each.question, each.source, f"{each.minutes[0]:g} min, {each.minutes[1]:g} quick")
            for each in rows
        ],
        columns=["experiment", "question", "source", "time on 2 cores"],
    )
    show_table(frame, "Experiments")
