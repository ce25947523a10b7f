"""Read the active checks of a check-up as what they prove: which identities hold on this model, and where one does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from rheoscope.probes.anatomy import LEDGER_TOLERANCE

from .factors import Shared, shared, shared_logit_factor
from .norm_checks import by_role, usual_epsilon
from .tables import Tables
from .thresholds import DROPOUT_APART, LEAST_SIBLINGS, LOGIT_FACTOR_APART, SCALE_APART

COLUMNS = ["check", "stack", "block", "branch", "depth", "observed", "expected", "tolerance", "state", "note"]
PROVES = {
    "ledger": "At every add the sum is what the skip carries plus what the branch writes.",
    "gradient_conservation": "What comes back through a branch is the gradient of what the branch did forward.",
    "repeatability": "In evaluation the same batch gives the same.",
    "causality": "A position never depends on later ones.",
    "samples": "No sample sees another of its batch.",
    "write_scale": "Every block adds what its last projection gives, times the same factor.",
    "write_rest": "Every block adds a multiple of what its last projection gives, and nothing else.",
    "stream_shift": "The stream is what its skips and writes make it, and nothing else.",
    "projection_scale": "What a projection gives is read as it is.",
    "norm_epsilon": "Every norm has the epsilon of its siblings.",
    "norm_backward": "What comes back through a norm is the gradient of its closed form.",
    "attention_scale": "Every block scales its attention logits by the same factor.",
    "dropped_share": "In training every block drops the same share of what it writes.",
    "loss_scale": "The gradient at the logits is that of a mean, or a sum, of cross-entropies.",
    "nonfinite_origin": "Every operation gives finite values.",
}
_BY_DESIGN = ["causality", "samples", "write_rest", "stream_shift", "projection_scale"]  # where most of a class deviate


def exact_checks(tables: Tables) -> pd.DataFrame:
    """Return one row a check and place: check, stack, block, branch, depth, observed, expected, tolerance, state, note.

    ``state`` is ``holds`` or ``deviates``; ``design`` where most of a class deviate (those of an encoder see later positions);
    ``own`` where each block has its own factor (learned, or a schedule over depth) or too few blocks are there to compare, so
    that nothing is claimed. ``tolerance`` is of the absolute difference between observed and expected. The factor of the
    attention logits is judged as ``attention_scale``, by whichever of its two measures the blocks share. A run proves its
    ledger alone; a check-up the rest.
    """
    rows = tables.identities.dropna(subset=["observed"])
    found: list[pd.DataFrame] = [_ledger(tables)]
    for check, expected in (
        ("gradient_conservation", 1.0),
        ("norm_backward", 0.0),
        ("repeatability", 0.0),
        ("causality", 0.0),
        ("samples", 0.0),
        ("write_rest", 0.0),
        ("stream_shift", 0.0),
        ("projection_scale", 1.0),
        ("loss_scale", np.nan),
    ):
        mine = rows[rows["check"] == check]
        if len(mine):
            found.append(_judged(mine, mine["expected"].fillna(expected)))
    ordinary = {(branch.stack, branch.depth) for stack in tables.anatomy.stacks for branch in stack.ordinary}
    has_siblings = np.array([place in ordinary for place in zip(rows["stack"], rows["depth"], strict=True)], bool)
    written = rows["check"] == "write_scale"
    found += [_beside_siblings(group) for group in _classes(rows[written & has_siblings])]
    found.append(_against(rows[written & ~has_siblings], None))
    found += [_epsilons(group) for group in by_role(tables)]
    found += [_dropped(group) for group in _classes(rows[rows["check"] == "dropped_share"])]
    found += _attention(tables)
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
    for group in _classes(
        judged[judged["check"].isin(["causality", "samples", "write_rest", "stream_shift", "projection_scale"])]
    ):
        ill = group.index[group["state"] == "deviates"]
        if len(ill) * 2 >= len(group):
            judged.loc[ill, "state"] = "design"
    return judged


def _beside_siblings(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of one class judged against the factor that nearly all share."""
    return _against(rows, shared(rows["observed"].tolist()))


def _against(rows: pd.DataFrame, usual: Shared | None, least: float = SCALE_APART) -> pd.DataFrame:
    if usual is None:
        return rows.assign(expected=np.nan, tolerance=np.nan, state="own")
    state = ["deviates" if usual.is_apart(value, least) else "holds" for value in rows["observed"].tolist()]
    return rows.assign(expected=usual.value, tolerance=least * abs(usual.value), state=state)


def _epsilons(rows: pd.DataFrame) -> pd.DataFrame:
    usual = usual_epsilon(rows)
    if usual is None:
        return rows.assign(expected=np.nan, tolerance=np.nan, state="own")
    away = (rows["observed"] - usual).abs()
    return rows.assign(expected=usual, state=np.where(away <= rows["tolerance"], "holds", "deviates"))


def _dropped(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the dropped shares of one class judged against their median, each known to the number of its elements."""
    middle = float(rows["observed"].median())
    allowed = (2 * rows["tolerance"]).clip(lower=DROPOUT_APART)
    is_alike = (rows["observed"] - middle).abs() <= allowed
    if len(rows) <= LEAST_SIBLINGS or is_alike.sum() * 4 < 3 * len(rows):
        return rows.assign(expected=np.nan, tolerance=np.nan, state="own")
    return rows.assign(expected=middle, tolerance=allowed, state=np.where(is_alike, "holds", "deviates"))


def _attention(tables: Tables) -> list[pd.DataFrame]:
    """Return the factors of the attention logits, of each class by the measure that its blocks share."""
    rows = tables.identities.dropna(subset=["observed"])
    branches = {(branch.stack, branch.depth): branch for branch in tables.anatomy.branches}
    found: dict[tuple[int, str], pd.DataFrame] = {}
    for check in ("logit_scale", "logit_size"):
        for group in _classes(rows[rows["check"] == check]):
            place = int(group["stack"].iloc[0]), str(group["branch"].iloc[0])
            mine = [branches[key] for key in zip(group["stack"], group["depth"], strict=True) if key in branches]
            usual = shared_logit_factor(check, mine, group["observed"].tolist())
            if usual is not None or place not in found:
                found[place] = _against(group, usual, LOGIT_FACTOR_APART)
    return list(found.values())


def _classes(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the rows of each kind of branch of each stack: blocks that ought to behave alike."""
    for _, group in rows.groupby(["stack", "branch"], sort=False):
        yield group
