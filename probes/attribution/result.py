"""Hold what an attribution found: rows of the recording's table, what they add up to, and what may be said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rheoscope.probes.recording import Recording
from rheoscope.probes.schema import TABLES

from .cost import Cost

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]
COLUMNS = tuple(TABLES["attributions"])


@dataclass(frozen=True)
class Attribution:
    """What an attribution found.

    Attributes:
        method: the question: update, ledger, usefulness or gradient.
        rows: of table attributions, a part each.
        total: what the parts should add up to; None where they do not add up to anything.
        error: how far they are from it, over the total; None without one.
        ranking: the blocks, (stack, block), the most responsible first; empty where none may be named.
        sentences: what was found, and what it does not say.
        cost: what it cost.
    """

    method: str
    rows: tuple[Row, ...]
    total: float | None
    error: float | None
    ranking: tuple[tuple[int, int], ...]
    sentences: tuple[str, ...]
    cost: Cost

    @property
    def is_ranked(self) -> bool:
        """Whether the numbers are good enough to name one block before another."""
        return bool(self.ranking)

    def by_block(self, method: str = "") -> dict[tuple[int, int], float]:
        """Return the sum of the values of every block, by (stack, block), of one method of the rows; by default the first.

        What belongs to no block, -1, is the embedding, the head, or shared by blocks.
        """
        wanted = method or (self.rows[0]["method"] if self.rows else "")
        found: dict[tuple[int, int], float] = {}
        for row in self.rows:
            if row["method"] == wanted and row.get("value") is not None:
                place = (row["stack"], row["block"])
                found[place] = found.get(place, 0.0) + row["value"]
        return found

    def to_frame(self) -> pd.DataFrame:
        """Return one row a part, with the columns of table attributions."""
        import pandas as pd

        return pd.DataFrame([{name: row.get(name) for name in COLUMNS} for row in self.rows], columns=list(COLUMNS))

    def into(self, recording: Recording) -> Recording:
        """Return the recording, in memory, with these rows added to its table attributions: reports show them."""
        return recording.with_rows("attributions", self.rows)

    def __str__(self) -> str:
        """Return the sentences."""
        return " ".join(self.sentences)
