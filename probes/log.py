"""Append tables to files that a kill -9 cannot take back, and compact them when the run closes.

Each table is a series of Arrow IPC streams ("segments", one an opening of the folder): a truncated stream still gives
back every whole record batch. On close the segments become one Parquet file, which names the segments it holds, so
that a crash between writing it and deleting them counts nothing twice.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .arrow_arrays import arrow
from .errors import RecordingError, RecordingExistsError
from .schema import TABLES
from .step_choice import StepChoice
from .summaries import MOST_ROWS, summarise
from .table_files import ROWS_A_GROUP, SCHEMAS, SEGMENTS_KEY, held, last_step, read_batches, segments

MANIFEST = "manifest.json"
MANIFEST_LIMIT = 64 * 2**20  # bytes; an anatomy of 1,000 blocks takes about 4 MB


class Log:
    """The open end of a recording: one append-only stream a table, in a folder or, without one, in memory."""

    def __init__(self, folder: Path | None, *, resume: bool = False) -> None:
        """Open ``folder`` for writing.

        Raises:
            RecordingExistsError: the folder already holds a recording and ``resume`` is false.
            RecordingError: the folder cannot be made.
        """
        self.folder = folder
        self._batches: dict[str, list[Any]] = {}
        self._sinks: dict[str, tuple[Any, Any]] = {}
        self._segment = 0
        if folder is None:
            return
        if not resume and _holds_recording(folder):
            raise RecordingExistsError(
                f"Expected a folder without a recording, got {str(folder)!r}, which holds one. "
                "Pass resume=True to continue it, or another folder."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordingError(
                f"Expected a folder that can be written, got {str(folder)!r} ({error}). Pass another folder."
            ) from error
        # A name that a Parquet file holds is spent: a segment under it would count as compacted.
        spent = [path.name for path in folder.glob("*.arrow")]
        spent += [segment for name in TABLES for segment in held(folder / f"{name}.parquet")]
        self._segment = 1 + max(map(_number, spent), default=-1)

    def append(self, name: str, columns: Mapping[str, Sequence[Any] | Any]) -> None:
        """Add rows to table ``name``; a column that is not given is null. On return they are with the system."""
        schema = SCHEMAS[name]
        n_rows = len(next(iter(columns.values())))
        if n_rows == 0:
            return
        arrays = [
            arrow(columns[field.name], field.type) if field.name in columns else pa.nulls(n_rows, field.type)
            for field in schema
        ]
        batch = pa.record_batch(arrays, schema=schema)
        if self.folder is None:
            self._batches.setdefault(name, []).append(batch)
        else:
            self._stream(name, self.folder).write_batch(batch)

    def continue_from(self, first_step: int | None) -> tuple[int, int]:
        """Make room for what is recorded from ``first_step`` on, before anything is appended.

        Rows of that step and later ones are dropped, one table after the other, each in one piece: what was recorded
        after the checkpoint that a run restarts from happens again.

        Args:
            first_step: None for the one behind the last that left rows in any table.

        Returns:
            The first step, and the last that was recorded before; -1 where there is none.

        Raises:
            RecordingError: a table is damaged.
            OSError: the disk is full.
        """
        folder = self.folder
        if folder is None:
            return first_step or 0, -1
        ends = {name: last_step(folder, name) for name, columns in TABLES.items() if "step" in columns}
        last = max(end for name, end in ends.items() if name != "events")
        if first_step is not None:
            for name, end in ends.items():
                if end >= first_step:
                    compact(folder, name, before=first_step)
        return last + 1 if first_step is None else first_step, last

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace the manifest in one piece."""
        if self.folder is None:
            return
        target = self.folder / MANIFEST
        partial = target.with_suffix(".partial")
        try:
            partial.write_text(json.dumps(manifest, indent=1, allow_nan=False), encoding="utf-8")
            partial.replace(target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()

    def close(self) -> None:
        """End the streams and compact them; where that fails the streams stay and are read as they are.

        Raises:
            OSError: the disk is full.
        """
        sinks, self._sinks = self._sinks, {}
        with contextlib.ExitStack() as ends:
            for writer, sink in sinks.values():
                ends.callback(sink.close)
                ends.callback(writer.close)
        if self.folder is not None:
            for name in sinks:
                compact(self.folder, name)

    def memory(self) -> dict[str, Any]:
        """Return the tables appended so far, of a log without a folder."""
        return {name: pa.Table.from_batches(batches) for name, batches in self._batches.items()}

    def _stream(self, name: str, folder: Path) -> Any:
        if name not in self._sinks:
            sink = pa.OSFile(str(folder / f"{name}.{self._segment:04d}.arrow"), "wb")
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            self._sinks[name] = (pa.ipc.new_stream(sink, SCHEMAS[name], options=options), sink)
        return self._sinks[name][0]


def compact(folder: Path, name: str, before: int | None = None) -> None:
    """Turn the segments of table ``name`` into one Parquet file, and a long table's summary into another.

    Args:
        folder: of the recording.
        name: of the table.
        before: rows of this step and later ones are left out; None to keep all.

    Raises:
        OSError: the disk is full; the segments are untouched.
    """
    paths = segments(folder, name)
    target = folder / f"{name}.parquet"
    if not paths and (before is None or not target.is_file()):
        return
    # First of all: a summary never stands beside a table that holds more.
    beside = folder / f"{name}.summary.parquet"
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    names = [*held(target), *(path.name for path in paths)]
    metadata = {SEGMENTS_KEY: json.dumps(names).encode()}
    steps = None if before is None else StepChoice(range(before))
    _write(target, SCHEMAS[name].with_metadata(metadata), _groups(read_batches(folder, name, steps=steps)))
    for path in paths:
        path.unlink()
    if "step" in TABLES[name] and pq.read_metadata(target).num_rows > MOST_ROWS:
        found = summarise(name, read_batches(folder, name))
        _write(beside, found.schema, [found.to_batches()])


def _write(target: Path, schema: Any, groups: Iterable[list[Any]]) -> None:
    """Replace a Parquet file in one piece, one row group a list of batches."""
    partial = target.with_name(f"{target.name}.partial")
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for batches in groups:
                table = pa.Table.from_batches(batches, schema.remove_metadata())
                writer.write_table(table.replace_schema_metadata(schema.metadata))
        partial.replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _groups(batches: Iterator[Any]) -> Iterator[list[Any]]:
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        if sum(item.num_rows for item in group) >= ROWS_A_GROUP:
            yield group
            group = []
    if group:
        yield group


def _holds_recording(folder: Path) -> bool:
    """Return whether ``folder`` holds a manifest, or tables that lost theirs."""
    return (folder / MANIFEST).exists() or any(
        (folder / f"{name}.parquet").exists() or segments(folder, name) for name in TABLES
    )


def _number(name: str) -> int:
    """Return the number of a segment, -1 for any other name."""
    middle = name.split(".")[-2:-1]
    return int(middle[0]) if middle and middle[0].isdecimal() and len(middle[0]) < 10 else -1
