"""Say which blocks hardly turn the stream, and whether the gradient comes down by the skips or by the branches."""

from __future__ import annotations

import pandas as pd

from .finding import Evidence, Finding
from .frames import groups, largest
from .freshness import is_fresh
from .tables import Tables
from .thresholds import BRANCH_CARRIES, IDLE_ANGLE, IDLE_SIBLINGS, LEAST_SIBLINGS


def idle_blocks(tables: Tables) -> list[Finding]:
    """Remark on blocks of a trained model that turn the tokens' states by far less than the median block."""
    rows = tables.tokens().dropna(subset=["angular_distance"])
    rows = rows[rows["block"] >= 0]
    if not len(rows) or is_fresh(tables, int(rows["step"].max())):
        return []  # at init small writes turn little, by design
    found = []
    for (stack,), group in groups(rows[rows["step"] == rows["step"].max()], "stack"):
        middle = float(group["angular_distance"].median())
        idle = group[(group["angular_distance"] < IDLE_ANGLE) & (group["angular_distance"] * IDLE_SIBLINGS < middle)]
        if not len(idle) or len(group) <= LEAST_SIBLINGS:
            continue
        blocks = [int(block) for block in idle["block"]]
        least = float(idle["angular_distance"].min())
        words = f"Block {blocks[0]} turns" if len(blocks) == 1 else f"Blocks {', '.join(map(str, blocks[:8]))} turn"
        found.append(
            Finding(
                code="idle-block",
                severity="info",
                confidence=0.8,
                block=blocks[0] if len(blocks) == 1 else None,
                stack=int(stack),
                component=f"stack {stack}",
                module_path="",
                step=int(group["step"].max()),
                sentence=f"{words} the tokens' states{tables.stack_name(stack)} by at least {least:.2g} of a half turn; the "
                f"median block by {middle:.2g}: idle.",
                evidence=Evidence("angle between states / pi", least, middle, "median of the blocks", IDLE_ANGLE),
                remedy="Look at whether these blocks still learn: their norms' gains, their gradients; a model without them "
                "may do.",
                reference="Gromov et al. 2024; Sun et al. 2025 (curse of depth).",
            )
        )
    return found


def gradient_shares(tables: Tables) -> list[Finding]:
    """Remark where the gradient comes down more through branches than along the skips: no identity carries it there."""
    rows = tables.paths().dropna(subset=["skip_rms", "branch_rms"])
    rows = rows[rows["step"] == rows["step"].max()] if len(rows) else rows
    energy = rows["skip_rms"] ** 2 + rows["branch_rms"] ** 2
    shares = pd.DataFrame(rows.assign(share=rows["branch_rms"] ** 2 / energy.where(energy > 0))).dropna(
        subset=["share"]
    )
    found = []
    # The first block reads the embedding, whose size beside what is written is a choice of its own.
    for (stack,), group in groups(shares[shares["block"] > 0], "stack"):
        carried = group[group["share"] > BRANCH_CARRIES]
        if not len(carried):
            continue
        row = largest(group, "share")
        found.append(
            Finding(
                code="gradient-by-branches",
                severity="info",
                confidence=0.9,
                block=int(row["block"]),
                stack=int(stack),
                component=str(row["branch"]),
                module_path="",
                step=int(row["step"]),
                sentence=f"At {len(carried)} of {len(group)} adds{tables.stack_name(stack)} the branch carries more of the "
                f"gradient than the skip, most in the {row['branch']} branch of block {int(row['block'])} "
                f"({row['share']:.0%} of the energy).",
                evidence=Evidence(
                    "energy of the gradient through the branch / of both",
                    float(row["share"]),
                    None,
                    "even shares",
                    BRANCH_CARRIES,
                ),
                remedy="None needed where norms stand on the stream or writes are large by design; otherwise scale the last "
                "projections by 1 / sqrt(2 x blocks) at init.",
                reference="He et al. 2016, equation 5; Liu et al. 2020 (Admin).",
            )
        )
    return found
