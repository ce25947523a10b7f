"""``rheoscope bisect``: run the steps before a spike again, and say which change of them removes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bisect(
    recording: Annotated[
        Path,
        typer.Argument(
            help="Folder of a run that was recorded with attach(bundle=True), or of one of its spikes (spikes/step-N)."
        ),
    ],
    model: Annotated[
        str,
        typer.Argument(
            help="What builds the run's model: module:function that returns (model, batch), a Hugging Face config.json, its "
            "folder, or a model type such as gpt2."
        ),
    ],
    spike: Annotated[int | None, typer.Option(help="Step of the spike; by default the first.")] = None,
    blocks: Annotated[int | None, typer.Option(min=1, help="Build the config with so many blocks.")] = None,
) -> None:
    """Change one thing at a time in the steps before a spike: the smallest change that removes it is the cause named."""
    from rheoscope.lab.built import built
    from rheoscope.probes.errors import RecordingError
    from rheoscope.probes.spikes.bisection import bisect as bisected
    from rheoscope.probes.spikes.bundle import Bundle, bundles_in
    from rheoscope.reports.terminal import progress, show_table

    folders = [each for each in bundles_in(recording) if spike is None or each.name == f"step-{spike}"]
    if not folders:
        raise RecordingError(
            f"Expected the bundle of a spike in {recording}, got none"
            + (f" of step {spike}" if spike is not None else "")
            + ". Record the run with attach(bundle=True): bundles are written where the loss spikes."
        )
    made, _ = built(model, n_blocks=blocks)
    with progress() as shown:
        bar = shown.add_task("bisect", total=None)
        found = bisected(
            Bundle.load(folders[0]),
            made,
            on_progress=lambda done, total, text: shown.update(bar, completed=done, total=total, description=text),
        )
    if found.trials:
        show_table(found.to_frame(), "What was tried")
    typer.echo(found.sentence)
