"""Diagnose writes that are rounded away as they are added to a stream of 16 bits."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .finding import Evidence, Finding
from .frames import groups, largest
from .steadiness import order
from .tables import Tables
from .thresholds import FORECAST_ORDERED, LEAST_BLOCKS, ROUNDED_GROWS, ROUNDED_HIGH, ROUNDED_MOST, ROUNDED_NOTED

_LAST = 3  # sampled steps whose median is judged


def rounded_writes(tables: Tables) -> list[Finding]:
    """Judge the share of each write's energy that rounding takes as it is added.

    Rounding to the nearest of numbers an ulp apart errs by ulp / sqrt(12), whatever the write: the share is
    ulp^2 / (12 write^2). It is 1/2 at a write of 0.41 ulp, about where whole writes round to nothing: |write| < ulp(state) / 2.
    """
    rows = rounded_shares(tables)
    found = []
    for (stack,), group in groups(rows, "stack"):
        steps = np.sort(group["step"].unique())
        start, end = _shares(group, steps[:1]), _shares(group, steps[-_LAST:])
        if float(end["rounded_share"].max()) >= ROUNDED_NOTED:
            found.append(_finding(tables, stack, int(steps[-1]), end))
        elif float(start["rounded_share"].max()) > ROUNDED_HIGH:
            found.append(_finding(tables, stack, int(steps[0]), start, is_past=True))
    return found


def rounded_shares(tables: Tables) -> pd.DataFrame:
    """Return step, stack, depth, block, branch, rounded_share: of sampled steps, or of a check-up."""
    rows = tables.activations
    rows = rows[(rows["site"] == "write") & (rows["direction"] == "forward") & rows["rounded_share"].notna()]
    columns = ["step", "stack", "depth", "block", "branch", "rounded_share"]
    if len(rows):
        return rows[columns]
    # A check-up sees adds of several terms too.
    checks = tables.identities
    checks = checks[(checks["check"] == "rounded_share") & checks["observed"].notna()]
    return checks.assign(step=0, rounded_share=checks["observed"])[columns]


def _shares(rows: pd.DataFrame, steps: np.ndarray) -> pd.DataFrame:
    """Return depth, block, branch, rounded_share: the median over some steps."""
    chosen = rows[rows["step"].isin(steps)]
    return chosen.groupby(["depth", "block", "branch"], as_index=False)[["rounded_share"]].median()


def _finding(tables: Tables, stack: int, step: int, shares: pd.DataFrame, *, is_past: bool = False) -> Finding:
    top = largest(shares, "rounded_share")
    value, usual = float(top["rounded_share"]), float(shares["rounded_share"].median())
    lost = shares[shares["rounded_share"] > ROUNDED_MOST]
    grows = value > ROUNDED_HIGH and _rises(shares)
    is_ill = (len(lost) > 0 or grows) and not is_past
    more = (
        f"; {len(lost)} of {len(shares)} branches lose more than half"
        if len(lost) > 1
        else "; the share grows with depth"
        if grows
        else ""
    )
    return Finding(
        code="rounded-writes",
        severity="warning" if is_ill else "info",
        confidence=0.9,
        block=int(top["block"]) if lost["block"].nunique() < 2 else None,
        stack=int(stack),
        component=str(top["branch"]),
        module_path="",
        step=step,
        sentence=f"Rounding takes {value:.0%} of the energy that the {top['branch']} branch of block {int(top['block'])} "
        f"writes into the 16-bit stream{tables.stack_name(stack)} at step {step:,} ({usual:.2g} at the median branch){more}"
        + ("; less than a hundredth at the end of the run." if is_past else "."),
        evidence=Evidence(
            "energy lost to rounding / energy of the write",
            value,
            usual,
            "ulp(state)^2 / (12 write^2): a write below half an ulp of the state is lost whole",
            ROUNDED_MOST if len(lost) else ROUNDED_HIGH,
        ),
        remedy="Keep the residual stream in float32 (autocast does), or make the state smaller beside what is written: the "
        "embedding's scale, a norm on the stream."
        if is_ill
        else "None needed.",
        reference="IEEE 754 rounding to nearest; bfloat16 holds 8 bits.",
    )


def _rises(shares: pd.DataFrame) -> bool:
    """Return whether the share grows with depth: in order, and by a factor, over the blocks."""
    values = shares.groupby("block")["rounded_share"].max().to_numpy(float)
    if len(values) < LEAST_BLOCKS or not (values > 0).all():
        return False
    return order(values) > FORECAST_ORDERED and bool(values[-1] > ROUNDED_GROWS * values[0])
