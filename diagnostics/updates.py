"""Diagnose parameters that move too far or not at all."""

from __future__ import annotations

from .finding import Evidence, Finding
from .tables import Tables
from .thresholds import UPDATE_JUDGED_AFTER, UPDATE_RATIO_HIGH, UPDATE_SIBLINGS


def update_ratio(tables: Tables) -> list[Finding]:
    """Judge update RMS over weight RMS per block, against a limit and against the sibling blocks."""
    ratios = tables.update_ratios()
    late = ratios[ratios["step"] >= UPDATE_JUDGED_AFTER].dropna()
    if not len(late):
        return []
    by_block = late.groupby(["stack", "block"])["ratio"].median()
    middle = float(by_block.median())
    found = []
    for (stack, block), value in by_block.items():
        apart = middle > 0 and len(by_block) > 2 and value > UPDATE_SIBLINGS * middle
        if value > UPDATE_RATIO_HIGH or apart:
            found.append(_too_far(int(stack), int(block), float(value), middle, apart=bool(apart)))
    if found:
        return found
    step = int(late["step"].max())
    return [
        Finding(
            code="update-ratio",
            severity="info",
            confidence=0.8,
            block=None,
            component="weights",
            module_path="",
            step=step,
            sentence=f"An optimizer step moves the blocks' weights by {middle:.2g} of their size (median over blocks).",
            evidence=Evidence("update RMS / weight RMS", middle, 1e-3, "about 1e-3 is common", UPDATE_RATIO_HIGH),
            remedy="None needed.",
            reference="A rule of thumb; no paper.",
        )
    ]


def _too_far(stack: int, block: int, value: float, middle: float, *, apart: bool) -> Finding:
    against = f"{value / middle:.0f} times the median of its siblings" if apart else "a tenth of the weight or more"
    return Finding(
        code="update-ratio",
        severity="warning",
        confidence=0.8 if apart else 0.6,
        block=block,
        component=f"stack {stack} weights",
        module_path="",
        step=UPDATE_JUDGED_AFTER,
        sentence=f"One step moves the weights of block {block} by {value:.2g} of their size: {against}.",
        evidence=Evidence(
            "update RMS / weight RMS", value, middle if apart else 1e-3, "siblings" if apart else "rule of thumb 1e-3"
        ),
        remedy="Lower this parameter group's learning rate, or lengthen the warm-up.",
    )


def untrained(tables: Tables) -> list[Finding]:
    """Report trainable weights inside blocks that never received a gradient while others did."""
    rows = tables.parameters
    if not len(rows) or not (rows["gradient_state"] == "value").any():
        return []
    never = rows.groupby("name").filter(lambda group: bool((group["gradient_state"] == "none").all()))
    names = sorted(never["name"].unique())
    if not names:
        return []
    first = never.iloc[0]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return [
        Finding(
            code="no-gradient",
            severity="info",  # frozen on purpose (adapters) and forgotten look alike; requires_grad settles it later
            confidence=1.0,
            block=int(first["block"]) if first["block"] >= 0 else None,
            component=str(first["branch"]),
            module_path=str(first["name"]),
            step=int(first["step"]),
            sentence=f"{len(names)} parameters never received a gradient: {shown}.",
            evidence=Evidence(
                "parameters without a gradient", float(len(names)), 0.0, "every trainable one receives one"
            ),
            remedy="Fine if they are frozen on purpose; otherwise look for a detach, or for an input without gradients.",
        )
    ]
