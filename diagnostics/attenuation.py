"""Diagnose gradients that vanish or explode with depth, and an identity path that does not reach the first block."""

from __future__ import annotations

import numpy as np

from .finding import Evidence, Finding
from .tables import Tables, block_states, slope
from .thresholds import GRADIENT_SLOPE_LIMIT, GRADIENT_TOTAL_LIMIT, LEAST_BLOCKS, SKIP_TRANSMISSION_LOW


def gradient_slope(tables: Tables) -> list[Finding]:
    """Judge the slope of log gradient RMS per block, over block outputs, at the first step and the worst one."""
    profile = block_states(tables.gradient_profile())
    found: list[Finding] = []
    for stack, group in profile.groupby("stack"):
        if group["block"].nunique() < LEAST_BLOCKS:
            continue
        slopes = {}
        for step, rows in group.groupby("step"):
            value = slope(rows["block"].to_numpy(float), rows["rms"].to_numpy(float))
            if value is not None:
                slopes[int(step)] = (value, value * np.ptp(rows["block"].to_numpy(float)))
        if slopes:
            worst = max(slopes, key=lambda step: abs(slopes[step][0]))
            found.append(_slope_finding(int(stack), worst, *slopes[worst]))
    return found


def _slope_finding(stack: int, step: int, value: float, total: float) -> Finding:
    # Gradients flow down: a positive slope over depth means that they shrink on their way to the first block.
    shrinks = value > 0
    is_ill = abs(value) > GRADIENT_SLOPE_LIMIT or abs(total) > np.log(GRADIENT_TOTAL_LIMIT)
    factor = float(np.exp(abs(total)))
    verb = "shrinks" if shrinks else "grows"
    sentence = (
        f"From the last block to the first the gradient {verb} {factor:.3g}-fold "
        f"({abs(value):.2g} in ln RMS per block, step {step})."
    )
    if not is_ill:
        sentence = (
            f"Gradients reach every block: from the last to the first the RMS changes {factor:.3g}-fold "
            f"({-value:+.2g} in ln RMS per block, at worst, step {step})."
        )
    return Finding(
        code=("gradient-attenuation" if shrinks else "gradient-growth") if is_ill else "gradient-flow",
        severity="warning" if is_ill else "info",
        confidence=0.8,
        block=None,
        component=f"stack {stack}",
        module_path="",
        step=step,
        sentence=sentence,
        evidence=Evidence(
            "slope of ln gradient RMS per block",
            value,
            0.0,
            "a sound residual stack keeps it near 0",
            GRADIENT_SLOPE_LIMIT,
        ),
        remedy="Move the norms off the residual stream (pre-norm), or scale the branches down with depth at init."
        if is_ill
        else "None needed.",
        reference="Xiong et al. 2020, Theorem 1; OLMo 2 2025, section 3.2 (growth exponent).",
    )


def skip_path(tables: Tables) -> list[Finding]:
    """Judge the gain of the gradient along the skip path alone, last state to first block."""
    transmission = tables.block_transmission().dropna()
    found = []
    for stack, rows in transmission.groupby("stack"):
        first, last = rows.iloc[0], rows.iloc[-1]
        value = float(first["transmission"])
        is_low = value < SKIP_TRANSMISSION_LOW
        placement = (
            tables.anatomy.stacks[int(stack)].placement if int(stack) < len(tables.anatomy.stacks) else "unknown"
        )
        if is_low:
            sentence = (
                f"The identity path is damped: along the skips alone {value:.2g} of the gradient's RMS reaches the first "
                f"block, because the norms sit on the stream ({placement}-norm)."
            )
        elif abs(value - 1) < 1e-6:
            sentence = (
                f"The identity path is whole: along the skips alone the gradient reaches the first block unchanged "
                f"({placement}-norm)."
            )
        else:
            sentence = (
                f"Along the skips alone {value:.3g} of the gradient's RMS reaches the first block ({placement}-norm)."
            )
        if len(rows) > 1:
            sentence += f" At step {int(last['step'])} it is {float(last['transmission']):.2g}."
        found.append(
            Finding(
                code="skip-transmission",
                severity="info",  # a placement shared by all blocks is design; its consequence is said, not judged
                confidence=1.0,
                block=0,
                component=f"stack {int(stack)}",
                module_path="",
                step=int(first["step"]),
                sentence=sentence,
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
