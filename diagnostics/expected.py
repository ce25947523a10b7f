"""Predict a recorded model at init from its anatomy and the measured scales of its weights, or say why no closed form holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from .freshness import started_fresh
from .once import once
from .recorded_attention import NoTheoryError
from .recorded_stream import Scales, recorded_stream
from .tables import Tables
from .theory import predict
from .thresholds import (
    LAST_GRADIENT_APART,
    NARROW,
    THEORY_GRADIENT_BAND,
    THEORY_GRADIENT_BAND_LOGITS,
    THEORY_RMS_BAND,
)


@dataclass(frozen=True)
class Prediction:
    """What the closed forms give for one stack of a fresh model.

    Attributes:
        stack: index of the stack.
        step: at which step the recording is compared with it.
        frame: columns depth, rms, gradient, transmission, logit_variance, one row a state; ``gradient`` is missing where the loss
            is not a mean cross-entropy over the tokens.
        is_absolute: whether ``gradient`` starts from the head's weights; else from the gradient measured at the last state.
        rms_band: states lie within this factor of the prediction, up or down.
        gradient_band: gradients alike.
    """

    stack: int
    step: int
    frame: pd.DataFrame
    is_absolute: bool
    rms_band: float
    gradient_band: float


@dataclass(frozen=True)
class Refusal:
    """Why no closed form holds: ``reason`` is a clause without a full stop."""

    stack: int
    reason: str


@once
def theory_of_recording(tables: Tables, stack: int = 0) -> Prediction | Refusal:
    """Return the prediction for one stack at the first sampled step.

    It starts from the anatomy (placement, heads, activation, scales of skips), the RMS of every weight matrix, the mean square
    and likeness of the tokens at state 0, and the head's weights. States and gradients above are predicted, not fitted.
    """
    try:
        return _prediction(tables, stack)
    except ValueError as error:  # NoTheoryError, or what the closed forms themselves refuse
        return Refusal(stack, str(error).removesuffix(": no closed form.").rstrip("."))


def _prediction(tables: Tables, stack: int) -> Prediction:
    known = {found.index: found for found in tables.anatomy.stacks}
    if stack not in known or not known[stack].branches or not tables.sampled_steps:
        raise NoTheoryError("no step of such a stack was recorded")
    if len(known) > 1 and any(branch.kind == "cross_attention" for branch in tables.anatomy.branches):
        raise NoTheoryError("an encoder and a decoder read each other")
    step = tables.sampled_steps[0]
    rows = tables.parameters[tables.parameters["step"] == step]
    if step != 0 or not started_fresh(rows):
        raise NoTheoryError("the weights are trained, or nothing tells that they are not: no longer independent")
    scales = Scales(tables, known[stack], step, rows.drop_duplicates("name").set_index("name"))
    width = known[stack].width
    n = _elements(scales, "state") // max(1, width)
    if n < 1:
        raise NoTheoryError("state 0 was not recorded")
    stream = recorded_stream(scales, n)
    outlet = known[stack].outlet
    if outlet is not None and outlet.norm_kind != "none":
        stream = replace(stream, final_scale=_final_scale(scales, stream.norm_eps))
    head = _head_gradient(scales, n)
    frame = predict(replace(stream, head_gradient=head or 1.0))
    frame, is_absolute = _gradients(scales, frame, head, n)
    noise = NARROW / math.sqrt(width)
    variance = float(frame["logit_variance"].iloc[-1])
    return Prediction(
        stack,
        step,
        frame,
        is_absolute,
        1 + THEORY_RMS_BAND + noise,
        1 + THEORY_GRADIENT_BAND + THEORY_GRADIENT_BAND_LOGITS * variance + noise,
    )


def _elements(scales: Scales, site: str) -> int:
    """Return how many elements a site had at the step, in its first micro-batch."""
    rows = scales.tables.activations
    rows = rows[(rows["step"] == scales.step) & (rows["stack"] == scales.stack.index) & (rows["site"] == site)]
    counts = rows[rows["direction"] == "forward"]["n"].dropna()
    return int(counts.iloc[0]) if len(counts) else 0


def _final_scale(scales: Scales, eps: float) -> float:
    """Return the gain of the final norm, with what multiplies its output."""
    last = max(branch.depth for branch in scales.stack.branches)
    state, given = scales.site("state", last), scales.site("final_norm", last + 1)
    return given * math.sqrt((state**2 + eps) / state**2) if state and given else 1.0


def _head_gradient(scales: Scales, n: int) -> float | None:
    """Return the RMS of the gradient a coordinate where the head reads, None where the head's weights are not known.

    Mean cross-entropy at uniform probabilities sends the logits a gradient of energy 1 / N in all, N being the tokens that
    count; the head's rows, independent, turn it into s_h^2 a coordinate. What of the N is masked is read from the logits.
    """
    logits, width = _elements(scales, "logits"), scales.stack.width
    rows = scales.parameters
    heads = rows[(rows["n"] == logits // n * width) & (rows["block"] == -1)] if logits % n == 0 else rows[:0]
    weights = heads[heads["role"] == "weight"]
    chosen = weights if len(weights) else heads
    sent = _logit_energy(scales, logits)
    if len(chosen) != 1 or sent is None or not 0.9 < sent * n < 3:
        return None
    return float(chosen["weight_rms"].iloc[0]) * math.sqrt(sent / n)


def _logit_energy(scales: Scales, n_elements: int) -> float | None:
    """Return the sum over tokens and classes of the squared gradient at the logits."""
    rows = scales.tables.sites("logits", "backward")
    found = rows[(rows["step"] == scales.step) & (rows["stack"] == scales.stack.index)].dropna(subset=["rms"])
    return float(found["rms"].iloc[0]) ** 2 * n_elements if len(found) else None


def _gradients(scales: Scales, frame: pd.DataFrame, head: float | None, n: int) -> tuple[pd.DataFrame, bool]:
    """Return the frame with its gradients absolute, or scaled to the measured last one, or missing."""
    outlet = scales.stack.outlet
    is_direct = outlet is not None and (outlet.is_direct or outlet.norm_kind == "none")
    profile = scales.tables.gradient_profile()
    profile = profile[(profile["step"] == scales.step) & (profile["stack"] == scales.stack.index)]
    last = profile[profile["depth"] == frame["depth"].iloc[-1]]["rms"].dropna()
    if head is not None and is_direct:
        return frame, True
    sent = _logit_energy(scales, _elements(scales, "logits"))
    # Where few tokens carry the loss, their gradients are no longer alike, as the recursion takes them to be.
    is_even = sent is not None and 0.9 < sent * n < LAST_GRADIENT_APART
    if not len(last) or not is_even:
        return frame.assign(gradient=np.nan), False
    return frame.assign(gradient=frame["gradient"] / frame["gradient"].iloc[-1] * float(last.iloc[0])), False
