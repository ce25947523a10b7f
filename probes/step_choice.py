"""Choose rows by their steps, as Python chooses from a range, and tell which spans of steps hold none of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from operator import index
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .errors import RecordingError

Steps = int | range | slice | Iterable[int]


class StepChoice:
    """One step, a range or slice of steps (its ends as in Python), or a set of them."""

    def __init__(self, steps: Steps) -> None:
        """Take the steps.

        Raises:
            RecordingError: a range that counts down, or begins before step 0.
        """
        self._wanted: list[int] | None = None
        self._start, self._stop, self._stride = 0, None, 1
        if not isinstance(steps, slice | range):
            listed = list(steps) if isinstance(steps, Iterable) else [steps]
            self._wanted = sorted({index(step) for step in listed})
            return
        self._start, self._stop, self._stride = (
            steps.start or 0,
            steps.stop,
            1 if steps.step is None else steps.step,
        )
        if self._stride < 1 or self._start < 0 or (self._stop is not None and self._stop < 0):
            raise RecordingError(
                f"Expected a range of steps that counts up from 0 or later, got {steps}. Steps are numbered from 0; "
                "pass their numbers."
            )

    def may_hold(self, low: int, high: int) -> bool:
        """Return whether any chosen step may lie between ``low`` and ``high``, both included."""
        if self._wanted is not None:
            place = bisect_left(self._wanted, low)
            return place < len(self._wanted) and self._wanted[place] <= high
        return high >= self._start and (self._stop is None or low < self._stop)

    def of(self, steps: Any) -> Any:
        """Return which values of the Arrow array ``steps`` are chosen."""
        if self._wanted is not None:
            return pc.is_in(steps, value_set=pa.array(self._wanted, pa.int64()))
        mask = pc.greater_equal(steps, self._start)
        if self._stop is not None:
            mask = pc.and_(mask, pc.less(steps, self._stop))
        if self._stride > 1:
            offset = pc.subtract(steps, self._start)
            mask = pc.and_(mask, pc.equal(offset, pc.multiply(pc.divide(offset, self._stride), self._stride)))
        return mask
