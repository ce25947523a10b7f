"""Sum a table up along its steps: neighbouring steps share a bucket, so that a run of any length is a bounded table.

A summary is made of summaries: batches are summed up one by one, and what was summed up is summed up again with steps
twice as far apart whenever it grows too long. The first step stays alone in its bucket, and of every bucket the last
step's row is kept as it was recorded: these rows are whole steps of the run, not means of several.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .schema import TABLES

MOST_ROWS = 2**17  # of a summary; a table of no more rows is short, and needs none
MOST_BUCKETS, LEAST_BUCKETS = 512, 16  # the least come before the rows: a model of 1,000 blocks keeps them
# Columns that are no statistic and do not tell one row of a step from another either: the last value stands for the bucket.
CARRIED = {
    "batch_id",
    "n_tokens",
    "n_ranks",
    "memory_bytes",
    "micro_batches",
    "is_sampled",
    "is_skipped",
    "optimizer_group",
    "n_queries",
    "n_chosen",
    "sentence",
}
WISHES_AT_ONCE = 24
_LAST = pc.ScalarAggregateOptions(skip_nulls=False, min_count=0)
_PARTS = {"_min": "min", "_max": "max", "_sum": "sum", "_n": "sum", "_nonfinite": "sum"}
ARROW = {"i": pa.int64(), "f": pa.float64(), "s": pa.string(), "b": pa.bool_()}
# What stands beside each statistic: over the finite values in a bucket, their number, and that of NaN and infinities.
SUMMED = {"_min": "f", "_max": "f", "_mean": "f", "_n": "i", "_nonfinite": "i"}


def statistics_of(name: str) -> list[str]:
    """Return the columns of table ``name`` of which least, largest and mean are kept."""
    return [column for column, kind in TABLES[name].items() if kind == "f"]


def series_of(name: str) -> list[str]:
    """Return the columns of table ``name`` that tell one row of a step from another."""
    return [
        column for column, kind in TABLES[name].items() if kind != "f" and column not in CARRIED and column != "step"
    ]


@cache
def summary_schema(name: str) -> Any:
    """Return the columns of a summary of table ``name``: those of the table and, for each statistic, five more."""
    fields = [("bucket", "i"), ("first_step", "i"), ("n_rows", "i"), *TABLES[name].items()]
    for column in statistics_of(name):
        fields += [(f"{column}{part}", kind) for part, kind in SUMMED.items()]
    return pa.schema([(column, ARROW[kind]) for column, kind in fields])


def summary_columns(name: str, columns: Sequence[str]) -> list[str]:
    """Return the columns of a summary that speak of ``columns`` of its table, and say of which row and bucket."""
    wanted = {*series_of(name), "step", *columns}
    kept = {"bucket", "first_step", "n_rows", *wanted}
    kept |= {f"{column}{part}" for column in wanted for part in SUMMED}
    return [column for column in summary_schema(name).names if column in kept]


def summarise(name: str, batches: Iterable[Any], buckets: int = MOST_BUCKETS) -> Any:
    """Return the summary of a table, in memory that its length does not change.

    Args:
        name: of the table.
        batches: its record batches, earlier steps before later ones.
        buckets: at most so many; fewer where the table has many rows a step.

    Returns:
        An Arrow table of ``summary_schema(name)``, one row a bucket and series of rows. ``step`` and the table's own
        columns are those of the bucket's last step; a row without a step is left out.
    """
    found: Any = None
    waiting: list[Any] = []
    n_waiting, origin, width = 0, 0, 1
    for batch in batches:
        rows = pa.Table.from_batches([batch]).filter(pc.is_valid(batch.column("step")))
        if not rows.num_rows:
            continue
        if found is None and not waiting:
            origin = pc.min(rows.column("step")).as_py()
        part = _merged(name, _single(name, rows, origin, width))
        waiting.append(part)
        n_waiting += part.num_rows
        if n_waiting >= MOST_ROWS // 4:
            found, halvings = _bounded(name, [*([] if found is None else [found]), *waiting], buckets)
            waiting, n_waiting, width = [], 0, width * 2**halvings
    tables = [*([] if found is None else [found]), *waiting]
    if not tables:
        return summary_schema(name).empty_table()
    return _public(name, _bounded(name, tables, buckets)[0])


def coarser(name: str, summary: Any, buckets: int) -> Any:
    """Return a summary of at most ``buckets`` buckets, at least one, of a finer one."""
    if _n_buckets(summary) <= buckets:
        return summary
    inner = summary
    for column in _summed(name, summary):
        total = pc.multiply(summary.column(f"{column}_mean"), pc.cast(summary.column(f"{column}_n"), pa.float64()))
        inner = inner.append_column(f"{column}_sum", pc.fill_null(total, 0.0))
    while _n_buckets(inner) > buckets:
        inner = _halved(inner)
    return _public(name, _merged(name, inner)).select(summary.column_names)


def _single(name: str, rows: Any, origin: int, width: int) -> Any:
    """Return rows as summaries of themselves."""
    steps = rows.column("step")
    columns = {"bucket": _bucket(steps, origin, width), "first_step": steps, "n_rows": _ones(len(steps))}
    columns |= {column: rows.column(column) for column in TABLES[name]}
    for column in statistics_of(name):
        values = rows.column(column)
        is_finite = pc.fill_null(pc.is_finite(values), fill_value=False)
        known = pc.if_else(is_finite, values, pa.scalar(None, pa.float64()))
        columns |= {
            f"{column}_min": known,
            f"{column}_max": known,
            f"{column}_sum": pc.fill_null(known, 0.0),
            f"{column}_n": pc.cast(is_finite, pa.int64()),
            f"{column}_nonfinite": pc.cast(pc.and_not(pc.is_valid(values), is_finite), pa.int64()),
        }
    return pa.table(columns)


def _merged(name: str, table: Any) -> Any:
    """Return one row a bucket and series; of several rows with one step the later one is the last."""
    keys = ["bucket", *series_of(name)]
    last = [c for c in TABLES[name] if c not in keys and c != "step" and c in table.column_names]
    steps = table.column("step").combine_chunks()
    if pc.any(pc.less(steps[1:], steps[:-1])).as_py():
        table = table.take(pc.sort_indices(table, sort_keys=[("step", "ascending")]))
    wishes: list[Any] = [("first_step", "min"), ("step", "max"), ("n_rows", "sum")]
    wishes += [(column, "last", _LAST) for column in last]
    wishes += [(f"{column}{part}", how) for column in _summed(name, table) for part, how in _PARTS.items()]
    found = None
    for start in range(0, len(wishes), WISHES_AT_ONCE):
        some = wishes[start : start + WISHES_AT_ONCE]
        part = table.group_by(keys, use_threads=False).aggregate(some)
        # Without threads groups come in the order of their first row: the parts line up.
        names = {f"{column}_{how}": column for column, how, *_ in some}
        part = part.rename_columns([names.get(column, column) for column in part.column_names])
        if found is None:
            found = part
        else:
            for column in names.values():
                found = found.append_column(column, part.column(column))
    return found


def _bounded(name: str, tables: Sequence[Any], buckets: int) -> tuple[Any, int]:
    """Return the tables as one that is short enough, and how many times its buckets were doubled for it."""
    columns = tables[0].column_names
    table = _merged(name, pa.concat_tables([each.select(columns) for each in tables]))
    halvings = 0
    while (n := _n_buckets(table)) > buckets or (n > LEAST_BUCKETS and table.num_rows > MOST_ROWS):
        table = _merged(name, _halved(table))
        halvings += 1
    return table, halvings


def _public(name: str, table: Any) -> Any:
    """Return the table in the columns and the order of a summary."""
    for column in _summed(name, table):
        count = table.column(f"{column}_n")
        divisor = pc.if_else(pc.greater(count, 0), count, pa.scalar(None, pa.int64()))
        table = table.append_column(f"{column}_mean", pc.divide(table.column(f"{column}_sum"), divisor))
    # One order, whatever the batches were.
    order = [(column, "ascending") for column in ("bucket", "step", *series_of(name))]
    table = table.take(pc.sort_indices(table, sort_keys=order))
    return table.select([column for column in summary_schema(name).names if column in table.column_names])


def _summed(name: str, table: Any) -> list[str]:
    """Return the statistics that a table with summed columns holds."""
    return [column for column in statistics_of(name) if f"{column}_n" in table.column_names]


def _bucket(steps: Any, origin: int, width: int) -> Any:
    """Return 0 for the first step, 1 for the ``width`` steps after it, and so on."""
    return pc.cast(pc.ceil(pc.divide(pc.cast(pc.subtract(steps, origin), pa.float64()), float(width))), pa.int64())


def _halved(table: Any) -> Any:
    """Return the table with every two buckets as one, the first bucket alone as before; at last all in one."""
    place = table.column_names.index("bucket")
    if _n_buckets(table) <= 2:
        return table.set_column(place, "bucket", pa.repeat(pa.scalar(0, pa.int64()), table.num_rows))
    return table.set_column(place, "bucket", _bucket(table.column("bucket"), 0, 2))


def _n_buckets(table: Any) -> int:
    return int(pc.count_distinct(table.column("bucket")).as_py())


def _ones(n: int) -> Any:
    return pa.repeat(pa.scalar(1, pa.int64()), n)
