"""Tell whether training has got worse since a step: what looks odd and harms nothing is a remark."""

from __future__ import annotations

from .tables import Tables

LOSSES = 10  # steps whose median stands for a time: one batch is none


def is_harmed(tables: Tables, step: int) -> bool:
    """Return whether the loss at the end of the run is no lower than up to ``step``; False where it is not known."""
    losses = tables.losses.dropna(subset=["loss"])
    before = losses.loc[losses["step"] <= step, "loss"].tail(LOSSES)
    after = losses.loc[losses["step"] > step, "loss"].tail(LOSSES)
    return bool(len(before) and len(after) and after.median() >= before.median())
