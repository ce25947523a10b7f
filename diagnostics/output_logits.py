"""Judge log Z where it has passed what 16 bits tell apart; how it gets there is told by the forecasts."""

from __future__ import annotations

from .finding import Evidence, Finding
from .frames import groups
from .tables import Tables
from .thresholds import LOG_Z_DRIFTED, LOG_Z_LIMIT


def output_logits(tables: Tables) -> list[Finding]:
    """Report logits whose log Z lies beyond LOG_Z_LIMIT; a warning where it drifted there in a model of 16 bits."""
    rows = tables.log_z().dropna(subset=["log_z"])
    dtypes = str(tables.recording.manifest.get("model", {}).get("dtype", "")).split(", ")
    is_short = "bfloat16" in dtypes or "float16" in dtypes
    found = []
    for (stack,), group in groups(rows, "stack"):
        group = group.sort_values("step")
        first, last = float(group["log_z"].iloc[0]), float(group["log_z"].iloc[-1])
        if not LOG_Z_LIMIT <= abs(last) < float("inf"):
            continue
        has_drifted = abs(last) > LOG_Z_DRIFTED * abs(first)
        step = int(group["step"].iloc[-1])
        found.append(
            Finding(
                code="log-z",
                severity="warning" if has_drifted and is_short else "info",
                confidence=0.8,
                block=None,
                stack=int(stack),
                component=f"logits of stack {stack}",
                module_path="",
                step=step,
                sentence=f"log Z of the logits{tables.stack_name(stack)} is {last:.3g} at step {step:,}"
                + (f", {first:.3g} at step {int(group['step'].iloc[0]):,}" if len(group) > 1 else "")
                + ": in bf16 numbers of this size lie half a unit apart or more.",
                evidence=Evidence("log Z", last, 0.0, "bf16's spacing between 64 and 128", LOG_Z_LIMIT),
                remedy="Add a z-loss (1e-4 log Z squared), decay the head's weights, or compute logits and loss in float32.",
                reference="Wortsman et al. 2023, section 3.1.2; Chowdhery et al. 2022 (PaLM).",
            )
        )
    return found
