"""Join the recordings of a pipeline's stages, which stand in folders inside of the whole's, into one beside them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from .errors import RecordingError, RecordingExistsError
from .log import MANIFEST, Log
from .recording import Recording
from .schema import TABLES
from .stage_joining import Joint, spans
from .table_files import SCHEMAS

if TYPE_CHECKING:
    import pandas as pd

STAGES = "stages"


def stage_folder(folder: Path, index: int) -> Path:
    """Return where stage ``index`` of the pipeline that is recorded in ``folder`` writes."""
    return folder / STAGES / f"{index:04d}"


def join(folder: str | Path) -> Recording:
    """Join the stages that were recorded in ``folder`` into one recording, and write it there.

    Stage k+1 must have received what stage k sent: the last state of the one and the first of the other are compared, on every
    micro-batch of every sampled step. A join that was made before is replaced.

    Raises:
        RecordingError: a stage is missing or damaged, holds no single stack, or does not go on where the one before it ends.
        RecordingExistsError: the folder holds a recording that is not one of these stages.
    """
    folder = Path(folder)
    stages = _stages(folder)
    if (folder / MANIFEST).exists() and "stages" not in Recording.load(folder).manifest:
        raise RecordingExistsError(
            f"Expected stages that are to be joined in {str(folder)!r}, got a recording beside them that is none of theirs. "
            "Move it elsewhere."
        )
    joint = Joint(stages)
    partial = None
    try:
        # A new folder: one that is there may be a link to somewhere else.
        partial = Path(tempfile.mkdtemp(prefix="joining-", dir=folder))
        log = Log(partial)
        for name in TABLES:
            for frame in _frames(joint, name):
                table = pa.Table.from_pandas(frame, SCHEMAS[name], preserve_index=False)
                for batch in table.to_batches():
                    log.append(name, {column: batch.column(column) for column in batch.schema.names})
        log.close()
        log.write_manifest({**joint.manifest, "anatomy": joint.anatomy.to_json()})
        _replace(partial, folder)
    except OSError as error:
        raise RecordingError(
            f"Expected a folder that can be written, got {str(folder)!r} ({error}). Free space, then run rheoscope join."
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return Recording.load(folder)


def _stages(folder: Path) -> list[Recording]:
    """Return the recordings of all stages in their order."""
    found = sorted(path for path in (folder / STAGES).glob("[0-9]*") if (path / MANIFEST).exists())
    if not found:
        raise RecordingError(
            f"Expected the stages of a pipeline in {str(folder / STAGES)!r}, got none. Pass the folder that was given to attach."
        )
    stages = [Recording.load(path) for path in found]
    places: list[Any] = [each.manifest.get("stage") for each in stages]
    numbers = [place["number"] for place in places if isinstance(place, dict) and isinstance(place.get("number"), int)]
    expected = [stage_folder(folder, index).name for index in range(max(numbers, default=len(found)))]
    missing = sorted(set(expected) - {path.name for path in found})
    if missing:
        raise RecordingError(
            f"Expected {len(expected)} stages in {str(folder / STAGES)!r}, got {len(found)}: {', '.join(missing[:5])} missing. "
            "Copy them from the machines that wrote them, then run rheoscope join."
        )
    return stages


def _frames(joint: Joint, name: str) -> Iterator[pd.DataFrame]:
    """Yield the rows of a table some steps at a time, so that a long run needs no more memory than a short one."""
    if "step" not in TABLES[name]:
        yield joint.rows(name, None)
        return
    # Ranks are made of the activations where a stage is one process's.
    n_rows = sum(stage.n_rows("activations" if name == "ranks" else name) for stage in joint.stages)
    if n_rows:
        for steps in spans(joint.n_steps, n_rows):
            yield joint.rows(name, steps)


def _replace(partial: Path, folder: Path) -> None:
    """Move a recording into ``folder``, its manifest last: without one a folder holds no recording."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in TABLES:
        for ending in ("parquet", "summary.parquet"):
            (folder / f"{name}.{ending}").unlink(missing_ok=True)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == MANIFEST):
        path.replace(folder / path.name)
