"""Diagnose what one block does and its siblings, to rounding, do not: silent heads, another rotation, a stray term, ..."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from .factors import normed_otherwise
from .finding import Evidence, Finding
from .frames import records
from .tables import Tables
from .thresholds import LEAST_SIBLINGS, MOST_STRAY, PATTERNS_OF_POSITIONS


def silent_heads(tables: Tables) -> list[Finding]:
    """Report an attention of which a part has no gradient at all, while all of the other blocks' has one."""
    return [
        _finding(
            "head-silent",
            row,
            f"In the {row['branch']} branch of block {int(row['block'])} {row['observed']:.0%} of a projection "
            f"({row['module_path']}) has a gradient of exactly 0; in the {n} others all of it has one: heads whose result is "
            "thrown away, or whose softmax has no slope left.",
            Evidence("share of rows or columns without gradient", float(row["observed"]), 0.0, "the other blocks", 0.0),
            "Look at what stands between this block's heads and its last projection, and for weights or masks of 0.",
        )
        for row, n in _alone(tables, "silent_heads")
    ]


def rotation(tables: Tables) -> list[Finding]:
    """Report an attention that turns queries from position to position otherwise than all others of its stack."""
    found = []
    for row, n in _alone(tables, "rotation", most=1):
        block = int(row["block"])
        is_pattern = _may_begin_a_pattern(tables, row, n + 1)
        found.append(
            _finding(
                "attention-positions",
                row,
                f"The {row['branch']} branch of block {block} turns queries from one position to the next otherwise than the {n} "
                f"others, by {row['observed']:.2g} of the turn: another base or length of its rotary embedding, or none."
                + (f" Some models do so in every {block + 1}th block; this would be the first." if is_pattern else ""),
                Evidence(
                    "distance of the rotation / rotation",
                    float(row["observed"]),
                    0.0,
                    "the other blocks",
                    row["tolerance"],
                ),
                "Look at the base, the scaling and the positions of this block's rotary embedding.",
                severity="info" if is_pattern else "warning",
                reference="Su et al. 2021 (RoFormer), equation 14",
            )
        )
    return found


def _may_begin_a_pattern(tables: Tables, row: dict[str, Any], n_blocks: int) -> bool:
    """Return whether published models turn queries so in every block of this number: less far, or not at all."""
    every = int(row["block"]) + 1
    rows = tables.identities
    mine = rows[(rows["check"] == "rotation_size") & (rows["stack"] == row["stack"]) & (rows["depth"] == row["depth"])]
    size = float(mine["observed"].min()) if len(mine) else 0.0
    return 2 * every > n_blocks and size <= PATTERNS_OF_POSITIONS.get(every, -1.0)


def changed_projections(tables: Tables) -> list[Finding]:
    """Report a projection whose result is multiplied before it is read, where those of the other blocks are not."""
    return [
        _finding(
            "projection-scale",
            row,
            f"What {row['module_path']} projects is multiplied by {row['observed']:.4g} before it is read. In the {n} other "
            "blocks it is read as it is.",
            Evidence(
                "result of the module / product with its matrix",
                float(row["observed"]),
                1.0,
                "the other blocks",
                row["tolerance"],
            ),
            "Look for a hook on this projection, or a wrapper around it.",
            severity="error",
        )
        for row, n in _alone(tables, "projection_scale")
    ] + [
        _finding(
            "projection-changed",
            row,
            f"What {row['module_path']} gives is no multiple of what its matrix gave: {row['observed']:.2g} of it is something "
            f"else. In the {n} other blocks it is read as it is.",
            Evidence(
                "result less a multiple of the product / result",
                float(row["observed"]),
                0.0,
                "the other blocks",
                row["tolerance"],
            ),
            "Look for a hook on this projection, or a wrapper around it.",
        )
        for row, n in _alone(tables, "projection_rest")
    ]


def changed_writes(tables: Tables) -> list[Finding]:
    """Report a branch that adds something else than its last projection gives, where those of the other blocks add that."""
    told_of_norms = {
        (stack.index, depth)
        for stack in tables.anatomy.stacks
        for kind in {branch.kind for branch in stack.branches}
        for depth in normed_otherwise([branch for branch in stack.branches if branch.kind == kind])
    }
    return [
        _finding(
            "write-changed",
            row,
            f"What the {row['branch']} branch of block {int(row['block'])} adds is no multiple of what its last projection "
            f"gives: {row['observed']:.2g} of it is something else. In the {n} other {row['branch']} branches nothing is.",
            Evidence(
                "write less a multiple of the projection / write",
                float(row["observed"]),
                0.0,
                "the other blocks",
                row["tolerance"],
            ),
            "Look at what stands between this branch's last projection and the add.",
            confidence=0.9,
        )
        for row, n in _alone(tables, "write_rest")
        if (int(row["stack"]), int(row["depth"])) not in told_of_norms
    ]


def mixed_samples(tables: Tables) -> list[Finding]:
    """Report a branch in which a sample sees another of its batch, while those of the other blocks see none."""
    return [
        _finding(
            "samples-mixed",
            row,
            f"In the {row['branch']} branch of block {int(row['block'])} a sample sees others of its batch: when they "
            f"change, it moves by {row['observed']:.2g} of the largest value. In the {n} others it does not.",
            Evidence(
                "change of an unchanged sample / largest value",
                float(row["observed"]),
                0.0,
                "the other blocks",
                row["tolerance"],
            ),
            "Look for axes that are confused here: a view in place of a transpose, a mean or a norm over the batch.",
            severity="error",
        )
        for row, n in _alone(tables, "samples")
    ]


def stray_terms(tables: Tables) -> list[Finding]:
    """Report a state that is more than skip and write, where those of the other adds are not."""
    return [
        _finding(
            "stream-shifted",
            row,
            f"Behind the {row['branch']} branch of block {int(row['block'])} the stream is not the sum of skip and write: "
            f"{row['observed']:.2g} of it comes from elsewhere. At the {n} other adds nothing does.",
            Evidence(
                "state less scale x skip and write / state",
                float(row["observed"]),
                0.0,
                "the other adds",
                row["tolerance"],
            ),
            "Look for something added here that is no branch: position embeddings once more, a constant, a hook.",
        )
        for row, n in _alone(tables, "stream_shift", kinds=False, most=MOST_STRAY)
    ]


def stray_ends(tables: Tables) -> list[Finding]:
    """Remark on what is added between the last state and the final norm: it has no siblings that would tell design from fault."""
    rows = tables.identities
    rows = rows[(rows["check"] == "stream_end") & (rows["observed"] > rows["tolerance"])]
    return [
        _finding(
            "stream-shifted",
            row,
            f"What the final norm reads is not the last state, behind block {int(row['block'])}: {row['observed']:.2g} of it "
            "comes from elsewhere.",
            Evidence("read less a multiple of the state / read", float(row["observed"]), 0.0, "", row["tolerance"]),
            "Look for something added behind the last block that is no branch, unless that is meant.",
            severity="info",
        )
        for row in records(rows)
    ]


def _alone(
    tables: Tables, check: str, *, kinds: bool = True, most: int | None = None
) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each row beyond its tolerance, with how many branches have none, where at most a quarter, or ``most``, have one."""
    rows = tables.identities
    rows = rows[(rows["check"] == check) & rows["observed"].notna()]
    for _, group in rows.groupby(["stack", "branch"] if kinds else ["stack"], sort=False):
        away = (group["observed"] - group["expected"].fillna(0.0)).abs()
        ill: pd.DataFrame = group[away > group["tolerance"]]
        n, n_ill = group["depth"].nunique(), ill["depth"].nunique()
        if n > LEAST_SIBLINGS and n_ill <= (n // 4 if most is None else most):
            for row in records(ill):
                yield row, n - n_ill


def _finding(
    code: str,
    row: dict[str, Any],
    sentence: str,
    evidence: Evidence,
    remedy: str,
    severity: Any = "warning",
    reference: str = "",
    confidence: float = 1.0,
) -> Finding:
    path = row["module_path"]
    return Finding(
        code=code,
        severity=severity,
        confidence=confidence,
        block=int(row["block"]),
        stack=int(row["stack"]),
        component=str(row["branch"]),
        module_path=path if isinstance(path, str) else "",
        step=0,
        sentence=sentence,
        evidence=evidence,
        remedy=remedy,
        reference=reference,
    )
