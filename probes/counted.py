"""Hold what one row of a table is made of: sums and maxima, which join over micro-batches of several ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Counted:
    """One row of a table before anything is divided.

    Attributes:
        table: its name.
        place: columns that tell it from the step's other rows, and what else its statistics need to know.
        sums: add up over the tokens of several ranks; NaN stands for not measured.
        peaks: of them the largest counts.
    """

    table: str
    place: Mapping[str, Any]
    sums: tuple[float, ...]
    peaks: tuple[float, ...] = ()
