"""A log gives back every whole batch of rows, wherever its files were cut, and counts none twice."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rheoscope.probes.errors import RecordingError, RecordingExistsError
from rheoscope.probes.log import MANIFEST, Log, compact
from rheoscope.probes.schema import MOST_TEXT, TABLES
from rheoscope.probes.table_files import SCHEMAS, read_batches

N_BATCHES = 6


def columns(step: int) -> dict[str, list[object]]:
    """Return the columns of two rows of the steps table."""
    return {"step": [step, step], "loss": [float(step), None], "batch_id": [f"b{step}", None]}


def steps_of(folder: Path, name: str = "steps") -> list[int]:
    """Return the step column, in the order of the rows."""
    return [value for batch in read_batches(folder, name) for value in batch.column("step").to_pylist()]


def written(folder: Path, n: int = N_BATCHES, first: int = 0) -> Log:
    """Return an open log with ``n`` batches of two rows."""
    log = Log(folder, resume=True)
    for step in range(first, first + n):
        log.append("steps", columns(step))
    return log


def doubled(steps: range) -> list[int]:
    return [step for step in steps for _ in range(2)]


def test_rows_come_back_as_they_were_given_from_stream_and_parquet(tmp_path: Path) -> None:
    log = written(tmp_path)
    from_stream = pa.Table.from_batches(read_batches(tmp_path, "steps"))
    log.close()
    from_parquet = pa.Table.from_batches(read_batches(tmp_path, "steps"))

    assert from_stream.to_pylist() == from_parquet.to_pylist()
    assert from_stream.column("loss").to_pylist()[:4] == [0.0, None, 1.0, None]
    assert from_stream.schema == SCHEMAS["steps"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["steps.parquet"]


def test_every_row_is_with_the_system_when_append_returns(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for step in range(3):
        log.append("steps", columns(step))
        assert steps_of(tmp_path) == doubled(range(step + 1))


def test_a_stream_cut_at_any_byte_gives_the_batches_before_the_cut(tmp_path: Path) -> None:
    written(tmp_path)
    path = next(tmp_path.glob("steps.*.arrow"))
    whole = path.read_bytes()
    counts = []
    for cut in [*range(0, len(whole), 7), len(whole)]:
        path.write_bytes(whole[:cut])
        steps = steps_of(tmp_path)
        assert steps == doubled(range(len(steps) // 2))
        counts.append(len(steps))
    path.write_bytes(whole)

    assert counts == sorted(counts)
    assert set(counts) == set(range(0, 2 * N_BATCHES + 1, 2))
    assert steps_of(tmp_path) == doubled(range(N_BATCHES))


def test_a_cut_stream_is_compacted_with_what_it_holds(tmp_path: Path) -> None:
    written(tmp_path)
    path = next(tmp_path.glob("steps.*.arrow"))
    path.write_bytes(path.read_bytes()[:-40])
    before = steps_of(tmp_path)

    compact(tmp_path, "steps")

    assert 0 < len(before) < 2 * N_BATCHES
    assert steps_of(tmp_path) == before


def test_rows_of_several_openings_come_in_order(tmp_path: Path) -> None:
    written(tmp_path, 2).close()
    written(tmp_path, 2, first=2)  # killed: never closed
    written(tmp_path, 2, first=4).close()
    written(tmp_path, 2, first=6)

    assert steps_of(tmp_path) == doubled(range(8))


def test_a_crash_between_parquet_and_the_segments_removal_counts_nothing_twice(tmp_path: Path) -> None:
    log = written(tmp_path)
    path = next(tmp_path.glob("steps.*.arrow"))
    segment = path.read_bytes()
    log.close()
    path.write_bytes(segment)

    assert steps_of(tmp_path) == doubled(range(N_BATCHES))
    written(tmp_path, 1, first=N_BATCHES).close()
    assert steps_of(tmp_path) == doubled(range(N_BATCHES + 1))


def test_a_log_without_a_folder_keeps_its_tables(tmp_path: Path) -> None:
    log = Log(None)
    log.append("steps", columns(1))
    log.append("events", {"step": [], "kind": [], "sentence": []})
    log.write_manifest({})
    log.close()

    assert list(log.memory()) == ["steps"]
    assert log.memory()["steps"].column("step").to_pylist() == [1, 1]


def test_the_manifest_is_replaced_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path)
    log.write_manifest({"format": 1})
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "No space left")))

    with pytest.raises(OSError, match="No space left"):
        log.write_manifest({"format": 2})

    assert json.loads((tmp_path / MANIFEST).read_text()) == {"format": 1}
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_a_folder_with_rows_is_not_opened_anew(tmp_path: Path) -> None:
    written(tmp_path)

    with pytest.raises(RecordingExistsError, match="Pass resume=True"):
        Log(tmp_path)


def test_another_schema_is_refused_from_parquet_and_stream(tmp_path: Path) -> None:
    strange = pa.table({"step": pa.array([1]), "payload": pa.array(["x"])})
    pq.write_table(strange, tmp_path / "steps.parquet")
    with pa.OSFile(str(tmp_path / "events.0000.arrow"), "wb") as sink, pa.ipc.new_stream(sink, strange.schema) as out:
        out.write_table(strange)

    for name in ("steps", "events"):
        with pytest.raises(RecordingError, match="Expected the columns"):
            list(read_batches(tmp_path, name))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_text_too_long_is_refused(kind: str, tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.append("events", {"step": [1], "kind": ["fault"], "sentence": ["x" * (MOST_TEXT + 1)]})
    if kind == "parquet":
        with pytest.raises(RecordingError):
            log.close()
        table = pa.table({"step": [1], "kind": ["fault"], "sentence": ["x" * (MOST_TEXT + 1)]}, SCHEMAS["events"])
        pq.write_table(table, tmp_path / "events.parquet")

    with pytest.raises(RecordingError, match="Expected texts of at most 10000 bytes in column 'sentence'"):
        list(read_batches(tmp_path, "events"))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"\xff" * 1000])
def test_a_damaged_parquet_file_is_a_clear_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "steps.parquet").write_bytes(content)

    with pytest.raises(RecordingError, match="got a file that cannot be read"):
        list(read_batches(tmp_path, "steps"))


def test_flipped_bytes_end_in_rows_or_a_clear_error(tmp_path: Path) -> None:
    written(tmp_path)
    path = next(tmp_path.glob("steps.*.arrow"))
    whole, flips = path.read_bytes(), random.Random(0)
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(flips.randint(1, 4)):
            damaged[flips.randrange(len(whole))] = flips.randrange(256)
        path.write_bytes(bytes(damaged))
        try:
            outcomes.add(len(steps_of(tmp_path)) <= 2 * N_BATCHES)
        except RecordingError:
            outcomes.add(True)

    assert outcomes == {True}


def test_every_table_of_the_format_has_a_schema() -> None:
    assert {name: schema.names for name, schema in SCHEMAS.items()} == {n: list(c) for n, c in TABLES.items()}
