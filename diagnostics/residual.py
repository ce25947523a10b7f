"""Diagnose how the residual stream grows with depth and over training."""

from __future__ import annotations

from .against_theory import expected_slope
from .finding import Evidence, Finding
from .frames import block_states, groups, largest, slope
from .tables import Tables
from .thresholds import FP16_HEADROOM, FP16_LARGEST, LEAST_BLOCKS, RESIDUAL_LEAST_TOTAL, RESIDUAL_SLOPE_LIMIT


def residual_growth(tables: Tables) -> list[Finding]:
    """Judge the growth of the stream's RMS with depth: exponential growth is a warning, anything slower a description."""
    found = []
    for (stack,), group in groups(block_states(tables.state_rms()).dropna(subset="rms"), "stack"):
        step = int(group["step"].max())
        rows = group[group["step"] == step].sort_values("block")
        value = slope(rows["block"].to_numpy(float), rows["rms"].to_numpy(float))
        if value is None or len(rows) < LEAST_BLOCKS:
            continue
        first, last = float(rows["rms"].iloc[0]), float(rows["rms"].iloc[-1])
        law, expected = (
            "normed branches add energy: RMS grows like the square root of depth",
            expected_slope(tables, stack, step, "rms"),
        )
        if expected is not None:
            law = "closed form of this stack at init, from its placement and the scales of its weights"
        is_ill = value > RESIDUAL_SLOPE_LIMIT and not last < RESIDUAL_LEAST_TOTAL * first
        found.append(
            Finding(
                code="residual-growth",
                severity="warning" if is_ill else "info",
                confidence=0.8,
                block=None,
                stack=int(stack),
                component=f"stack {stack}",
                module_path="",
                step=step,
                sentence=f"The residual stream's RMS{tables.stack_name(stack)} is {first:.3g} after block "
                f"{int(rows['block'].iloc[0])} and "
                f"{last:.3g} after block {int(rows['block'].iloc[-1])} (step {step}; trend {value:+.2g} in ln RMS per block)"
                + (": it multiplies with depth." if is_ill else ".")
                + ("" if expected is None else f" The closed form of these weights gives {expected:+.2g} per block."),
                evidence=Evidence(
                    "slope of ln state RMS per block",
                    value,
                    0.0 if expected is None else expected,
                    law,
                    RESIDUAL_SLOPE_LIMIT,
                ),
                remedy="Norm the branches' inputs, or scale their last projections by 1/sqrt(2 x blocks) at init."
                if is_ill
                else "None needed.",
                reference="Xiong et al. 2020, Lemma 2; Sun et al. 2025 (curse of depth).",
            )
        )
    return found


def range_of_fp16(tables: Tables) -> list[Finding]:
    """Warn where a state comes close to fp16's largest number while the model's weights are fp16."""
    dtypes = str(tables.recording.manifest.get("model", {}).get("dtype", "")).split(", ")
    states = tables.state_rms().dropna(subset="absmax")
    if "float16" not in dtypes or not len(states):
        return []
    row = largest(states, "absmax")
    peak, block = float(row["absmax"]), int(row["block"])
    if not FP16_HEADROOM * FP16_LARGEST <= peak < float("inf"):
        return []
    return [
        Finding(
            code="fp16-range",
            severity="warning",
            confidence=1.0,
            block=None if block < 0 else block,
            component=str(row["branch"]),
            module_path="",
            step=int(row["step"]),
            sentence=f"The largest activation of the stream is {peak:,.0f}; fp16 ends at {FP16_LARGEST:,.0f}.",
            evidence=Evidence(
                "largest |activation|", peak, None, "a quarter of fp16's range", FP16_HEADROOM * FP16_LARGEST
            ),
            remedy="Train in bf16, or keep the residual stream in float32.",
            reference="IEEE 754 binary16.",
        )
    ]
