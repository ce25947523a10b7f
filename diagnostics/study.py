"""Hold what a controlled experiment found: figures measured beside figures published, and what they were read off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

AGREES, DIFFERS, UNSETTLED = "agrees", "differs", "not settled at this scale"


@dataclass(frozen=True)
class Study:
    """An experiment that was carried out.

    Attributes:
        name: by which it is called.
        question: that it answers.
        source: the paper that it is held against.
        claims: one row a figure: ``what``, ``measured`` (with its interval over seeds), ``published``, ``source``, ``verdict``:
            agrees, differs or not settled at this scale.
        variants: one row a variant, as a reader sees it.
        curves: tidy rows ``chart``, ``series``, ``x``, ``y``, ``low``, ``high``; the name of a chart reads "vertical axis against
            horizontal axis".
        notes: what does not reproduce at this scale, and what was not measured, in sentences.
        setting: how it was carried out, as pairs of a term and its text.
        is_quick: whether it was carried out small, with few seeds and learning rates.
    """

    name: str
    question: str
    source: str
    claims: pd.DataFrame
    variants: pd.DataFrame
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: Sequence[str] = ()
    setting: Sequence[tuple[str, str]] = ()
    is_quick: bool = False

    def n(self, verdict: str) -> int:
        """Return how many figures have this verdict."""
        return int((self.claims["verdict"] == verdict).sum()) if len(self.claims) else 0

    @property
    def sentence(self) -> str:
        """How many figures agree, differ and are not settled, in words."""
        said = []
        for verdict, one, many in (
            (AGREES, "agrees", "agree"),
            (DIFFERS, "differs", "differ"),
            (UNSETTLED, "is", "are"),
        ):
            n = self.n(verdict)
            if n:
                said.append(
                    f"{n} {one if n == 1 else many}" + (" not settled at this scale" if verdict == UNSETTLED else "")
                )
        if not said:
            return "Nothing was measured."
        return f"Of {len(self.claims)} figures measured beside published ones {', '.join(said)}."
