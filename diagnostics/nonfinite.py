"""Name where the first value that is not finite appeared, and not every victim after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from .finding import Evidence, Finding
from .tables import Tables

# Order of execution within one add, forward.
_ORDER = {
    name: place
    for place, name in enumerate(
        ("branch_input", "hidden", "branch_output", "write", "sum", "state", "final_norm", "logits")
    )
}
_OUTSIDE = {"final_norm": "the final norm's output", "logits": "the logits"}


def first_nonfinite(tables: Tables) -> list[Finding]:
    """Report the first step and, within it, the first tensor in order of execution that is not finite.

    A loss that was not finite at an earlier step, or weights that were not when the step began, are the cause, and
    what the step's activations show is the victim.
    """
    origin = _origin(tables)
    if origin is not None:
        return [origin]
    loss_step = _first_bad_loss(tables)
    rows = tables.activations
    ill = rows[rows["nonfinite"].fillna(0) > 0]
    if not len(ill):
        return _parameters_only(tables, loss_step) or _loss_only(tables, loss_step)
    step = int(ill["step"].min())
    at = ill[ill["step"] == step]
    forward = at[at["direction"] == "forward"]
    if not len(forward):
        return [_gradient(tables, step, _first(at, ascending=False))]
    chosen = _first(forward, ascending=True)
    weights = _broken_weights(tables, step)
    if loss_step is not None and loss_step < step:
        return _loss_only(tables, loss_step)
    return [_weights(step, weights)] if weights else [_activation(step, chosen)]


def _origin(tables: Tables) -> Finding | None:
    """Return what a second run, operation by operation, found to be the cause; None where there was none."""
    rows = tables.identities
    found = rows[rows["check"] == "nonfinite_origin"]
    if not len(found):
        return None
    row = found.iloc[0]
    block = int(row["block"])
    return Finding(
        code="nonfinite",
        severity="error",
        confidence=1.0,
        block=None if block < 0 else block,
        component=str(row["branch"] or "model"),
        module_path=str(row["module_path"] or ""),
        step=min(tables.sampled_steps, default=0),
        sentence=str(row["note"]),
        evidence=Evidence("elements that are not finite", float(row["observed"]), 0.0, "a sound run has none", 0.0),
        remedy="Look at this operation's inputs: what it divides by, takes the root or the logarithm of, or overflows.",
    )


def _activation(step: int, row: dict[str, Any]) -> Finding:
    return _finding(
        row,
        step,
        "error",
        f"The first activation that is not finite is {_place(row)} ({_count(row)} at step {step}): its cause stands at "
        "this place or just before it, and everything after only carries it on.",
        "Look at this module's input and weights; lower the learning rate if they grew large before.",
    )


def _gradient(tables: Tables, step: int, row: dict[str, Any]) -> Finding:
    """Judge gradients that are not finite under finite activations: a gradient scaler meets them and skips the step."""
    head = (
        f"All activations are finite at step {step}; on the way back the first gradient that is not is at {_place(row)} "
        f"({_count(row)})"
    )
    ill = tables.activations[tables.activations["nonfinite"].fillna(0) > 0]
    is_over = any(later > int(ill["step"].max()) for later in tables.sampled_steps)
    updates = tables.parameters
    was_skipped = not len(updates[(updates["step"] == step) & updates["update_rms"].notna()])
    if is_over and was_skipped:
        return _finding(
            row,
            step,
            "info",
            f"{head}. The optimizer made no step there and later gradients are finite, as with a gradient scaler.",
            "None needed where a gradient scaler is used.",
        )
    return _finding(
        row,
        step,
        "warning" if is_over else "error",
        f"{head}" + ("; later steps are finite again." if is_over else "."),
        "Look at the backward of what follows this place (a division, a root or a logarithm at 0), or lower the loss scale.",
    )


def _finding(row: dict[str, Any], step: int, severity: Any, sentence: str, remedy: str) -> Finding:
    block = int(row["block"])
    return Finding(
        code="nonfinite",
        severity=severity,
        confidence=1.0,
        block=None if block < 0 else block,
        stack=None if block < 0 else int(row["stack"]),
        component=str(row["branch"]),
        module_path=str(row["module_path"] or ""),
        step=step,
        sentence=sentence,
        evidence=Evidence("elements that are not finite", float(row["nonfinite"]), 0.0, "a sound run has none", 0.0),
        remedy=remedy,
    )


def _place(row: dict[str, Any]) -> str:
    if int(row["block"]) < 0:
        return _OUTSIDE.get(str(row["site"]), "the embedding's output, state 0")
    site = str(row["site"]).replace("_", " ")
    return f"the {site} of the {row['branch']} branch of block {int(row['block'])}"


def _count(row: dict[str, Any]) -> str:
    n = int(row["nonfinite"])
    return "1 element" if n == 1 else f"{n:,} elements"


def _first(rows: pd.DataFrame, *, ascending: bool) -> dict[str, Any]:
    ordered = rows.assign(order=rows["site"].map(_ORDER).fillna(0))
    keys = ["micro_step", "stack", "depth", "order"]
    row = ordered.sort_values(keys, ascending=[True, ascending, ascending, ascending], kind="stable").iloc[0]
    return {str(name): value for name, value in row.items()}


def _broken_weights(tables: Tables, step: int) -> list[str]:
    """Return the names of parameters that were not finite when ``step`` began."""
    rows = tables.parameters
    # A table without any weight's size says nothing about weights.
    if not np.isfinite(rows["weight_rms"].to_numpy(float)).any():
        return []
    # Weights are recorded after a step: those that it began with are the last ones of an earlier step.
    before = rows[rows["step"] < step]
    at = before[before["step"] == before["step"].max()]
    return sorted(at.loc[~np.isfinite(at["weight_rms"].to_numpy(float)), "name"].astype(str))


def _weights(step: int, names: list[str]) -> Finding:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return Finding(
        code="nonfinite-weights",
        severity="error",
        confidence=1.0,
        block=None,
        component="weights",
        module_path=names[0] if len(names) == 1 else "",
        step=step,
        sentence=f"Before step {step} ran, {len(names)} parameter{'s' if len(names) > 1 else ''} already held values that "
        f"are not finite: {shown}. The activations of that step are victims.",
        evidence=Evidence("parameters that are not finite", float(len(names)), 0.0, "a sound run has none", 0.0),
        remedy="Look at the update before this step, or at what was loaded; record every step (every=1) from there.",
    )


def _parameters_only(tables: Tables, loss_step: int | None) -> list[Finding]:
    """Report a gradient of a parameter that is not finite where every tapped tensor is."""
    rows = tables.parameters
    is_bad = (rows["gradient_state"] == "value") & ~np.isfinite(rows["gradient_rms"].to_numpy(float))
    bad = rows[is_bad]
    if not len(bad) or (loss_step is not None and loss_step < int(bad["step"].min())):
        return []
    step = int(bad["step"].min())
    names = sorted(set(bad.loc[bad["step"] == step, "name"].astype(str)) - set(_broken_weights(tables, step)))
    if not names:
        return []
    return [
        Finding(
            code="nonfinite-gradient",
            severity="error",
            confidence=1.0,
            block=None,
            component="gradients",
            module_path=names[0],
            step=step,
            sentence=f"The gradient of {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} is not finite at "
            f"step {step}, while no tapped activation or gradient is.",
            evidence=Evidence(
                "parameters without a finite gradient", float(len(names)), 0.0, "a sound run has none", 0.0
            ),
            remedy="Look at this parameter's own backward, at gradient clipping and at the loss scale.",
        )
    ]


def _first_bad_loss(tables: Tables) -> int | None:
    """Return the first step whose loss is not finite. A NaN is told from an absent loss by the recorder's event."""
    losses, events = tables.losses, tables.events
    steps = losses.loc[np.isinf(losses["loss"].to_numpy(float)), "step"].tolist()
    steps += events.loc[events["kind"] == "nonfinite_loss", "step"].tolist()
    return min((int(step) for step in steps), default=None)


def _loss_only(tables: Tables, step: int | None) -> list[Finding]:
    if step is None:
        return []
    is_sampled = step in tables.sampled_steps
    where = (
        "no activation or gradient of that step is: it arose in the head or in the loss itself"
        if is_sampled
        else "that step was not sampled, so the place where it arose is not known; what comes later is its victim"
    )
    return [
        Finding(
            code="nonfinite-loss",
            severity="error",
            confidence=1.0,
            block=None,
            component="loss",
            module_path="",
            step=step,
            sentence=f"The loss is not finite for the first time at step {step}; {where}.",
            evidence=Evidence("first step with a loss that is not finite", float(step), None, "a sound run has none"),
            remedy="Look at the logits and the targets of this batch."
            if is_sampled
            else "Run again from just before with every=1.",
        )
    ]
