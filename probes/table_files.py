"""Read the files of one table: the Parquet file, then the streams behind it, and of both only what the steps ask for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .errors import RecordingError
from .schema import MOST_TEXT, TABLES
from .step_choice import StepChoice
from .summaries import ARROW, summary_schema

SEGMENTS_KEY = b"rheoscope.segments"
ROWS_A_GROUP = 65_536
T = TypeVar("T")
SCHEMAS: dict[str, Any] = {
    name: pa.schema([(column, ARROW[kind]) for column, kind in columns.items()]) for name, columns in TABLES.items()
}


@dataclass(frozen=True)
class _Wish:
    """What is read of one table.

    Attributes:
        name: of the table.
        columns: that are handed out.
        steps: that are handed out; None for all.
    """

    name: str
    columns: Sequence[str]
    steps: StepChoice | None

    @property
    def schema(self) -> Any:
        """The columns of the table."""
        return SCHEMAS[self.name]

    @property
    def step_field(self) -> int:
        """Where the step stands among them."""
        return int(self.schema.get_field_index("step"))

    @property
    def read(self) -> list[str]:
        """The columns that must be decoded, in the order of the schema."""
        wanted = {*self.columns, *(["step"] if self.steps is not None else [])}
        return [column for column in self.schema.names if column in wanted]

    def may_hold(self, low: int | None, high: int | None) -> bool:
        """Return whether rows between two steps can be wanted; None where the steps are not known."""
        return self.steps is None or low is None or high is None or self.steps.may_hold(low, high)

    def of(self, batch: Any) -> Any:
        """Return the wanted rows and columns of a batch."""
        chosen = batch if self.steps is None else batch.filter(self.steps.of(batch.column("step")))
        return chosen.select(list(self.columns))


def read_batches(
    folder: Path, name: str, columns: Sequence[str] | None = None, steps: StepChoice | None = None
) -> Iterator[Any]:
    """Yield the record batches of table ``name``, the Parquet file first, whole batches of cut streams included.

    Row groups and batches without any of ``steps`` are not decoded.

    Raises:
        RecordingError: a file is not what a recording holds.
    """
    target = folder / f"{name}.parquet"
    wish = _Wish(
        name, list(TABLES[name]) if columns is None else list(columns), steps if "step" in TABLES[name] else None
    )
    try:
        if is_there(target):
            yield from _parquet_batches(target, wish)
        for path in segments(folder, name):
            yield from _stream_batches(path, wish)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RecordingError(
            f"Expected table {name!r} of a recording in {str(folder)!r}, got a file that cannot be read "
            f"({str(error)[:200]}). Delete the damaged file to read the rest."
        ) from error


def n_rows(folder: Path, name: str) -> int:
    """Return how many rows table ``name`` has, without unpacking more than one column of its streams.

    Raises:
        RecordingError: a file is not what a recording holds.
    """
    if segments(folder, name):
        return sum(batch.num_rows for batch in read_batches(folder, name, columns=[SCHEMAS[name].names[0]]))
    target = folder / f"{name}.parquet"
    return _or_refused(target, lambda: int(pq.read_metadata(target).num_rows)) if is_there(target) else 0


def last_step(folder: Path, name: str) -> int:
    """Return the last step in table ``name``, -1 where it holds none; of a Parquet file nothing but its foot is read.

    Raises:
        RecordingError: a file is not what a recording holds.
    """
    target, wish = folder / f"{name}.parquet", _Wish(name, ["step"], StepChoice(slice(None)))
    found = [-1]
    if is_there(target):
        with _or_refused(target, lambda: pq.ParquetFile(target)) as file:
            found += [high for group in range(file.num_row_groups) if (high := _span(file, wish, group)[1]) is not None]
    for path in segments(folder, name):
        for batch in _stream_batches(path, wish):
            high = pc.max(batch.column("step")).as_py()
            found += [] if high is None else [high]
    return max(found)


def last_of(folder: Path) -> int:
    """Return the last step that left rows in any table but events, -1 where there is none.

    Raises:
        RecordingError: a file is not what a recording holds.
    """
    return max(last_step(folder, name) for name, columns in TABLES.items() if "step" in columns and name != "events")


def signature(folder: Path, name: str) -> tuple[tuple[str, int], ...]:
    """Return the names and sizes of the files of a table: they change whenever its rows do."""
    paths = [folder / f"{name}.parquet", *segments(folder, name)]
    return tuple((path.name, path.stat().st_size) for path in paths if is_there(path))


def read_summary(folder: Path, name: str, columns: Sequence[str]) -> Any | None:
    """Return columns of the summary that was kept when the table was closed; None where there is none of all its rows.

    Raises:
        RecordingError: the file is not what a recording holds.
    """
    target = folder / f"{name}.summary.parquet"
    if not is_there(target) or segments(folder, name):
        return None
    return _or_refused(target, lambda: _read_summary(target, name, columns))


def _read_summary(target: Path, name: str, columns: Sequence[str]) -> Any:
    with pq.ParquetFile(target) as file:
        expect_schema(file.schema_arrow, summary_schema(name), target)
        table = file.read(columns=list(columns))
    table.validate(full=True)
    expect_short(table, target)
    return table


def _or_refused(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RecordingError(
            f"Expected a table of a recording in {str(path)!r}, got a file that cannot be read ({str(error)[:200]}). "
            "Delete the damaged file to read the rest."
        ) from error


def is_there(path: Path) -> bool:
    """Return whether a recording holds this file.

    Raises:
        RecordingError: what is there is no file of its own: a link that leads out of the folder, a pipe, a folder.
    """
    if not path.is_symlink() and not path.exists():
        return False
    if not path.is_file() or path.resolve().parent != path.parent.resolve():
        raise RecordingError(
            f"Expected a file of the recording at {str(path)!r}, got a link out of its folder, or no file at all. Rheoscope "
            "writes neither; delete it to read the rest."
        )
    return True


def segments(folder: Path, name: str) -> list[Path]:
    """Return the streams of table ``name`` that its Parquet file does not hold yet, in order."""
    spent = set(held(folder / f"{name}.parquet"))
    return sorted(path for path in folder.glob(f"{name}.[0-9]*.arrow") if path.name not in spent and is_there(path))


def held(target: Path) -> list[str]:
    """Return the names of the streams that a Parquet file was made of."""
    if not is_there(target):
        return []
    try:
        metadata = pq.read_schema(target).metadata or {}
        return [str(name) for name in json.loads(metadata.get(SEGMENTS_KEY, b"[]"))]
    except (pa.ArrowException, ValueError, TypeError, OSError):
        return []


def _parquet_batches(path: Path, wish: _Wish) -> Iterator[Any]:
    with pq.ParquetFile(path) as file:
        expect_schema(file.schema_arrow, wish.schema, path)
        groups = [group for group in range(file.num_row_groups) if wish.may_hold(*_span(file, wish, group))]
        for batch in file.iter_batches(ROWS_A_GROUP, row_groups=groups, columns=wish.read):
            batch.validate(full=True)
            expect_short(batch, path)
            yield wish.of(batch)


def _span(file: Any, wish: _Wish, group: int) -> tuple[int | None, int | None]:
    """Return the least and the largest step of a row group."""
    if wish.steps is None:
        return None, None
    found = file.metadata.row_group(group).column(wish.step_field).statistics
    return (found.min, found.max) if found is not None and found.has_min_max else (None, None)


def _stream_batches(path: Path, wish: _Wish) -> Iterator[Any]:
    """Yield the whole batches of one stream; a cut end is where the run was killed."""
    with pa.OSFile(str(path), "rb") as source:
        try:
            schema = pa.ipc.open_stream(source).schema
        except (pa.ArrowInvalid, EOFError):
            return
    expect_schema(schema, wish.schema, path)
    for batch in _decoded(path, wish.schema, wish.read) if wish.steps is None else _chosen(path, wish):
        batch.validate(full=True)
        expect_short(batch, path)
        yield wish.of(batch)


def _decoded(path: Path, schema: Any, columns: Sequence[str]) -> Iterator[Any]:
    """Yield every batch; of a compressed one the other columns are not unpacked."""
    options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(column) for column in columns])
    with pa.OSFile(str(path), "rb") as source:
        yield from (batch for _, batch in _placed(source, pa.ipc.open_stream(source, options=options)))


def _chosen(path: Path, wish: _Wish) -> Iterator[Any]:
    """Yield the batches that may hold wanted steps; of the others nothing but the steps is unpacked."""
    options = pa.ipc.IpcReadOptions(included_fields=[wish.step_field])
    with pa.OSFile(str(path), "rb") as source, pa.OSFile(str(path), "rb") as again:
        for place, batch in _placed(source, pa.ipc.open_stream(source, options=options)):
            span = pc.min_max(batch.column("step")).as_py()
            if wish.may_hold(span["min"], span["max"]):
                again.seek(place)
                yield pa.ipc.read_record_batch(pa.ipc.read_message(again), wish.schema).select(wish.read)


def _placed(source: Any, reader: Any) -> Iterator[tuple[int, Any]]:
    """Yield where a batch begins in the file, and the batch; until the end, or the cut."""
    while True:
        place = source.tell()
        try:
            batch = reader.read_next_batch()
        except (StopIteration, pa.ArrowInvalid, OSError):
            return
        yield place, batch


def expect_schema(schema: Any, expected: Any, path: Path) -> None:
    """Refuse a file of other columns.

    Raises:
        RecordingError: it is one.
    """
    if not schema.remove_metadata().equals(expected):
        raise RecordingError(
            f"Expected the columns {expected.names} in {str(path)!r}, got {schema.names[:40]}. "
            "Read it with the version of Rheoscope that wrote it."
        )


def expect_short(batch: Any, path: Path) -> None:
    """Refuse texts that no recording holds.

    Raises:
        RecordingError: there is one.
    """
    for field, column in zip(batch.schema, batch.columns, strict=True):
        longest = pc.max(pc.binary_length(column)).as_py() if pa.types.is_string(field.type) else None
        if longest is not None and longest > MOST_TEXT:
            raise RecordingError(
                f"Expected texts of at most {MOST_TEXT} bytes in column {field.name!r} of {str(path)!r}, got one of "
                f"{longest}. Rheoscope did not write this file; do not trust it."
            )
