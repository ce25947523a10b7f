"""Diagnose what the biases write into the stream."""

from __future__ import annotations

from typing import Any

import pandas as pd

from .finding import Evidence, Finding
from .frames import largest
from .tables import Tables
from .thresholds import BIAS_SHARE_HIGH, BIAS_SHARE_NOTED, BIAS_SIBLINGS, LEAST_SIBLINGS


def bias_share(tables: Tables) -> list[Finding]:
    """Judge the share of a branch's output that its last bias makes: the same vector at every token."""
    shares = tables.bias_share().dropna()
    if not len(shares):
        return []
    step, first_step = int(shares["step"].max()), int(shares["step"].min())
    last = shares[shares["step"] == step]
    row = largest(last, "bias_share")
    value, first = float(row["bias_share"]), float(shares.loc[shares["step"] == first_step, "bias_share"].max())
    siblings = _siblings(last, row)
    others = float(siblings.median()) if len(siblings) >= LEAST_SIBLINGS else None
    # The first block, which reads bare embeddings, writes little at first, and its bias soon makes much of that.
    is_first = int(row["block"]) == 0
    is_ill = others is not None and not is_first and value > BIAS_SHARE_HIGH and value > BIAS_SIBLINGS * others
    return [
        Finding(
            code="bias-share",
            severity="warning" if is_ill else "info",
            confidence=0.6 if is_ill else 0.9,
            block=int(row["block"]) if value > 0 else None,
            stack=int(row["stack"]) if value > 0 else None,
            component=str(row["branch"]) if value > 0 else "biases",
            module_path="",
            step=step,
            sentence=_sentence(row, step, (first_step, first), others if is_ill else None),
            evidence=Evidence(
                "bias energy / branch output energy",
                value,
                others,
                "median of the same branch in the other blocks"
                if others is not None
                else "no siblings to compare with",
                BIAS_SHARE_HIGH,
            ),
            remedy="Look at this bias against its siblings: its init, its learning rate, whether weight decay spares it."
            if is_ill
            else "None needed.",
            reference="Chowdhery et al. 2022 (PaLM), section 2: no biases, for stability.",
        )
    ]


def _siblings(shares: pd.DataFrame, row: dict[str, Any]) -> pd.Series:
    same = (shares["stack"] == row["stack"]) & (shares["branch"] == row["branch"]) & (shares["block"] != row["block"])
    found: pd.Series = shares.loc[same, "bias_share"]
    return found


def _sentence(row: dict[str, Any], step: int, start: tuple[int, float], others: float | None) -> str:
    value, (first_step, first) = float(row["bias_share"]), start
    if value == 0:
        return f"No output bias contributes yet: all of them are 0 at step {step}."
    moved = f"; at step {first_step} the largest was {first:.2g}" if first_step < step else ""
    head = (
        f"Biases make at most {value:.2g} of a branch's output energy, in the {row['branch']} branch of block "
        f"{int(row['block'])} (step {step}{moved})"
    )
    if value > 1:
        return f"{head}: more than all, since the rest of the branch cancels a part of the bias."
    if others is not None:
        return f"{head}: the branch says mostly the same at every token, and its siblings do not ({others:.2g})."
    if value > BIAS_SHARE_HIGH:
        return f"{head}: the branch says mostly the same at every token."
    return f"{head}: worth watching." if value > BIAS_SHARE_NOTED else f"{head}: little."
