"""Diagnose wrong wiring by exact identities: what holds to rounding in every sound model, whatever its weights.

One block that breaks an identity is an error. All of them breaking it alike is the design, or a fault of the class they share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
from rheoscope.probes.anatomy import Branch

from .factors import Shared, normed_otherwise, shared, shared_logit_factor, write_factors
from .far_logits import far_logits
from .finding import Evidence, Finding, Severity
from .frames import records
from .lone_blocks import changed_projections
from .tables import Tables
from .thresholds import LEAST_SIBLINGS, LOGIT_FACTOR_APART, SCALE_APART

MOST_TERMS = 4  # that a parallel block adds at once
REMEDIES = {
    "skip-scale": "Look at this block's add: a term that is scaled, missing or added twice.",
    "write-scale": "Look at what stands between this branch's last projection and the add.",
    "attention-scale": "Look at the factor of this block's logits (1 / sqrt(head size)), and at what is done to its queries.",
}
_CONSERVED = "first-order change of the sum, times its gradient, is the gradient that arrives below"
_CHECKED = "Checked by moving the state before the branch and looking at the sum behind it."


def gradient_conservation(tables: Tables) -> list[Finding]:
    """Report branches whose backward is not that of their forward: detached, scaled, turned around."""
    rows = tables.identities
    rows = rows[(rows["check"] == "gradient_conservation") & rows["observed"].notna()]
    # Of a block that adds several terms at once the whole and each term are known: the one that is furthest off names it.
    away = (rows["observed"] - 1).abs().sort_values(ascending=False, kind="stable")
    rows = rows.loc[away.index].drop_duplicates(["stack", "depth"]).sort_values(["stack", "depth"])
    found = []
    for kind, group in _classes(rows):
        ill = group[(group["observed"] - 1).abs() > group["tolerance"]]
        if len(ill) == len(group) and len(group) >= LEAST_SIBLINGS:
            found.append(_class_wide(tables, kind, float(ill["observed"].median()), records(ill)[0]))
        else:
            found += [_not_conserved(row) for row in records(ill)]
    return found


def _classes(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the rows of each kind of branch of each stack: blocks that ought to behave alike."""
    for (_, kind), group in rows.groupby(["stack", "branch"], sort=False):
        yield str(kind), group


def _not_conserved(row: dict[str, Any]) -> Finding:
    ratio, block, kind = float(row["observed"]), int(row["block"]), str(row["branch"])
    return _finding(
        code="gradient-detached" if abs(ratio) < row["tolerance"] else "gradient-scaled",
        severity="error",
        place=(block, kind),
        sentence=f"The backward of {_named(row)} is not that of its forward: {_amount(ratio)}. {_CHECKED}",
        evidence=Evidence("gradient through the branch / gradient demanded", ratio, 1.0, _CONSERVED, row["tolerance"]),
        remedy="Look for a detach, a no_grad, a hook that changes gradients, or a hand-written backward in this branch.",
        module_path=_path(row),
    )


def _named(row: dict[str, Any]) -> str:
    whole = f"the {row['branch']} branch of block {int(row['block'])}"
    return f"{path}, a term of {whole}," if (path := _path(row)) else whole


def _path(row: dict[str, Any]) -> str:
    path = row["module_path"]
    return path if isinstance(path, str) else ""


def _class_wide(tables: Tables, kind: str, ratio: float, row: dict[str, Any]) -> Finding:
    name = tables.stack_name(int(row["stack"]))
    return _finding(
        code="gradient-detached" if abs(ratio) < row["tolerance"] else "gradient-scaled",
        severity="warning",
        place=(None, kind),
        sentence=f"The backward of every {kind} branch{name} is not that of its forward: {_amount(ratio)} at the median block. "
        "No sound design is known that does so, but for straight-through estimators.",
        evidence=Evidence("gradient through the branch / gradient demanded", ratio, 1.0, _CONSERVED, row["tolerance"]),
        remedy="Look for a detach, a no_grad or a hand-written backward in the class that these blocks share.",
    )


def _amount(ratio: float) -> str:
    if abs(ratio) < 1e-3:
        return "none of the gradient arrives"
    return f"{ratio:.3g} times the gradient arrives" + (", turned around" if ratio < 0 else "")


def causality(tables: Tables) -> list[Finding]:
    """Report branches in which a position sees later ones while those of the other blocks let it see none."""
    rows = tables.identities
    rows = rows[(rows["check"] == "causality") & rows["observed"].notna()]
    found = []
    for kind, group in _classes(rows):
        ill = group[group["observed"] > group["tolerance"]]
        if len(ill) * 2 >= len(group):
            continue  # who sees everything in most blocks does so by design
        for row in records(ill):
            block = int(row["block"])
            found.append(
                _finding(
                    code="mask-leak",
                    severity="error",
                    place=(block, kind),
                    sentence=f"In the {kind} branch of block {block} earlier positions see later ones: when the last alone "
                    f"changes, they move by {row['observed']:.2g} of the largest value. In {len(group) - len(ill)} of the "
                    f"{len(group)} {kind} branches they do not move at all.",
                    evidence=Evidence(
                        "change at earlier positions / largest value",
                        float(row["observed"]),
                        0.0,
                        "the other blocks are causal",
                        row["tolerance"],
                    ),
                    remedy="Look at the mask of this block, and at anything in it that mixes positions.",
                )
            )
    return found


def loss_scale(tables: Tables) -> list[Finding]:
    """Report a loss whose gradient at the logits is not that of a mean, or a sum, of cross-entropies."""
    rows = tables.identities
    rows = rows[(rows["check"] == "loss_scale") & rows["observed"].notna()]
    ill = rows[(rows["observed"] - rows["expected"]).abs() > rows["tolerance"] * rows["expected"]]
    return [
        _finding(
            code="loss-scale",
            severity="error" if row["observed"] < 0 else "warning",
            place=(None, "loss"),
            sentence="The loss pushes the right answers down: its gradient at the logits has the wrong sign."
            if row["observed"] < 0
            else f"The loss is scaled: its gradient at the logits is {row['observed']:.3g} times that of a mean cross-entropy.",
            evidence=Evidence(
                "gradient of the logits / (softmax - one hot), summed over tokens",
                float(row["observed"]),
                1.0,
                "dL/dlogits = (softmax - one hot) / n for a mean over n tokens",
                row["tolerance"],
            ),
            remedy="Look for a factor on the loss: a scaler whose scale is not divided out again, accumulation counted twice.",
        )
        for row in records(ill)
    ]


def skip_scale(tables: Tables) -> list[Finding]:
    """Report an add that weighs the skip, or its branch, otherwise than the same add of the other blocks does."""
    measured = write_factors(tables)
    found = []
    for stack in tables.anatomy.stacks:
        for kind in dict.fromkeys(branch.kind for branch in stack.ordinary):
            mine = [branch for branch in stack.ordinary if branch.kind == kind]
            skips = [None if branch.is_gated_skip else branch.scale for branch in mine]
            of_skip = shared([value for value in skips if value is not None])
            found += _apart(
                mine, skips, of_skip, "skip-scale", lambda b: f"the skip of the {b.kind} branch of block {b.block}"
            )
            # Where a norm before the add does not act as one, that is told of the norm.
            apart = normed_otherwise(mine)
            for nth in range(MOST_TERMS):
                writes = [
                    measured.get((stack.index, branch.depth, nth)) if branch.depth not in apart else None
                    for branch in mine
                ]
                of_write = shared([value for value in writes if value is not None])
                found += _apart(
                    mine, writes, of_write, "write-scale", lambda b: f"the output of {b.kind} in block {b.block}"
                )
    return found


def logit_scale(tables: Tables) -> list[Finding]:
    """Report an attention that scales its logits otherwise than that of the other blocks, against its own projections."""
    rows = tables.identities
    found: dict[tuple[int, int], Finding] = {}
    for check in ("logit_scale", "logit_size"):
        values = {(r["stack"], r["depth"]): float(r["observed"]) for r in records(rows[rows["check"] == check])}
        for stack in tables.anatomy.stacks:
            for kind in dict.fromkeys(branch.kind for branch in stack.branches):
                mine = [b for b in stack.branches if b.kind == kind and (b.stack, b.depth) in values]
                sizes = [values[branch.stack, branch.depth] for branch in mine]
                usual = shared_logit_factor(check, mine, sizes)
                told = _apart(
                    mine,
                    sizes,
                    usual,
                    "attention-scale",
                    lambda b: f"the attention logit of block {b.block}",
                    LOGIT_FACTOR_APART,
                )
                if usual is None and check == "logit_size":
                    told = far_logits(mine, sizes)
                found |= {(stack.index, finding.block or 0): finding for finding in told}
    known = {(finding.stack, finding.block) for finding in changed_projections(tables)}
    return [finding for place, finding in found.items() if place not in known]


def odd_block(tables: Tables) -> list[Finding]:
    """Report a block that adds to the stream more or less often than the others."""
    found = []
    for stack in tables.anatomy.stacks:
        counts = [sum(branch.block == block for branch in stack.branches) for block in range(stack.n_blocks)]
        usual = max(set(counts), key=counts.count) if counts else 0
        odd = [block for block, count in enumerate(counts) if count != usual]
        if len(odd) == 1 and len(counts) > LEAST_SIBLINGS:
            block, n = odd[0], counts[odd[0]]
            if n < usual and block in (0, stack.n_blocks - 1):
                continue  # a stack may begin or end with half a block
            found.append(
                _finding(
                    code="odd-block",
                    severity="warning",
                    place=(block, "block"),
                    sentence=f"Block {block}{tables.stack_name(stack.index)} adds to the stream {n} "
                    f"time{'s' if n != 1 else ''}; each of the {len(counts) - 1} others does {usual}.",
                    evidence=Evidence("adds in the block", float(n), float(usual), "the other blocks", 0.0),
                    remedy="Look at what this block adds: a branch that is missing, or the stream added to itself.",
                )
            )
    return found


def _apart(
    branches: Sequence[Branch],
    values: Sequence[float | None],
    usual: Shared | None,
    code: str,
    words: Callable[[Branch], str],
    least: float = SCALE_APART,
) -> list[Finding]:
    """Report the branches whose factor is not the one that is ``usual``."""
    if usual is None:
        return []
    return [
        _finding(
            code=code,
            severity="error",
            place=(branch.block, branch.kind),
            sentence=f"{words(branch).capitalize()} is multiplied by {value:.4g}; in {usual.n_alike} of the {usual.n} blocks it "
            f"is by {usual.value:.4g}.",
            evidence=Evidence("factor", value, usual.value, "the same factor of the other blocks", least),
            remedy=REMEDIES[code],
            module_path=branch.module_path,
        )
        for branch, value in zip(branches, values, strict=True)
        if value is not None and usual.is_apart(value, least)
    ]


def _finding(
    *,
    code: str,
    severity: Severity,
    place: tuple[int | None, str],
    sentence: str,
    evidence: Evidence,
    remedy: str,
    module_path: str = "",
    reference: str = "",
) -> Finding:
    return Finding(
        code=code,
        severity=severity,
        confidence=1.0,
        block=place[0],
        component=place[1],
        module_path=module_path,
        step=0,
        sentence=sentence,
        evidence=evidence,
        remedy=remedy,
        reference=reference,
    )
