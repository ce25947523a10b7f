"""Make Arrow arrays of numbers and texts straight from their buffers.

``pyarrow.array`` and ``pyarrow.scalar`` import pandas to ask whether they were given something of it: 40 MiB and a quarter of
a second in a training process that has no other use for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

_NUMBERS = {pa.int64(): np.int64, pa.float64(): np.float64}


def arrow(values: Any, kind: Any) -> Any:
    """Return an Arrow array of ``kind``: int64, float64, bool or string; None becomes null, and NaN stays what it is.

    Args:
        values: an Arrow array, a numpy array, or a sequence.
        kind: the Arrow type.

    Raises:
        TypeError, ValueError, OverflowError: a value does not fit the type.
    """
    if isinstance(values, pa.Array):
        return values if values.type == kind else values.cast(kind)
    absent = None if isinstance(values, np.ndarray) else np.array([value is None for value in values], dtype=bool)
    if absent is not None and not absent.any():
        absent = None
    if pa.types.is_string(kind):
        return _texts(["" if value is None else value for value in values], absent)
    if absent is not None:  # a null's own number is never seen
        values = [0 if value is None else value for value in values]
    if pa.types.is_boolean(kind):
        return _array(kind, len(values), [_bits(np.asarray(values, dtype=bool))], absent)
    found = np.asarray(values)
    if kind == pa.int64() and found.dtype.kind not in "iub" and found.size:
        raise TypeError(f"Expected integers, got {found.dtype}: {found[0]!r} is the first.")
    numbers = np.ascontiguousarray(found, dtype=_NUMBERS[kind])
    return _array(kind, len(numbers), [pa.py_buffer(numbers)], absent)


def nullable(values: np.ndarray) -> Any:
    """Return an Arrow array of float64 with null where a value is NaN: absence is recorded as absence."""
    numbers = np.ascontiguousarray(values, dtype=np.float64)
    absent = np.isnan(numbers)
    return _array(pa.float64(), len(numbers), [pa.py_buffer(numbers)], absent if absent.any() else None)


def _texts(values: Sequence[str], absent: np.ndarray | None) -> Any:
    parts = [value.encode() for value in values]
    ends = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum([len(part) for part in parts], out=ends[1:])
    return _array(pa.string(), len(parts), [pa.py_buffer(ends), pa.py_buffer(b"".join(parts))], absent)


def _array(kind: Any, n: int, buffers: list[Any], absent: np.ndarray | None) -> Any:
    validity = None if absent is None else _bits(~absent)
    return pa.Array.from_buffers(kind, n, [validity, *buffers])


def _bits(values: np.ndarray) -> Any:
    return pa.py_buffer(np.packbits(values, bitorder="little"))
