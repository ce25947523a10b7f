"""Ways to damage a recording, from a flipped bit to columns that lie. Each takes the folder and a source of chance."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Mutation = Callable[[Path, random.Random], None]
HUGE = 2**62
HOSTILE_TEXTS = (
    "<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "{{ 7 * 7 }}{% for x in () %}", "../../etc/passwd",
    "/etc/passwd", "\x00\x1b[31m\x07", "\u202egnp.exe", "a" * 9_000, "$(touch /tmp/owned)", "`id`", "${jndi:ldap://x}",
    "%s%s%n", "[bold red]", "cos\nsystem\n(S'id'\ntR.", "", " ", "None", "nan", "-1", "__class__", "constructor", "__proto__",
)  # fmt: skip
HOSTILE_NUMBERS = (math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0, -1.0)
HOSTILE_INTEGERS = (-1, 0, HUGE, -HUGE, 10**9, 2**31, 255)
HOSTILE_VALUES: tuple[Any, ...] = (
    None, True, [], {}, [[]], {"a": {}}, *HOSTILE_TEXTS, *HOSTILE_NUMBERS, *HOSTILE_INTEGERS, [1] * 2_000, 10**400
)  # fmt: skip


def flipped_bytes(folder: Path, chance: random.Random) -> None:
    """Flip bits anywhere in a file."""
    path = _file(folder, chance)
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 3, 30))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data))


def overwritten(folder: Path, chance: random.Random) -> None:
    """Overwrite a stretch with noise, zeros or ones: lengths and offsets among it."""
    path = _file(folder, chance)
    data = bytearray(path.read_bytes())
    size = min(len(data), chance.choice((1, 4, 8, 64, 512)))
    start = chance.randrange(len(data) - size + 1)
    data[start : start + size] = chance.choice((bytes(size), b"\xff" * size, chance.randbytes(size)))
    path.write_bytes(bytes(data))


def truncated(folder: Path, chance: random.Random) -> None:
    """Cut a file anywhere, its last bytes among the likeliest."""
    path = _file(folder, chance)
    size = path.stat().st_size
    cut = chance.choice((0, 1, chance.randrange(size), max(0, size - chance.randrange(1, 64))))
    path.write_bytes(path.read_bytes()[:cut])


def grown(folder: Path, chance: random.Random) -> None:
    """Append noise, or the file itself."""
    path = _file(folder, chance)
    data = path.read_bytes()
    path.write_bytes(data + chance.choice((data, chance.randbytes(chance.randrange(1, 5_000)))))


def missing(folder: Path, chance: random.Random) -> None:
    """Delete one file, or all of one kind."""
    path = _file(folder, chance)
    for other in folder.glob(chance.choice((path.name, f"*{path.suffix}"))):
        other.unlink()


def swapped(folder: Path, chance: random.Random) -> None:
    """Give one table the bytes of another, or of a picture."""
    one, other = _file(folder, chance), _file(folder, chance)
    one.write_bytes(
        chance.choice((other.read_bytes(), b"\x89PNG\r\n\x1a\n" + chance.randbytes(500), b"", b"PK\x03\x04"))
    )


def linked(folder: Path, chance: random.Random) -> None:
    """Put a symbolic link, a folder or a pipe in the place of a file."""
    path = _file(folder, chance)
    path.unlink()
    kind = chance.randrange(6)
    if kind == 4:
        path.mkdir()
    elif kind == 5:
        os.mkfifo(path)
    else:
        targets = ("/etc/passwd", "/dev/zero", str(path), str(folder.parent / "secret.txt"))
        path.symlink_to(targets[kind])


def lying_manifest(folder: Path, chance: random.Random) -> None:
    """Replace one value of the manifest, at any depth, by something hostile."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    for _ in range(chance.choice((1, 1, 2, 10))):
        holder, key = chance.choice(list(_places(document)))
        holder[key] = chance.choice(HOSTILE_VALUES)
    path.write_text(json.dumps(document), encoding="utf-8", errors="surrogatepass")


def lost_in_manifest(folder: Path, chance: random.Random) -> None:
    """Take values out of the manifest, or repeat them."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    holder, key = chance.choice(list(_places(document)))
    if isinstance(holder, list):
        holder.extend([holder[key]] * chance.choice((1, 3, 200)))
    else:
        del holder[key]
    path.write_text(json.dumps(document), encoding="utf-8")


def lying_column(folder: Path, chance: random.Random) -> None:
    """Rewrite a table with hostile values in some rows of a column: well-formed, of the right type, and false."""
    path, table = _table(folder, chance)
    index = chance.randrange(table.num_columns)
    field, column = table.schema.field(index), table.column(index).to_pylist()
    choices: tuple[Any, ...] = (None,)
    if pa.types.is_floating(field.type):
        choices += HOSTILE_NUMBERS
    elif pa.types.is_integer(field.type):
        choices += HOSTILE_INTEGERS
    elif pa.types.is_string(field.type):
        choices += HOSTILE_TEXTS
    elif pa.types.is_boolean(field.type):
        choices += (True, False)
    share = chance.choice((0.02, 0.5, 1.0))
    value = chance.choice(choices)
    lies = [value if chance.random() < share else old for old in column]
    try:
        told = pa.array(lies, field.type)
    except (pa.ArrowInvalid, OverflowError):
        told = pa.array([None] * len(lies), field.type)
    _write(path, table.set_column(index, field, told))


def other_columns(folder: Path, chance: random.Random) -> None:
    """Rewrite a table with a column less, one more, one of another type, or the columns in another order."""
    path, table = _table(folder, chance)
    index = chance.randrange(table.num_columns)
    field = table.schema.field(index)
    kind = chance.randrange(4)
    if kind == 0:
        table = table.remove_column(index)
    elif kind == 1:
        table = table.append_column("payload", pa.array(["x"] * len(table)))
    elif kind == 2:
        table = table.set_column(index, field.name, pc.cast(pa.array(range(len(table))), pa.string()))
    else:
        table = table.select(chance.sample(table.schema.names, table.num_columns))
    _write(path, table)


def other_rows(folder: Path, chance: random.Random) -> None:
    """Rewrite a table without rows, with one, with all of them many times, or in another order."""
    path, table = _table(folder, chance)
    order = list(range(len(table)))
    chance.shuffle(order)
    kept: list[int] = chance.choice(([], order[:1], order, order * 7, [0] * 500 if order else []))
    _write(path, table.take(pa.array(kept, pa.int64())))


def strange_files(folder: Path, chance: random.Random) -> None:
    """Lay files beside the tables whose names look like theirs."""
    names = (
        "steps.9999.arrow",
        "activations.00.arrow",
        "steps.parquet.tmp",
        "-rf",
        "manifest.json.tmp",
        "tables.pickle",
    )
    for name in chance.sample(names, 3):
        (folder / name).write_bytes(chance.choice((b"", chance.randbytes(300), b"cos\nsystem\n(S'id'\ntR.")))


MUTATIONS: tuple[Mutation, ...] = (
    flipped_bytes, overwritten, truncated, grown, missing, swapped, linked, lying_manifest, lost_in_manifest, lying_column,
    other_columns, other_rows, strange_files,
)  # fmt: skip


def _file(folder: Path, chance: random.Random) -> Path:
    return chance.choice(sorted(path for path in folder.iterdir() if path.is_file() and path.stat().st_size))


def _table(folder: Path, chance: random.Random) -> tuple[Path, Any]:
    path = chance.choice(sorted(p for p in folder.iterdir() if p.suffix in (".parquet", ".arrow")))
    if path.suffix == ".parquet":
        return path, pq.read_table(path)
    with pa.OSFile(str(path), "rb") as source:
        return path, pa.ipc.open_stream(source).read_all()


def _write(path: Path, table: Any) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)
