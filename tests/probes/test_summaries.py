"""A summary is what pandas makes of the whole table by hand, however the table was cut into batches."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from rheoscope.probes import summaries, table_files
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.errors import RecordingError
from rheoscope.probes.log import Log
from rheoscope.probes.recording import Recording
from rheoscope.probes.schema import FORMAT, TABLES
from rheoscope.probes.summaries import coarser, series_of, statistics_of, summarise, summary_schema
from rheoscope.probes.table_files import SCHEMAS, read_batches

STATISTICS = ["rms", "absmax", "nonfinite"]


def activations(seed: int, n_steps: int = 90, n_sites: int = 3) -> pd.DataFrame:
    """Return random rows: steps with gaps, up to three micro-batches, rows that are missing, values that are not finite."""
    rng = np.random.default_rng(seed)
    steps = np.sort(rng.choice(10 * n_steps, n_steps, replace=False)) + int(rng.integers(0, 50))
    rows = [
        {"step": int(step), "micro_step": micro, "stack": 0, "block": site, "branch": "mlp", "depth": site + 1, "site": "state",
         "call": 0, "direction": side, "module_path": None if site == 1 else f"h.{site}"}
        for step in steps
        for micro in range(int(rng.integers(1, 4)))
        for site in range(n_sites)
        for side in ("forward", "backward")
        if rng.random() < 0.9
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    for column in STATISTICS:
        values = rng.standard_normal(len(frame)) * 10.0 ** rng.integers(-9, 9, len(frame))
        odd = rng.choice([np.inf, -np.inf, np.nan], len(frame))
        frame[column] = np.where(rng.random(len(frame)) < 0.15, odd, values)
    return frame


def table_of(frame: pd.DataFrame, seed: int, name: str = "activations") -> pa.Table:
    """Return the frame as an Arrow table in which a part of the NaN are null."""
    rng = np.random.default_rng(seed)
    columns = {}
    for field in SCHEMAS[name]:
        values = frame[field.name].tolist() if field.name in frame else [None] * len(frame)
        is_float = pa.types.is_floating(field.type)
        columns[field.name] = pa.array(
            [None if v is None or (v != v and (not is_float or rng.random() < 0.5)) else v for v in values],
            field.type,
            from_pandas=False,
        )
    return pa.table(columns, schema=SCHEMAS[name])


def cut(table: pa.Table, seed: int) -> list[pa.RecordBatch]:
    """Return the table as batches of random sizes, some of them empty."""
    rng = np.random.default_rng(seed)
    edges = [0, *sorted(rng.integers(0, table.num_rows + 1, 12).tolist()), table.num_rows]
    found = []
    for low, high in pairwise(edges):
        part = table.slice(low, high - low).combine_chunks()
        found += part.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
    return found


def by_hand(rows: list[dict], name: str, width: int) -> dict[tuple, dict]:
    """Return bucket and series -> the summary's other columns, row by row."""
    origin = min(row["step"] for row in rows)
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        bucket = -(-(row["step"] - origin) // width)
        groups.setdefault((bucket, *(row[key] for key in series_of(name))), []).append(row)
    found = {}
    for key, members in groups.items():
        last = [row for row in members if row["step"] == max(row["step"] for row in members)][-1]
        values = {"first_step": min(row["step"] for row in members), "n_rows": len(members), "step": last["step"]}
        for column in statistics_of(name):
            finite = [row[column] for row in members if row[column] is not None and np.isfinite(row[column])]
            n_odd = sum(row[column] is not None for row in members) - len(finite)
            values |= {
                column: last[column],
                f"{column}_min": min(finite, default=None),
                f"{column}_max": max(finite, default=None),
                f"{column}_mean": float(np.mean(finite)) if finite else None,
                f"{column}_n": len(finite),
                f"{column}_nonfinite": n_odd,
            }
        found[key] = values
    return found


def expect_equal(summary: pa.Table, rows: list[dict], name: str, width: int) -> None:
    expected = by_hand(rows, name, width)
    seen = set()
    for row in summary.to_pylist():
        key = (row["bucket"], *(row[column] for column in series_of(name)))
        seen.add(key)
        for column, value in expected[key].items():
            if column.endswith("_mean") and value is not None:
                # Sums of another order: exact to rounding of the largest term.
                scale = max(abs(expected[key][column.replace("_mean", part)]) for part in ("_min", "_max"))
                assert abs(row[column] - value) <= 1e-12 * scale, (key, column)
            else:
                assert row[column] == value or (row[column] != row[column] and value != value), (key, column)
    assert seen == set(expected)


@pytest.mark.parametrize("seed", range(4))
def test_a_summary_is_the_table_by_hand(seed: int) -> None:
    table = table_of(activations(seed), seed)

    summary = summarise("activations", cut(table, seed), buckets=16)

    origin, last = min(table["step"].to_pylist()), max(table["step"].to_pylist())
    width = next(
        w for w in (2**k for k in range(20)) if len({-(-(s - origin) // w) for s in table["step"].to_pylist()}) <= 16
    )
    assert summary.schema == summary_schema("activations")
    assert last in summary["step"].to_pylist()
    expect_equal(summary, table.to_pylist(), "activations", width)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_same_however_often_it_grew_too_long_on_the_way(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(activations(seed), seed)
    monkeypatch.setattr(summaries, "MOST_ROWS", 200)
    monkeypatch.setattr(summaries, "LEAST_BUCKETS", 4)

    summary = summarise("activations", cut(table, seed))

    steps = table["step"].to_pylist()
    n = len(set(summary["bucket"].to_pylist()))
    width = next(w for w in (2**k for k in range(20)) if len({-(-(s - min(steps)) // w) for s in steps}) == n)
    assert summary.num_rows <= 200 or n <= 4
    expect_equal(summary, table.to_pylist(), "activations", width)


@pytest.mark.parametrize("buckets", [1, 2, 3, 7])
def test_a_coarser_summary_is_that_of_the_table(buckets: int) -> None:
    table = table_of(activations(5), 5)
    fine = summarise("activations", cut(table, 5), buckets=64)

    coarse = coarser("activations", fine, buckets)

    direct = summarise("activations", cut(table, 5), buckets=buckets)
    assert len(set(coarse["bucket"].to_pylist())) <= buckets
    left, right = (
        each.drop_columns([c for c in each.column_names if c.endswith("_mean")]) for each in (coarse, direct)
    )
    assert str(left.to_pylist()) == str(right.to_pylist())
    # A mean is as exact as the rounding of its largest term.
    one, other = (each["rms_mean"].to_pandas().to_numpy(float) for each in (coarse, direct))
    largest = np.abs(direct.select(["rms_min", "rms_max"]).to_pandas()).max(axis=1).to_numpy()
    assert (np.isnan(one) == np.isnan(other)).all()
    assert (np.nan_to_num(np.abs(one - other)) <= 1e-12 * np.nan_to_num(largest)).all()


def test_one_step_and_none_at_all() -> None:
    one = table_of(activations(0, n_steps=1), 0)

    assert summarise("activations", one.to_batches())["n_rows"].to_pylist() == [1] * one.num_rows
    assert summarise("activations", []).num_rows == 0
    assert Recording.from_tables({}, Anatomy(), {}).summary("steps").empty


@pytest.mark.parametrize("name", [name for name, columns in TABLES.items() if "step" in columns])
def test_every_table_with_steps_has_a_summary(name: str) -> None:
    rows = pa.table({f.name: pa.array([None, None], f.type) for f in SCHEMAS[name]}, schema=SCHEMAS[name])
    place = rows.column_names.index("step")
    rows = rows.set_column(place, SCHEMAS[name].field("step"), pa.array([3, 4], pa.int64()))

    summary = summarise(name, rows.to_batches())

    assert summary["step"].to_pylist() == [3, 4]
    assert Recording({"format": FORMAT}, Anatomy(), {name: rows}).summary(name)["first_step"].tolist() == [3, 4]


def test_text_that_is_no_statistic_keeps_its_last_value() -> None:
    frame = pd.DataFrame({"step": [0, 1, 2], "batch_id": ["a", "b", "c"], "loss": [3.0, 2.0, 1.0]})
    recording = Recording.from_tables({}, Anatomy(), {"steps": frame})

    row = recording.summary("steps", columns=["batch_id", "loss"], buckets=1).iloc[0]

    assert (row["batch_id"], row["loss"], row["loss_max"], row["loss_mean"]) == ("c", 1.0, 3.0, 2.0)
    assert list(recording.summary("steps", columns=["loss"]).columns) == [
        "bucket", "first_step", "n_rows", "step", "loss", "loss_min", "loss_max", "loss_mean", "loss_n", "loss_nonfinite",
    ]  # fmt: skip


def test_a_table_without_steps_has_none() -> None:
    recording = Recording.from_tables({}, Anatomy(), {})
    with pytest.raises(RecordingError, match="with steps"):
        recording.summary("identities")
    with pytest.raises(RecordingError, match="at least one bucket"):
        recording.summary("steps", buckets=0)
    with pytest.raises(RecordingError, match="one of the tables"):
        recording.summary("nonsense")


@pytest.fixture
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of more than 100 rows are long."""
    for module in (
        summaries,
        __import__("rheoscope.probes.log", fromlist=["log"]),
        __import__("rheoscope.probes.recording", fromlist=["recording"]),
    ):
        monkeypatch.setattr(module, "MOST_ROWS", 100)


def logged(folder: Path, table: pa.Table, seed: int) -> Log:
    log = Log(folder, resume=True)
    for batch in cut(table, seed):
        log.append("activations", {column: batch.column(column) for column in batch.schema.names})
    log.write_manifest({"format": FORMAT, "anatomy": Anatomy().to_json()})
    return log


def as_text(frame: pd.DataFrame) -> str:
    """Return the frame without its means, whose last digits depend on the order of adding up."""
    return frame[[column for column in frame if not column.endswith("_mean")]].to_json(orient="records")


@pytest.mark.usefixtures("short_limit")
def test_closing_keeps_the_summary_that_reading_an_open_run_makes(tmp_path: Path) -> None:
    log = logged(tmp_path, table_of(activations(1), 1), 1)
    before = Recording.load(tmp_path).summary("activations")
    assert not (tmp_path / "activations.summary.parquet").exists()

    log.close()

    assert (tmp_path / "activations.summary.parquet").exists()
    assert as_text(Recording.load(tmp_path).summary("activations")) == as_text(before)


@pytest.mark.usefixtures("short_limit")
def test_a_continued_run_is_never_read_through_its_old_summary(tmp_path: Path) -> None:
    frame = activations(2)
    middle = int(frame["step"].median())
    logged(tmp_path, table_of(frame[frame["step"] < middle], 2), 2).close()

    log = logged(tmp_path, table_of(frame[frame["step"] >= middle], 3), 3)
    while_open = Recording.load(tmp_path).summary("activations")
    log.close()
    closed = Recording.load(tmp_path).summary("activations")

    assert while_open["step"].max() == closed["step"].max() == frame["step"].max()
    assert as_text(while_open) == as_text(closed)
    assert closed["n_rows"].sum() == len(frame)


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_cut_anywhere_is_summed_up_as_far_as_it_goes(seed: int, tmp_path: Path) -> None:
    logged(tmp_path / "whole", table_of(activations(seed), seed), seed)
    stream = tmp_path / "whole" / "activations.0000.arrow"
    size = int(np.random.default_rng(seed).integers(0, stream.stat().st_size))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    with (tmp_path / "cut" / "activations.0000.arrow").open("r+b") as file:
        file.truncate(size)

    summary = Recording.load(tmp_path / "cut").summary("activations", buckets=8)

    rows = [row for batch in read_batches(tmp_path / "cut", "activations") for row in batch.to_pylist()]
    assert summary["n_rows"].sum() == len(rows)
    assert summary["rms_n"].sum() == sum(row["rms"] is not None and np.isfinite(row["rms"]) for row in rows)


@pytest.mark.usefixtures("short_limit")
def test_a_damaged_summary_is_a_clear_error(tmp_path: Path) -> None:
    logged(tmp_path, table_of(activations(1), 1), 1).close()
    (tmp_path / "activations.summary.parquet").write_bytes(b"PAR1 nothing")

    with pytest.raises(RecordingError, match="Delete the damaged file"):
        Recording.load(tmp_path).summary("activations")

    (tmp_path / "activations.summary.parquet").unlink()
    assert len(Recording.load(tmp_path).summary("activations"))


def stepped(folder: Path, n: int, *, is_closed: bool) -> None:
    log = Log(folder)
    for step in range(n):
        log.append("steps", {"step": [step] * 10, "loss": [float(step)] * 10})
    if is_closed:
        log.close()


def test_of_a_stream_only_batches_with_wanted_steps_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped(tmp_path, 50, is_closed=False)
    decoded = []
    read = pa.ipc.read_record_batch
    monkeypatch.setattr(pa.ipc, "read_record_batch", lambda *args: decoded.append(1) or read(*args))

    from rheoscope.probes.step_choice import StepChoice

    rows = [
        row for batch in read_batches(tmp_path, "steps", ["loss"], StepChoice({7, 31})) for row in batch.to_pylist()
    ]

    assert rows == [{"loss": 7.0}] * 10 + [{"loss": 31.0}] * 10
    assert len(decoded) == 2


def test_of_a_parquet_file_only_row_groups_with_wanted_steps_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rheoscope.probes.log as log_module

    monkeypatch.setattr(log_module, "ROWS_A_GROUP", 100)
    stepped(tmp_path, 50, is_closed=True)
    groups: list[list[int]] = []
    whole = table_files.pq.ParquetFile.iter_batches

    def watched(self: Any, *args: Any, row_groups: Any = None, **kwargs: Any) -> Any:
        groups.append(row_groups)
        return whole(self, *args, row_groups=row_groups, **kwargs)

    monkeypatch.setattr(table_files.pq.ParquetFile, "iter_batches", watched)
    from rheoscope.probes.step_choice import StepChoice

    rows = [
        row
        for batch in read_batches(tmp_path, "steps", ["step"], StepChoice(range(20, 25)))
        for row in batch.to_pylist()
    ]

    assert [row["step"] for row in rows] == [step for step in range(20, 25) for _ in range(10)]
    assert groups == [[2]]


def test_memory_does_not_grow_with_the_length_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "MOST_ROWS", 2_000)

    def batches(n_steps: int) -> Iterator[Any]:
        base = table_of(activations(0, n_steps=1, n_sites=40), 0)
        for step in range(n_steps):
            place = base.column_names.index("step")
            steps = pa.array([step] * base.num_rows, pa.int64())
            yield base.set_column(place, SCHEMAS["activations"].field("step"), steps).combine_chunks().to_batches()[0]

    peaks = []
    for n_steps in (150, 900):
        start, peak = pa.total_allocated_bytes(), 0

        def watched(n: int = n_steps, start: int = start) -> Iterator[Any]:
            nonlocal peak
            for batch in batches(n):
                peak = max(peak, pa.total_allocated_bytes() - start)
                yield batch

        assert summarise("activations", watched()).num_rows
        peaks.append(peak)

    assert peaks[1] < 1.5 * peaks[0]
