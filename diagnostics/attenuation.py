"""Diagnose gradients that vanish or explode with depth, and an identity path that does not reach the first block."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .against_theory import expected_slope
from .finding import Evidence, Finding
from .frames import block_states, groups, slope
from .tables import Tables
from .thresholds import (
    GRADIENT_LEAST_TOTAL,
    GRADIENT_SLOPE_LIMIT,
    GRADIENT_TOTAL_LIMIT,
    LEAST_BLOCKS,
    SKIP_TRANSMISSION_LOW,
)


def gradient_slope(tables: Tables) -> list[Finding]:
    """Judge the slope of log gradient RMS per block, over block outputs, at the sampled step where it is steepest."""
    found: list[Finding] = []
    for (stack,), group in groups(block_states(tables.gradient_profile()), "stack"):
        profiles: dict[int, tuple[float, pd.DataFrame]] = {}
        for (step,), rows in groups(group, "step"):
            known = rows[np.isfinite(rows["rms"]) & (rows["rms"] > 0)].sort_values("block")
            value = slope(known["block"].to_numpy(float), known["rms"].to_numpy(float))
            if value is not None and len(known) >= LEAST_BLOCKS:
                profiles[step] = (value, known)
        if profiles:
            worst = max(profiles, key=lambda step: abs(profiles[step][0]))
            found.append(_slope_finding(tables, stack, worst, *profiles[worst]))
    return found


def _slope_finding(tables: Tables, stack: int, step: int, value: float, rows: pd.DataFrame) -> Finding:
    # Gradients flow down: a positive slope over depth means that they shrink on their way to the first block.
    shrinks = value > 0
    total = abs(value) * float(np.ptp(rows["block"].to_numpy(float)))
    least = GRADIENT_LEAST_TOTAL if abs(value) > GRADIENT_SLOPE_LIMIT else GRADIENT_TOTAL_LIMIT
    is_ill = total > np.log(least)
    name = tables.stack_name(stack)
    below, above = float(rows["rms"].iloc[0]), float(rows["rms"].iloc[-1])
    path = (
        f"from {above:.2g} RMS after block {int(rows['block'].iloc[-1])} to {below:.2g} after block "
        f"{int(rows['block'].iloc[0])} (step {step}; trend {abs(value):.2g} in ln RMS per block)"
    )
    if is_ill:
        sentence = f"The gradient {'shrinks' if shrinks else 'grows'} on its way down{name}, {path}."
    else:
        sentence = f"Gradients reach every block{name}. At the steepest they go {path}."
    law, expected = "a sound residual stack keeps it near 0", expected_slope(tables, stack, step, "gradient")
    if expected is not None:
        law = "closed form of this stack at init, from its placement and the scales of its weights"
        sentence += f" The closed form of these weights gives {abs(expected):.2g} per block."
    on_stream = tables.placement(stack) == "post"
    cure = "Move the norms off the residual stream (pre-norm)" if on_stream else "Norm what each branch reads"
    return Finding(
        code=("gradient-attenuation" if shrinks else "gradient-growth") if is_ill else "gradient-flow",
        severity="warning" if is_ill else "info",
        confidence=0.8,
        block=None,
        stack=int(stack),
        component=f"stack {stack}",
        module_path="",
        step=step,
        sentence=sentence,
        evidence=Evidence(
            "slope of ln gradient RMS per block",
            value,
            0.0 if expected is None else expected,
            law,
            GRADIENT_SLOPE_LIMIT,
        ),
        remedy=f"{cure}, scale the last projections by 1/sqrt(2 x blocks) at init, or warm up more slowly."
        if is_ill
        else "None needed.",
        reference="Xiong et al. 2020, Theorem 1; OLMo 2 2025, section 3.2 (growth exponent).",
    )


def skip_path(tables: Tables) -> list[Finding]:
    """Say the gain of the gradient along the skip path alone, from the last state to the first that a branch added to.

    A placement that all blocks share is design: its consequence is said, not judged.
    """
    found = []
    for (stack,), rows in groups(tables.block_transmission().dropna(), "stack"):
        steps, values = rows["step"].to_numpy(int), rows["transmission"].to_numpy(float)
        value, low = float(values[0]), float(values.min())
        is_low = low < SKIP_TRANSMISSION_LOW
        found.append(
            Finding(
                code="skip-transmission",
                severity="info",
                confidence=1.0,
                block=0,
                stack=int(stack),
                component=f"stack {stack}",
                module_path="",
                step=int(steps[0]),
                sentence=_skip_sentence(tables.placement(stack), tables.stack_name(stack), steps, values),
                evidence=Evidence(
                    "skip transmission",
                    value,
                    1.0,
                    "product of the Jacobian gains of norms and scales on the stream",
                    SKIP_TRANSMISSION_LOW,
                ),
                remedy="Use warm-up and a small learning rate, DeepNorm's scaling, or pre-norm."
                if is_low
                else "None needed.",
                reference="He et al. 2016 (identity mappings); Xiong et al. 2020, Lemma 3.",
            )
        )
    return found


def _skip_sentence(placement: str, name: str, steps: np.ndarray, values: np.ndarray) -> str:
    where = f"{placement}-norm" if placement in ("pre", "post") else f"norm placement {placement}"
    if np.allclose(values, 1.0, rtol=0, atol=1e-6):
        when = "" if len(steps) == 1 else " at every sampled step"
        return f"Along the skips alone the gradient comes down to the first block{name} unchanged{when} ({where})."
    head = (
        f"Along the skips alone {values[0]:.2g} of the gradient's RMS comes down to the first block{name} ({where}"
        + (")" if len(steps) == 1 else f", step {steps[0]}), and {values[-1]:.2g} at step {steps[-1]}")
    )
    return head + (
        ": what stands on the stream damps the identity path." if values.min() < SKIP_TRANSMISSION_LOW else "."
    )
