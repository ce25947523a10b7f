"""Diagnose one branch that loses far more than its siblings when it runs in bf16."""

from __future__ import annotations

from .finding import Evidence, Finding
from .frames import records
from .siblings import apart
from .tables import Tables
from .thresholds import BF16_APART, BF16_MATTERS


def bf16_errors(tables: Tables) -> list[Finding]:
    """Report a branch whose write is far further off under bf16 than those of the other blocks are."""
    rows = tables.identities
    rows = rows[(rows["check"] == "bf16_error") & rows["observed"].notna()].sort_values("depth")
    found = []
    for _, group in rows.groupby(["stack", "branch"], sort=False):
        for odd in apart(group["observed"].tolist(), BF16_APART):
            if odd.value < max(BF16_MATTERS, odd.high):
                continue  # exact ones stand apart as well
            row = records(group)[odd.index]
            block, kind = int(row["block"]), str(row["branch"])
            found.append(
                Finding(
                    code="bf16-error",
                    severity="warning",
                    confidence=0.5,
                    block=block,
                    stack=int(row["stack"]),
                    component=kind,
                    module_path="",
                    step=0,
                    sentence=f"Under bf16 autocast the {kind} branch of block {block} alone is {odd.value:.2g} of its write off: "
                    f"{odd.words}.",
                    evidence=Evidence(
                        "error of the write / write",
                        odd.value,
                        odd.middle,
                        "the same branch of the other blocks",
                        BF16_MATTERS,
                    ),
                    remedy="Keep this branch in float32, or look for what is large in it and taken away again: logits, offsets.",
                )
            )
    return found
