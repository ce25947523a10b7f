"""Append tables to files that a kill -9 cannot take back, and compact them when the run closes.

Each table is a series of Arrow IPC streams ("segments", one an opening of the folder): a truncated stream still gives
back every whole record batch. On close the segments become one Parquet file, which names the segments it holds, so
that a crash between writing it and deleting them counts nothing twice.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .errors import RecordingError, RecordingExistsError
from .schema import MOST_TEXT, TABLES

MANIFEST = "manifest.json"
MANIFEST_LIMIT = 64 * 2**20  # bytes; an anatomy of 1,000 blocks takes about 4 MB
SEGMENTS_KEY = b"rheoscope.segments"
ROWS_A_GROUP = 65_536
_ARROW = {"i": pa.int64(), "f": pa.float64(), "s": pa.string(), "b": pa.bool_()}

SCHEMAS: dict[str, Any] = {
    name: pa.schema([(column, _ARROW[kind]) for column, kind in columns.items()]) for name, columns in TABLES.items()
}


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
        spent += [segment for name in TABLES for segment in _held(folder / f"{name}.parquet")]
        self._segment = 1 + max(map(_number, spent), default=-1)

    def append(self, name: str, columns: Mapping[str, Sequence[Any] | Any]) -> None:
        """Add rows to table ``name``; a column that is not given is null. On return they are with the system."""
        schema = SCHEMAS[name]
        n_rows = len(next(iter(columns.values())))
        if n_rows == 0:
            return
        arrays = [
            pa.array(columns[field.name], field.type, from_pandas=False)
            if field.name in columns
            else pa.nulls(n_rows, field.type)
            for field in schema
        ]
        batch = pa.record_batch(arrays, schema=schema)
        if self.folder is None:
            self._batches.setdefault(name, []).append(batch)
        else:
            self._stream(name, self.folder).write_batch(batch)

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


def compact(folder: Path, name: str) -> None:
    """Turn the segments of table ``name`` into one Parquet file.

    Raises:
        OSError: the disk is full; the segments are untouched.
    """
    segments = _segments(folder, name)
    if not segments:
        return
    target, partial = folder / f"{name}.parquet", folder / f"{name}.parquet.partial"
    held = [*_held(target), *(path.name for path in segments)]
    schema = SCHEMAS[name].with_metadata({SEGMENTS_KEY: json.dumps(held).encode()})
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for batches in _groups(read_batches(folder, name)):
                writer.write_table(
                    pa.Table.from_batches(batches, SCHEMAS[name]).replace_schema_metadata(schema.metadata)
                )
        partial.replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
    for path in segments:
        path.unlink()


def read_batches(folder: Path, name: str, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Yield the record batches of table ``name``, the Parquet file first, whole batches of cut streams included.

    Raises:
        RecordingError: a file is not what a recording holds.
    """
    target = folder / f"{name}.parquet"
    try:
        if target.is_file():
            with pq.ParquetFile(target) as file:
                _expect_schema(file.schema_arrow, name, target)
                for batch in file.iter_batches(ROWS_A_GROUP, columns=columns):
                    batch.validate(full=True)
                    _expect_short(batch, target)
                    yield batch
        for path in _segments(folder, name):
            for batch in _stream_batches(path, name):
                yield batch if columns is None else batch.select(list(columns))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RecordingError(
            f"Expected table {name!r} of a recording in {str(folder)!r}, got a file that cannot be read "
            f"({str(error)[:200]}). Delete the damaged file to read the rest."
        ) from error


def _stream_batches(path: Path, name: str) -> Iterator[Any]:
    """Yield the whole batches of one segment; a cut end is where the run was killed."""
    with pa.OSFile(str(path), "rb") as source:
        try:
            reader = pa.ipc.open_stream(source)
        except (pa.ArrowInvalid, EOFError):
            return
        _expect_schema(reader.schema, name, path)
        while True:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                return
            except (pa.ArrowInvalid, OSError):
                return
            batch.validate(full=True)
            _expect_short(batch, path)
            yield batch


def _expect_schema(schema: Any, name: str, path: Path) -> None:
    if not schema.remove_metadata().equals(SCHEMAS[name]):
        raise RecordingError(
            f"Expected the columns {SCHEMAS[name].names} in {str(path)!r}, got {schema.names[:40]}. "
            "Read it with the version of Rheoscope that wrote it."
        )


def _expect_short(batch: Any, path: Path) -> None:
    for field, column in zip(batch.schema, batch.columns, strict=True):
        longest = pc.max(pc.binary_length(column)).as_py() if pa.types.is_string(field.type) else None
        if longest is not None and longest > MOST_TEXT:
            raise RecordingError(
                f"Expected texts of at most {MOST_TEXT} bytes in column {field.name!r} of {str(path)!r}, got one of "
                f"{longest}. Rheoscope did not write this file; do not trust it."
            )


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
        (folder / f"{name}.parquet").exists() or _segments(folder, name) for name in TABLES
    )


def _segments(folder: Path, name: str) -> list[Path]:
    held = set(_held(folder / f"{name}.parquet"))
    return sorted(path for path in folder.glob(f"{name}.[0-9]*.arrow") if path.name not in held)


def _held(target: Path) -> list[str]:
    if not target.is_file():
        return []
    try:
        metadata = pq.read_schema(target).metadata or {}
        return [str(name) for name in json.loads(metadata.get(SEGMENTS_KEY, b"[]"))]
    except (pa.ArrowException, ValueError, TypeError):
        return []


def _number(name: str) -> int:
    """Return the number of a segment, -1 for any other name."""
    middle = name.split(".")[-2:-1]
    return int(middle[0]) if middle and middle[0].isdecimal() and len(middle[0]) < 10 else -1
