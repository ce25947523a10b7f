"""Hold what was measured: a manifest and tidy tables, in a folder or in memory. Nothing here imports torch.

Reading executes nothing from the folder: JSON, Arrow and Parquet with a fixed schema; no pickle, no torch.load.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from .anatomy import Anatomy
from .errors import RecordingError, RecordingExistsError
from .log import MANIFEST, MANIFEST_LIMIT, SCHEMAS, Log, read_batches
from .schema import FORMAT, MOST_TEXT, TABLES

if TYPE_CHECKING:
    import pandas as pd


class Recording:
    """What one run or one check-up measured.

    Attributes:
        manifest: format number, versions, model, schedule, provenance, what was not measured.
        anatomy: what discovery found.
        folder: where it lives; None in memory.
    """

    def __init__(
        self, manifest: Mapping[str, Any], anatomy: Anatomy, tables: Mapping[str, Any], folder: Path | None = None
    ) -> None:
        """Wrap Arrow ``tables`` or a ``folder``; use ``load`` or ``from_tables``."""
        self.manifest = dict(manifest)
        self.anatomy = anatomy
        self.folder = folder
        self._tables = dict(tables)

    @classmethod
    def load(cls, folder: str | Path) -> Recording:
        """Open the recording in ``folder``; tables are read when asked for.

        Raises:
            RecordingError: there is none, or it is damaged or of a newer format.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise RecordingError(
                f"Expected a folder with a recording, got {str(folder)!r}, which has no {MANIFEST}. "
                "Pass the folder that was given to attach."
            )
        if path.stat().st_size > MANIFEST_LIMIT:
            raise RecordingError(
                f"Expected a manifest of at most {MANIFEST_LIMIT} bytes, got {path.stat().st_size}. "
                "This is no manifest that Rheoscope wrote."
            )
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise RecordingError(
                f"Expected JSON in {str(path)!r}, got {str(error)[:200]}. Restore the file from a copy."
            ) from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
            raise RecordingError(
                f"Expected recording format {FORMAT}, got {found!r:.80}. Read it with the version that wrote it."
            )
        label = manifest.setdefault("label", "")
        if not isinstance(label, str) or len(label) > MOST_TEXT:
            raise RecordingError(
                f"Expected a label of at most {MOST_TEXT} characters in {str(path)!r}, got {label!r:.80}. "
                "Rheoscope did not write this file; do not trust it."
            )
        try:
            anatomy = Anatomy.from_json(manifest.pop("anatomy", {}))
        except OverflowError as error:
            raise RecordingError(
                f"Expected finite numbers in the anatomy of {str(path)!r}, got {error}. Restore the file from a copy."
            ) from error
        return cls(manifest, anatomy, {}, folder)

    @classmethod
    def from_tables(
        cls, manifest: Mapping[str, Any], anatomy: Anatomy, tables: Mapping[str, pd.DataFrame]
    ) -> Recording:
        """Make a recording of frames; columns that are missing become null.

        Raises:
            RecordingError: a table or a column is unknown.
        """
        arrow = {}
        for name, frame in tables.items():
            unknown = [] if name not in TABLES else sorted(set(map(str, frame.columns)) - set(TABLES[name]))
            if name not in TABLES or unknown:
                raise RecordingError(
                    f"Expected tables and columns of the recording format, got table {name!r} with {unknown}. "
                    f"Known tables: {sorted(TABLES)}."
                )
            full = frame.reindex(columns=list(TABLES[name]))
            arrow[name] = pa.Table.from_pandas(full, SCHEMAS[name], preserve_index=False).replace_schema_metadata()
        return cls({"format": FORMAT, "label": "", **manifest}, anatomy, arrow)

    def table(
        self,
        name: str,
        steps: int | range | slice | Iterable[int] | None = None,
        columns: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Return table ``name`` as a tidy frame, empty with its columns when nothing was recorded.

        Args:
            name: one of the tables of the recording format.
            steps: one step, a range or slice of steps (its ends as in Python), or a set of them; None for all.
            columns: which columns; None for all.

        Raises:
            RecordingError: the table, a column or its file is not what a recording holds.
        """
        if name not in TABLES:
            raise RecordingError(f"Expected one of the tables {sorted(TABLES)}, got {name!r}. Pass one of these.")
        wanted = list(TABLES[name]) if columns is None else list(columns)
        unknown = sorted(set(wanted) - set(TABLES[name]))
        if unknown:
            raise RecordingError(
                f"Expected columns of {name!r} among {list(TABLES[name])}, got {unknown}. Pass some of these."
            )
        read = wanted if steps is None or "step" in wanted or "step" not in TABLES[name] else ["step", *wanted]
        parts = []
        for batch in self._batches(name, read):
            kept = batch if steps is None or "step" not in TABLES[name] else batch.filter(_mask(batch, steps))
            parts.append(kept)
        schema = pa.schema([SCHEMAS[name].field(column) for column in read])
        frame: pd.DataFrame = pa.Table.from_batches(parts, schema).select(wanted).to_pandas()
        return frame

    def save(self, folder: str | Path) -> Recording:
        """Write the recording to ``folder`` and return the one that lives there.

        Raises:
            RecordingExistsError: the folder holds a recording already.
            RecordingError: the folder cannot be written.
        """
        target = Path(folder)
        log = Log(target)
        try:
            for name in TABLES:
                for batch in self._batches(name, list(TABLES[name])):
                    log.append(name, {column: batch.column(column) for column in batch.schema.names})
            log.close()
            log.write_manifest({**self.manifest, "anatomy": self.anatomy.to_json()})
        except OSError as error:
            raise RecordingError(
                f"Expected a folder that can be written, got {str(target)!r} ({error}). Free space or pass another."
            ) from error
        return Recording.load(target)

    def __repr__(self) -> str:
        """Say what it is and how much it holds, without reading the tables."""
        where = "in memory" if self.folder is None else repr(str(self.folder))
        return f"Recording({where}, {self.anatomy.n_blocks} blocks, {self.anatomy.n_branches} branches)"

    def _batches(self, name: str, columns: list[str]) -> Iterable[Any]:
        if self.folder is not None:
            return read_batches(self.folder, name, columns)
        return self._tables[name].select(columns).to_batches() if name in self._tables else ()


def _mask(batch: Any, steps: int | range | slice | Iterable[int]) -> Any:
    """Return which rows of ``batch`` belong to ``steps``."""
    column = batch.column("step")
    if isinstance(steps, slice | range):
        start, stop, stride = steps.start or 0, steps.stop, 1 if steps.step is None else steps.step
        if stride < 1 or start < 0 or (stop is not None and stop < 0):
            raise RecordingError(
                f"Expected a range of steps that counts up from 0 or later, got {steps}. Steps are numbered from 0; "
                "pass their numbers."
            )
        mask = pc.greater_equal(column, start)
        if stop is not None:
            mask = pc.and_(mask, pc.less(column, stop))
        if stride > 1:
            offset = pc.subtract(column, start)
            mask = pc.and_(mask, pc.equal(offset, pc.multiply(pc.divide(offset, stride), stride)))
        return mask
    wanted = list(steps) if isinstance(steps, Iterable) else [steps]
    return pc.is_in(column, value_set=pa.array([index(step) for step in wanted], pa.int64()))


__all__ = ["Recording", "RecordingError", "RecordingExistsError"]
