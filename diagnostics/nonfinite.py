"""Name where the first value that is not finite appeared, and not every victim after it."""

from __future__ import annotations

import pandas as pd

from .finding import Evidence, Finding
from .tables import Tables

# Order of execution within one add, forward.
_ORDER = {"branch_input": 0, "branch_output": 1, "write": 2, "sum": 3, "state": 4}


def first_nonfinite(tables: Tables) -> list[Finding]:
    """Report the first step and, within it, the first tensor in order of execution that is not finite."""
    rows = tables.activations
    ill = rows[rows["nonfinite"].fillna(0) > 0]
    if not len(ill):
        return _loss_only(tables)
    step = int(ill["step"].min())
    at = ill[ill["step"] == step]
    forward = at[at["direction"] == "forward"]
    chosen = _first(forward, ascending=True) if len(forward) else _first(at, ascending=False)
    direction = "activation" if len(forward) else "gradient"
    block, depth = int(chosen["block"]), int(chosen["depth"])
    where = (
        "the embedding's output" if block < 0 else f"the {chosen['site']} of block {block}'s {chosen['branch']} branch"
    )
    where = where.replace("_", " ")
    return [
        Finding(
            code="nonfinite",
            severity="error",
            confidence=1.0,
            block=None if block < 0 else block,
            component=str(chosen["branch"]),
            module_path=str(chosen["module_path"]),
            step=step,
            sentence=f"The first {direction} that is not finite is {where} (depth {depth}, step {step}, "
            f"{int(chosen['nonfinite']):,} values): whatever made it stands at or just before this place.",
            evidence=Evidence(
                "elements that are not finite", float(chosen["nonfinite"]), 0.0, "a sound run has none", 0.0
            ),
            remedy="Look at this module's input and weights first; what comes after it only carries the value on."
            if direction == "activation"
            else "Gradients overflow before activations do: lower the loss scale, or clip; look at this branch's backward.",
        )
    ]


def _first(rows: pd.DataFrame, *, ascending: bool) -> pd.Series:
    ordered = rows.assign(order=rows["site"].map(_ORDER).fillna(0))
    keys = ["micro_step", "stack", "depth", "order"]
    return ordered.sort_values(keys, ascending=[True, ascending, ascending, ascending]).iloc[0]


def _loss_only(tables: Tables) -> list[Finding]:
    steps = tables.steps
    ill = steps[steps["loss"].notna() & ~steps["loss"].abs().lt(float("inf"))]
    if not len(ill):
        return []
    step = int(ill["step"].iloc[0])
    return [
        Finding(
            code="nonfinite-loss",
            severity="error",
            confidence=1.0,
            block=None,
            component="loss",
            module_path="",
            step=step,
            sentence=f"The loss of step {step} is not finite; no sampled activation is. It arose in the head, in the loss "
            "itself, or at a step that was not sampled.",
            evidence=Evidence("loss", float(ill["loss"].iloc[0]), None, "a sound run has a finite loss"),
            remedy="Record every step (every=1) around this one.",
        )
    ]
