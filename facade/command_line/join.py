"""``rheoscope join``: make one recording of those of a pipeline's stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def join(
    recording: Annotated[Path, typer.Argument(help="Folder that was given to attach, with the stages in it.")],
) -> None:
    """Join what the stages of a pipeline recorded, where the run could not do so itself when it closed."""
    from rheoscope.probes import stage_folders

    joined = stage_folders.join(recording)
    n = joined.manifest["stages"]
    typer.echo(f"{n} stages joined in {recording}: {joined.anatomy.n_blocks} blocks, {joined.n_rows('steps'):,} steps.")
    for note in joined.anatomy.notes[:3]:
        typer.echo(note)
