"""Diagnose attention logits far beyond those of siblings that differ among themselves, as blocks do once they are trained."""

from __future__ import annotations

from collections.abc import Sequence

from rheoscope.probes.anatomy import Branch

from .finding import Evidence, Finding
from .siblings import apart
from .thresholds import LOGITS_APART_AT_ENDS


def far_logits(branches: Sequence[Branch], sizes: Sequence[float]) -> list[Finding]:
    """Report the branches whose logits stand above all others; the first only where a norm bounds what it reads.

    Args:
        branches: of one kind and stack.
        sizes: of each, the factor of its logits times the RMS of a median token's queries and keys.
    """
    return [
        Finding(
            code="attention-scale",
            severity="warning",
            confidence=0.8,
            block=branch.block,
            stack=branch.stack,
            component=branch.kind,
            module_path=branch.module_path,
            step=0,
            sentence=f"The attention logits of a median token in block {branch.block} are of size {odd.value:.3g}: {odd.words}.",
            evidence=Evidence(
                "factor x RMS of queries and keys", odd.value, odd.middle, "the other blocks", LOGITS_APART_AT_ENDS
            ),
            remedy="Look at the factor of this block's logits, and at what scales its queries and keys.",
        )
        for odd in apart(sizes, LOGITS_APART_AT_ENDS)
        for branch in (branches[odd.index],)
        if odd.value > odd.high and (branch.depth > 1 or branch.placement in ("pre", "double"))
    ]
