"""Diagnose what the biases write into the stream."""

from __future__ import annotations

from .finding import Evidence, Finding
from .tables import Tables
from .thresholds import BIAS_SHARE_HIGH, BIAS_SHARE_NOTED


def bias_share(tables: Tables) -> list[Finding]:
    """Judge the share of a branch's output that its last bias makes: the same vector at every token."""
    shares = tables.bias_share().dropna()
    if not len(shares):
        return []
    last_step = int(shares["step"].max())
    last = shares[shares["step"] == last_step]
    row = last.loc[last["bias_share"].idxmax()]
    value, first = float(row["bias_share"]), float(shares[shares["step"] == shares["step"].min()]["bias_share"].max())
    others = last["bias_share"].median()
    severity = "warning" if value > BIAS_SHARE_HIGH and value > 4 * others else "info"
    grows = (
        f", up from {first:.2g} at step {int(shares['step'].min())}" if last_step > int(shares["step"].min()) else ""
    )
    judged = (
        "the branch says mostly the same at every token"
        if value > BIAS_SHARE_HIGH
        else "worth watching"
        if value > BIAS_SHARE_NOTED
        else "small"
    )
    return [
        Finding(
            code="bias-share",
            severity=severity,  # type: ignore[arg-type]
            confidence=0.9,
            block=int(row["block"]),
            component=str(row["branch"]),
            module_path="",
            step=last_step,
            sentence=f"The largest bias share is {value:.2g}, in block {int(row['block'])}'s {row['branch']} branch{grows}: "
            f"{judged}.",
            evidence=Evidence("bias energy / branch output energy", value, float(others), "median of all branches"),
            remedy="Drop the biases of the projections, or exclude none of them from weight decay."
            if severity == "warning"
            else "None needed.",
            reference="Chowdhery et al. 2022 (PaLM), section 2: no biases, for stability.",
        )
    ]
