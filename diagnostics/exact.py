"""Read the active checks of a check-up as what they prove: which identities hold on this model, and where one does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from .tables import Tables
from .thresholds import DROPOUT_APART, LEAST_SIBLINGS, SCALE_ALIKE, SCALE_APART

COLUMNS = ["check", "stack", "block", "branch", "depth", "observed", "expected", "tolerance", "state", "note"]
PROVES = {
    "ledger": "At every add the sum is what the skip carries plus what the branch writes.",
    "gradient_conservation": "What comes back through a branch is the gradient of what the branch did forward.",
    "causality": "A position never depends on later ones.",
    "write_scale": "Every block adds what its last projection gives, times the same factor.",
    "attention_scale": "Every block scales its attention logits by the same factor.",
    "dropped_share": "In training every block drops the same share of what it writes.",
    "loss_scale": "The gradient at the logits is that of a mean, or a sum, of cross-entropies.",
    "nonfinite_origin": "Every operation gives finite values.",
}


def exact_checks(tables: Tables) -> pd.DataFrame:
    """Return one row a check and place: check, stack, block, branch, depth, observed, expected, tolerance, state, note.

    ``state`` is ``holds`` or ``deviates``; ``design`` where most blocks of a class see later positions, as an encoder does;
    ``own`` where each block has its own factor (learned, or a schedule over depth) or too few blocks are there to compare, so
    that nothing is claimed. ``tolerance`` is of the absolute difference between observed and expected. The factor of the
    attention logits is judged as ``attention_scale``, by whichever of its two measures the blocks share. A run proves its
    ledger alone; a check-up the rest.
    """
    rows = tables.identities.dropna(subset=["observed"])
    found: list[pd.DataFrame] = [_ledger(tables)]
    for check, expected in (("gradient_conservation", 1.0), ("causality", 0.0), ("loss_scale", np.nan)):
        mine = rows[rows["check"] == check]
        if len(mine):
            found.append(_judged(mine, mine["expected"].fillna(expected)))
    for check in ("write_scale", "dropped_share"):
        found += [_beside_siblings(group) for group in _classes(rows[rows["check"] == check])]
    found += _attention(rows)
    origins = rows[rows["check"] == "nonfinite_origin"]
    if len(origins):
        found.append(origins.assign(state="deviates"))
    whole = pd.concat([frame for frame in found if len(frame)] or [pd.DataFrame(columns=COLUMNS)], ignore_index=True)
    whole["check"] = whole["check"].replace({"logit_scale": "attention_scale", "logit_size": "attention_scale"})
    return whole.reindex(columns=COLUMNS)


def by_check(checks: pd.DataFrame) -> pd.DataFrame:
    """Return one row a check: check, proves, places, hold, deviate, not_claimed, furthest, tolerance.

    ``furthest`` is the largest difference between observed and expected where something is claimed.
    """
    rows = []
    for check, proves in PROVES.items():
        mine = checks[checks["check"] == check]
        if len(mine):
            claimed = mine[mine["state"].isin(["holds", "deviates"])]
            away = (claimed["observed"] - claimed["expected"]).abs()
            rows.append(
                {
                    "check": check,
                    "proves": proves,
                    "places": len(mine),
                    "hold": int((mine["state"] == "holds").sum()),
                    "deviate": int((mine["state"] == "deviates").sum()),
                    "not_claimed": len(mine) - len(claimed),
                    "furthest": float(away.max()) if away.notna().any() else None,
                    "tolerance": float(claimed["tolerance"].max()) if claimed["tolerance"].notna().any() else None,
                }
            )
    names = ["check", "proves", "places", "hold", "deviate", "not_claimed", "furthest", "tolerance"]
    return pd.DataFrame(rows, columns=names)


def _ledger(tables: Tables) -> pd.DataFrame:
    """Return the ledger as the check-up wrote it; of a run, as discovery proved it."""
    rows = tables.identities
    rows = rows[(rows["check"] == "ledger") & rows["observed"].notna()]
    if not len(rows):
        rows = pd.DataFrame(list(_proven(tables)), columns=[c for c in COLUMNS if c != "state"])
    return _judged(rows, rows["expected"].fillna(0.0))


def _proven(tables: Tables) -> Iterator[dict[str, Any]]:
    from rheoscope.probes.anatomy import LEDGER_TOLERANCE

    for branch in tables.anatomy.branches:
        if branch.ledger_error is not None:
            yield {
                "check": "ledger",
                "stack": branch.stack,
                "block": branch.block,
                "branch": branch.kind,
                "depth": branch.depth,
                "observed": branch.ledger_error,
                "expected": 0.0,
                "tolerance": LEDGER_TOLERANCE,
                "note": "relative error of sum = scale * skip + write, found by discovery",
            }


def _judged(rows: pd.DataFrame, expected: pd.Series) -> pd.DataFrame:
    relative = rows["check"] == "loss_scale"  # 1 for a mean, the number of tokens for a sum
    allowed = rows["tolerance"] * expected.where(relative, 1.0)
    away = (rows["observed"] - expected).abs()
    state = np.where(away <= allowed, "holds", "deviates")
    judged = rows.assign(expected=expected, tolerance=allowed, state=state)
    for group in _classes(judged[judged["check"] == "causality"]):
        ill = group.index[group["state"] == "deviates"]
        if len(ill) * 2 >= len(group):
            judged.loc[ill, "state"] = "design"
    return judged


def _beside_siblings(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of one class judged against their median, where nearly all share it."""
    middle = float(rows["observed"].median())
    away = (rows["observed"] - middle).abs()
    if (rows["check"] == "dropped_share").all():
        allowed = (2 * rows["tolerance"]).clip(lower=DROPOUT_APART)
        is_shared = (away <= allowed).sum() * 4 >= 3 * len(rows)
    else:
        allowed = pd.Series(SCALE_APART * abs(middle), index=rows.index)
        is_shared = (away <= SCALE_ALIKE * abs(middle)).sum() * 4 >= 3 * len(rows)
    judged = rows.assign(expected=middle, tolerance=allowed)
    if len(rows) <= LEAST_SIBLINGS or not is_shared:
        return judged.assign(expected=np.nan, tolerance=np.nan, state="own")
    return judged.assign(state=np.where(away <= allowed, "holds", "deviates"))


def _attention(rows: pd.DataFrame) -> list[pd.DataFrame]:
    sizes = {_place(group): _beside_siblings(group) for group in _classes(rows[rows["check"] == "logit_size"])}
    found = []
    for group in _classes(rows[rows["check"] == "logit_scale"]):
        judged = _beside_siblings(group)
        other = sizes.get(_place(group), judged)
        found.append(other if (judged["state"] == "own").all() else judged)
    return found


def _classes(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the rows of each kind of branch of each stack: blocks that ought to behave alike."""
    for _, group in rows.groupby(["stack", "branch"], sort=False):
        yield group


def _place(group: pd.DataFrame) -> tuple[int, str]:
    return int(group["stack"].iloc[0]), str(group["branch"].iloc[0])
