"""Diagnose norms by what each does alone: an epsilon that is not its siblings', a backward that is not that of its forward."""

from __future__ import annotations

from statistics import median
from typing import Any

import pandas as pd

from .finding import Evidence, Finding, Severity
from .frames import records
from .tables import Tables
from .thresholds import LEAST_SIBLINGS


def epsilon_of_norms(tables: Tables) -> list[Finding]:
    """Report a norm whose epsilon differs from the one that the same norm of the other blocks has, and visibly so."""
    found = []
    for group in by_role(tables):
        usual = usual_epsilon(group)
        if usual is None:
            continue
        for row in records(group[(group["observed"] - usual).abs() > group["tolerance"]]):
            value, block = float(row["observed"]), int(row["block"])
            share = (value - usual) / float(row["tolerance"]) * 1e-3
            found.append(
                _finding(
                    row,
                    "norm-epsilon",
                    "warning",
                    f"The epsilon of the norm {row['module_path']} in block {block} is {value:.3g}; that of its {len(group) - 1} "
                    f"siblings is {usual:.3g}. It changes what the norm gives by about {abs(share):.2g} of it.",
                    Evidence("epsilon", value, usual, "the same norm of the other blocks", float(row["tolerance"])),
                    "Look at this norm's epsilon; 1e-5 or 1e-6 is usual.",
                )
            )
    return found


def form_of_norms(tables: Tables) -> list[Finding]:
    """Report a norm that gives not quite what its closed form says, while its siblings do to rounding."""
    groups = [(group, group[group["observed"] > group["tolerance"]]) for group in by_role(tables, "norm_form")]
    return [
        _finding(
            row,
            "norm-form",
            "warning",
            f"What the norm {row['module_path']} gives is off by {row['observed']:.2g} of it from g (x - m) / sqrt(v + epsilon) "
            f"+ b at any g, b and epsilon. What {len(group) - len(ill)} siblings give is that to rounding.",
            Evidence(
                "misfit / what the norm gives", float(row["observed"]), 0.0, "the closed form", float(row["tolerance"])
            ),
            "Look at the precision that this norm computes in, and at what is done to its result.",
        )
        for group, ill in groups
        if len(group) > LEAST_SIBLINGS and len(ill) * 4 <= len(group)
        for row in records(ill)
    ]


def backward_of_norms(tables: Tables) -> list[Finding]:
    """Report norms whose own backward is not that of the closed form that their forward follows."""
    rows = tables.identities
    rows = rows[(rows["check"] == "norm_backward") & rows["observed"].notna()]
    ill = rows[rows["observed"] > rows["tolerance"]]
    if len(ill) == len(rows) > LEAST_SIBLINGS:
        row = records(ill)[0]
        error = float(ill["observed"].median())
        sentence = f"The backward of none of the {len(ill)} norms is that of its forward: it errs by {error:.2g} of the gradient."
        remedy = "Look at the class of the norms: a hand-written or fused backward, a hook that changes gradients."
        return [
            _finding(
                row | {"block": -1, "module_path": ""},
                "norm-backward",
                "error",
                sentence,
                _evidence(row, error),
                remedy,
            )
        ]
    return [
        _finding(
            row,
            "norm-backward",
            "error",
            f"The backward of the norm {row['module_path']} is not that of its forward: it errs by {row['observed']:.2g} of the "
            f"gradient. That of {len(rows) - len(ill)} other norms is right.",
            _evidence(row, float(row["observed"])),
            "Look for saved statistics that are not those of the input, a forgotten mean, or a hook that changes gradients.",
        )
        for row in records(ill)
    ]


def by_role(tables: Tables, check: str = "norm_epsilon") -> list[pd.DataFrame]:
    """Return the rows of a check of norms, those of one role of one kind of branch of a stack together."""
    rows = tables.identities
    rows = rows[(rows["check"] == check) & rows["observed"].notna() & (rows["block"] >= 0)]
    roles = {
        path: (role, n)
        for branch in tables.anatomy.branches
        for role in ("input_norms", "output_norms", "skip_norms")
        for n, path in enumerate(getattr(branch, role))
    }
    keyed = rows.assign(role=[str(roles.get(str(path))) for path in rows["module_path"]])
    return [group for _, group in keyed.groupby(["stack", "branch", "role"], sort=False)]


def usual_epsilon(group: pd.DataFrame) -> float | None:
    """Return the epsilon that at least three quarters of the norms of a class have; None where they share none."""
    values = group["observed"].tolist()
    if len(values) <= LEAST_SIBLINGS:
        return None
    usual = median(values)
    alike = ((group["observed"] - usual).abs() <= group["tolerance"]).sum()
    return usual if alike * 4 >= len(values) * 3 else None


def _evidence(row: dict[str, Any], error: float) -> Evidence:
    law = "dx = r (u - mean(u) - z mean(u z)), in float64 from the norm's own input"
    return Evidence("relative error of the gradient", error, 0.0, law, float(row["tolerance"]))


def _finding(
    row: dict[str, Any], code: str, severity: Severity, sentence: str, evidence: Evidence, remedy: str
) -> Finding:
    block = int(row["block"])
    return Finding(
        code=code,
        severity=severity,
        confidence=1.0,
        block=block if block >= 0 else None,
        stack=int(row["stack"]) if block >= 0 else None,
        component=str(row["branch"]) if row["module_path"] else "norms",
        module_path=str(row["module_path"]),
        step=0,
        sentence=sentence,
        evidence=evidence,
        remedy=remedy,
    )
