"""Hold what was measured: a manifest and tidy tables, in a folder or in memory. Nothing here imports torch.

Reading executes nothing from the folder: JSON, Arrow and Parquet with a fixed schema; no pickle, no torch.load.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from .anatomy import Anatomy
from .errors import RecordingError, RecordingExistsError
from .log import MANIFEST, MANIFEST_LIMIT, Log
from .notebook import recording_html
from .schema import FORMAT, MOST_TEXT, READABLE, TABLES
from .step_choice import StepChoice, Steps
from .summaries import MOST_ROWS, coarser, summarise, summary_columns
from .table_files import SCHEMAS, is_there, n_rows, read_batches, read_summary, signature

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
        self._found: dict[Any, Any] = {}  # what was counted and summed up, by the files it was read from

    @classmethod
    def load(cls, folder: str | Path) -> Recording:
        """Open the recording in ``folder``; tables are read when asked for.

        Raises:
            RecordingError: there is none, or it is damaged or of a newer format.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not is_there(path):
            if (folder / "stages").is_dir():
                raise RecordingError(
                    f"Expected one recording in {str(folder)!r}, got the stages of a pipeline, not joined. Join them with "
                    "rheoscope join when all of them are there."
                )
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
        if not isinstance(manifest, dict) or manifest.get("format") not in READABLE:
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
        steps: Steps | None = None,
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
        wanted = _known(name, columns)
        choice = None if steps is None else StepChoice(steps)
        batches = list(self._batches(name, wanted, choice))
        schema = pa.schema([SCHEMAS[name].field(column) for column in wanted])
        frame: pd.DataFrame = pa.Table.from_batches(batches, schema).to_pandas()
        return frame

    def summary(self, name: str, columns: Sequence[str] | None = None, buckets: int = 512) -> pd.DataFrame:
        """Return table ``name`` with neighbouring steps summed up: a bounded frame, whatever the length of the run.

        One row a bucket of steps and series of rows (place, site, parameter, head ...). Buckets are equally wide but for
        the first, which is the first step alone. A row holds what the table's columns hold at the bucket's last step,
        as it was recorded; ``step`` is that step, ``first_step`` the bucket's first and ``n_rows`` how many rows of the
        series it stands for. Beside each statistic ``x`` stand ``x_min``, ``x_max`` and ``x_mean`` over its finite
        values, their number ``x_n``, and ``x_nonfinite``, how many are NaN or infinite.

        Closing a run keeps the summary of every long table; of one that was not closed it is made here, batch by batch.

        Args:
            name: a table of the recording format whose rows have steps.
            columns: which columns of the table, besides those that tell its rows apart; None for all.
            buckets: at most so many. A table of many rows a step has fewer: a summary has about 131,000 rows at most, and
                more only where 16 buckets need them.

        Raises:
            RecordingError: the table, a column or its file is not what a recording holds, or ``buckets`` is below 1.
        """
        wanted = summary_columns(name, _known(name, columns))
        if "step" not in TABLES[name] or buckets < 1:
            raise RecordingError(
                f"Expected a table with steps and at least one bucket, got {name!r} and {buckets}. "
                "Read a table without steps by table()."
            )
        kept = read_summary(self.folder, name, wanted) if self.folder is not None else None
        found = self._summed_up(name).select(wanted) if kept is None else kept
        frame: pd.DataFrame = coarser(name, found, buckets).to_pandas()
        return frame

    def n_rows(self, name: str) -> int:
        """Return how many rows table ``name`` has.

        Raises:
            RecordingError: the table or its file is not what a recording holds.
        """
        _known(name, None)
        if self.folder is None:
            return int(self._tables[name].num_rows) if name in self._tables else 0
        key = (name, "rows", signature(self.folder, name))
        if key not in self._found:
            self._found[key] = n_rows(self.folder, name)
        return int(self._found[key])

    def is_long(self, name: str) -> bool:
        """Return whether table ``name`` has more rows than a summary: whoever reads all of it should read that instead.

        Raises:
            RecordingError: the table or its file is not what a recording holds.
        """
        return "step" in TABLES.get(name, ()) and self.n_rows(name) > MOST_ROWS

    def _summed_up(self, name: str) -> Any:
        """Return the summary of a table that has none on disk, made once for the rows that are there."""
        key = (name, "summary", () if self.folder is None else signature(self.folder, name))
        if key not in self._found:
            batches = self._batches(name, list(TABLES[name]))
            if self.folder is None and name in self._tables:
                batches = self._tables[name].sort_by("step").to_batches()
            self._found[key] = summarise(name, batches)
        return self._found[key]

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

    def with_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Recording:
        """Return this recording, in memory, with rows added to table ``name``; a column that a row does not give is null.

        Raises:
            RecordingError: the table or a column is unknown, or a value is not of its kind.
        """
        given = [dict(row) for row in rows]
        _known(name, sorted({column for row in given for column in row}))
        held = {each: list(self._batches(each, list(TABLES[each]))) for each in TABLES}
        try:
            held[name] += pa.Table.from_pylist(given, SCHEMAS[name]).to_batches()
        except pa.ArrowException as error:
            raise RecordingError(
                f"Expected rows of table {name!r} ({TABLES[name]}), got {str(error)[:200]}. Pass values of these kinds."
            ) from error
        tables = {each: pa.Table.from_batches(batches, SCHEMAS[each]) for each, batches in held.items() if batches}
        return Recording({**self.manifest, "format": FORMAT}, self.anatomy, tables)

    def __repr__(self) -> str:
        """Say what it is and how much it holds, without reading the tables."""
        where = "in memory" if self.folder is None else repr(str(self.folder))
        return f"Recording({where}, {self.anatomy.n_blocks} blocks, {self.anatomy.n_branches} branches)"

    def _repr_html_(self) -> str:
        """Return what it is and how much it holds, for a notebook."""
        anatomy = self.anatomy
        found = (
            f"{anatomy.n_blocks} blocks, {anatomy.n_branches} branches, {anatomy.placement}-norm, {anatomy.norm_kind}"
        )
        rows = [(name, n) for name in TABLES if (n := self.n_rows(name))]
        where = "in memory" if self.folder is None else self.folder
        facts = [("kept", where), ("anatomy", found), *((f"rows of {name}", f"{n:,}") for name, n in rows)]
        return recording_html(self.manifest.get("label") or "Recording", facts)

    def _batches(self, name: str, columns: list[str], steps: StepChoice | None = None) -> Iterable[Any]:
        if self.folder is not None:
            return read_batches(self.folder, name, columns, steps)
        if name not in self._tables:
            return ()
        table = self._tables[name]
        if steps is not None and "step" in TABLES[name]:
            table = table.filter(steps.of(table.column("step")))
        return table.select(columns).to_batches()  # type: ignore[no-any-return]


def _known(name: str, columns: Sequence[str] | None) -> list[str]:
    """Return the columns asked for of a table, all where None is.

    Raises:
        RecordingError: the table or a column is none of the format.
    """
    if name not in TABLES:
        raise RecordingError(f"Expected one of the tables {sorted(TABLES)}, got {name!r}. Pass one of these.")
    wanted = list(TABLES[name]) if columns is None else list(columns)
    unknown = sorted(set(wanted) - set(TABLES[name]))
    if unknown:
        raise RecordingError(
            f"Expected columns of {name!r} among {list(TABLES[name])}, got {unknown}. Pass some of these."
        )
    return wanted


__all__ = ["Recording", "RecordingError", "RecordingExistsError"]
