"""Hold what one forward and its backward gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .padding import Unpadded
from .paths import PathSums
from .rounding import Rounding
from .statistics import Sheet


@dataclass
class Reading:
    """What one forward and its backward gave.

    Attributes:
        sums: rows of points forward, then of the same backward.
        paths: the two paths by which each add's gradient reaches the state before.
        rounding: what each add rounded away.
        biases: sums of squares of the branches' output biases.
        came_back: rows whose gradient has been seen.
        copies: rows that hold what another row was measured to be, as (row, source).
        writes: row of a gradient that is a write's under another name -> its add, and the row of the sum's gradient.
        shown: the tensor measured last in the forward (a weak reference), its version, row and flags.
        is_repeated: whether some gradient came back twice; the last one counts.
        meter: what fills ``sums``: themselves, or, where a mask tells padding, what leaves it out.
    """

    sums: Sheet
    paths: PathSums
    rounding: Rounding
    biases: Tensor
    came_back: set[int] = field(default_factory=set)
    copies: list[tuple[int, int]] = field(default_factory=list)
    writes: dict[int, tuple[int, int]] = field(default_factory=dict)
    shown: tuple[Any, int, int, int] | None = None
    is_repeated: bool = False
    meter: Sheet | Unpadded = field(init=False)

    def __post_init__(self) -> None:
        """Measure every token."""
        self.meter = self.sums
