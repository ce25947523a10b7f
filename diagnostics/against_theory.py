"""Compare a fresh model with the closed forms of its own weights, state by state, as far as these hold."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from .expected import Prediction, Refusal, theory_of_recording
from .finding import Evidence, Finding
from .frames import block_states, slope
from .tables import Tables
from .thresholds import THEORY_APART

_LAW = "closed form of this stack at init, from its placement and the scales of its weights"
_REFERENCE = "Kedia et al. 2024 (second moments of transformers); Xiong et al. 2020; docs/theory.md."


def against_theory(tables: Tables) -> list[Finding]:
    """Judge states and gradients at init by the closed forms, where their assumptions hold."""
    found = []
    for stack in tables.anatomy.stacks:
        prediction = theory_of_recording(tables, stack.index)
        if isinstance(prediction, Prediction):
            found += [
                _finding(tables, prediction, compared, column)
                for column in ("rms", "gradient")
                if len(compared := side_by_side(tables, prediction, column))
            ]
    return found


def not_compared(tables: Tables) -> list[str]:
    """Say of which stacks the closed forms do not hold, and why."""
    refusals = [theory_of_recording(tables, stack.index) for stack in tables.anatomy.stacks if stack.branches]
    return [
        f"Not compared with the closed forms of a model at init{tables.stack_name(refusal.stack)}: {refusal.reason}."
        for refusal in refusals
        if isinstance(refusal, Refusal) and tables.sampled_steps
    ]


def side_by_side(tables: Tables, prediction: Prediction, column: str) -> pd.DataFrame:
    """Return depth, block, branch, observed, expected, ratio of one stack's states.

    Args:
        tables: of the recording.
        prediction: of one stack.
        column: rms of the state, or gradient.
    """
    frame = tables.state_rms() if column == "rms" else tables.gradient_profile()
    frame = frame[(frame["step"] == prediction.step) & (frame["stack"] == prediction.stack)]
    expected = prediction.frame.set_index("depth")[column]
    known = frame.assign(observed=frame["rms"], expected=frame["depth"].map(expected)).sort_values("depth")
    known = known[np.isfinite(known["observed"]) & (known["observed"] > 0) & (known["expected"] > 0)]
    ratios = known.assign(ratio=known["observed"] / known["expected"])
    columns = ["step", "stack", "depth", "block", "branch", "observed", "expected", "ratio"]
    return pd.DataFrame(ratios[columns])


def predicted_states(tables: Tables, column: str) -> dict[int, pd.DataFrame]:
    """Return, of each stack for which the closed forms hold, what ``side_by_side`` does."""
    found = (theory_of_recording(tables, stack.index) for stack in tables.anatomy.stacks)
    frames = {p.stack: side_by_side(tables, p, column) for p in found if isinstance(p, Prediction)}
    return {stack: frame for stack, frame in frames.items() if len(frame)}


def expected_slope(tables: Tables, stack: int, step: int, column: str) -> float | None:
    """Return the closed form's slope of ln RMS per block over block states; None where it does not hold at ``step``."""
    prediction = theory_of_recording(tables, stack)
    if not isinstance(prediction, Prediction) or step != prediction.step:
        return None
    rows = block_states(side_by_side(tables, prediction, column))
    return slope(rows["block"].to_numpy(float), rows["expected"].to_numpy(float))


def _finding(tables: Tables, prediction: Prediction, compared: pd.DataFrame, column: str) -> Finding:
    is_state = column == "rms"
    band = prediction.rms_band if is_state else prediction.gradient_band
    order = compared if is_state else compared.iloc[::-1]  # signals go up, gradients come down
    logs = np.log(order["ratio"].to_numpy(float))
    worst = int(np.argmax(np.abs(logs)))
    row = order.iloc[worst]
    observed, expected = float(row["observed"]), float(row["expected"])
    is_ill = abs(float(logs[worst])) > math.log(max(THEORY_APART, band**2))
    # No hook sees the terms of a parallel block both before and after what multiplies them.
    is_seen = all(b.kind != "parallel" for b in tables.anatomy.branches if b.stack == prediction.stack)
    # Of a run the weights are recorded after the step, its activations before it: the two do not quite belong together.
    is_check_up = "before any optimizer" in str(tables.recording.manifest.get("gradients", ""))
    what = "state RMS" if is_state else "gradient RMS"
    name = tables.stack_name(prediction.stack)
    if is_ill:
        # The state where most of the distance arises, on the signal's own way.
        start = order.iloc[int(np.argmax(np.abs(np.diff(logs, prepend=0.0))))]
        sentence = (
            f"The {what} at depth {int(row['depth'])}{name} is {observed:.3g}; the closed form of these weights gives "
            f"{expected:.3g}. Most of the distance arises at depth {int(start['depth'])} ({start['branch']}"
            + (f" of block {int(start['block'])})." if start["block"] >= 0 else ").")
        )
        if not is_seen:
            sentence += " What multiplies the terms of a parallel block is not seen: it may be design."
    else:
        start = row
        off, most = (
            math.exp(abs(float(logs[worst]))) - 1,
            f"most at depth {int(row['depth'])}: {observed:.3g} against {expected:.3g}",
        )
        is_within = off <= band - 1
        sentence = (
            f"The {what}{name} at init follows the closed form of its weights within {off:.0%} at every depth ({most})."
            if is_within
            else f"The {what}{name} at init is up to {off:.0%} off the closed form of its weights ({most}), whose band is "
            f"{band - 1:.0%}: too little to be told from tokens or targets that are not independent."
        )
    like, unlike = (
        ("state-theory", "state-unlike-theory") if is_state else ("gradient-theory", "gradient-unlike-theory")
    )
    return Finding(
        code=unlike if is_ill else like,
        severity="warning" if is_ill and is_seen and is_check_up else "info",
        confidence=0.6,
        block=int(start["block"]) if is_ill and start["block"] >= 0 else None,
        stack=prediction.stack,
        component=f"stack {prediction.stack}" if not is_ill else str(start["branch"]),
        module_path="",
        step=prediction.step,
        sentence=sentence,
        evidence=Evidence(f"{what} at depth {int(row['depth'])}", observed, expected, _LAW, (band - 1) * expected),
        remedy="Look there for what scales signal or gradient beside weights and norms." if is_ill else "None needed.",
        reference=_REFERENCE,
    )
