"""Forecast at which step a quantity that grows in training reaches what it must not reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .extrapolation import Reach, reach
from .finding import Evidence, Finding
from .frames import groups
from .tables import Tables
from .thresholds import (
    ATTENTION_LOGIT_LIMIT,
    BIAS_SHARE_HIGH,
    FORECAST_LEAST_POINTS,
    FORECAST_SOON,
    FP16_LARGEST,
    GAIN_LIMIT,
    LOG_Z_LIMIT,
)


@dataclass(frozen=True)
class Series:
    """One quantity at one place over the sampled steps.

    Attributes:
        block: of the place; -1 outside the blocks.
        where: words for the place.
        steps: shape (points), ascending.
        values: at these steps.
        limit: in the value's unit.
    """

    block: int
    where: str
    steps: np.ndarray
    values: np.ndarray
    limit: float


@dataclass(frozen=True)
class Quantity:
    """What is forecast: its code, its name, what happens at the limit, what to do, and where the limit comes from.

    ``warns`` where the backtest (docs/forecasts.md) supports a warning; what it does not is a remark, however soon.
    """

    code: str
    name: str
    then: str
    remedy: str
    law: str
    reference: str
    series: Callable[[Tables], Iterator[Series]]
    warns: bool = False


def forecasts(tables: Tables) -> list[Finding]:
    """Report, of each quantity, the place that reaches its limit first, where the growth so far tells when."""
    if len(tables.sampled_steps) < FORECAST_LEAST_POINTS:
        return []
    found = []
    for quantity in QUANTITIES:
        reached = [
            (when, series)
            for series in quantity.series(tables)
            if (when := reach(series.steps, series.values, series.limit))
        ]
        if reached:
            found.append(_finding(quantity, *min(reached, key=lambda pair: pair[0].step)))
    return found


_GROWTH = {
    "exponential": "grows exponentially",
    "power": "grows as a power of the step",
    "linear": "grows linearly",
    "root": "grows as a root of the step",
}


def _finding(quantity: Quantity, when: Reach, series: Series) -> Finding:
    last, first = int(series.steps[-1]), int(series.steps[0])
    value = float(series.values[-1])
    is_soon = when.step - last <= FORECAST_SOON * (last - first)
    band = (
        f"between {when.earliest:,.0f} and {when.latest:,.0f}"
        if math.isfinite(when.latest)
        else f"not before {when.earliest:,.0f}"
    )
    return Finding(
        code=quantity.code,
        severity="warning" if is_soon and quantity.warns else "info",
        confidence=0.7,
        block=series.block if series.block >= 0 else None,
        component=series.where,
        module_path="",
        step=last,
        sentence=f"{quantity.name} {series.where} is {value:.3g} at step {last:,} and {_GROWTH[when.law]}: if it goes "
        f"on, it reaches {series.limit:,.6g} at step {when.step:,.0f} ({band}), where {quantity.then}.",
        evidence=Evidence(
            f"step at which {quantity.name.lower()} reaches {series.limit:,.6g}", when.step, None, quantity.law
        ),
        remedy=quantity.remedy,
        reference=quantity.reference,
    )


def _attention_logits(tables: Tables) -> Iterator[Series]:
    rows = tables.attention_by_block().dropna(subset=["logit_max"])
    for (stack, block), group in groups(rows, "stack", "block"):
        yield _series(group, "logit_max", block, f"in block {block}{tables.stack_name(stack)}", ATTENTION_LOGIT_LIMIT)


def _fp16_states(tables: Tables) -> Iterator[Series]:
    dtypes = str(tables.recording.manifest.get("model", {}).get("dtype", "")).split(", ")
    if "float16" not in dtypes:
        return
    for (stack, _), group in groups(tables.state_rms().dropna(subset=["absmax"]), "stack", "depth"):
        block = int(group["block"].iloc[0])
        where = f"behind block {block}" if block >= 0 else "of the embedding"
        yield _series(group, "absmax", block, where + tables.stack_name(stack), FP16_LARGEST)


def _log_z(tables: Tables) -> Iterator[Series]:
    rows = tables.log_z().dropna(subset=["log_z"])
    for (stack,), group in groups(rows.assign(log_z=rows["log_z"].abs()), "stack"):
        yield _series(group, "log_z", -1, f"of the logits{tables.stack_name(stack)}", LOG_Z_LIMIT)


def _gains(tables: Tables) -> Iterator[Series]:
    rows = tables.parameters
    gains = rows[(rows["role"] == "gain") & (rows["weight_rms"] > 0)].sort_values("step")
    names, place = np.unique(gains["name"].to_numpy(dtype=str), return_inverse=True)
    order = np.argsort(place, kind="stable")
    edges = np.searchsorted(place[order], np.arange(len(names) + 1))
    steps, sizes, blocks = (gains[column].to_numpy()[order] for column in ("step", "weight_rms", "block"))
    for index, name in enumerate(names):
        mine = slice(edges[index], edges[index + 1])
        growth = sizes[mine] / sizes[mine][0]
        for drift in (growth, 1 / growth):
            yield Series(int(blocks[mine][0]), f"of {name}", steps[mine], drift, GAIN_LIMIT)


def _bias_shares(tables: Tables) -> Iterator[Series]:
    rows = tables.bias_share().dropna(subset=["bias_share"])
    rows = rows[rows["bias_share"] > 0]
    for (stack, _), group in groups(rows, "stack", "depth"):
        block, branch = int(group["block"].iloc[0]), str(group["branch"].iloc[0])
        where = f"of the {branch} branch of block {block}{tables.stack_name(stack)}"
        yield _series(group, "bias_share", block, where, BIAS_SHARE_HIGH)


def _series(rows: pd.DataFrame, column: str, block: int, where: str, limit: float) -> Series:
    steps, values = rows["step"].to_numpy(), rows[column].to_numpy()
    order = np.argsort(steps, kind="stable")
    return Series(block, where, steps[order], values[order], limit)


QUANTITIES = (
    Quantity(
        "forecast-attention-logits",
        "The largest attention logit",
        "attention is a hard choice that no longer learns, and runs diverged",
        "Norm queries and keys (QK-norm), or lower the learning rate.",
        "runs whose logits passed 1e4 diverged",
        "Wortsman et al. 2023, section 3.1.1; Dehghani et al. 2023 (ViT-22B).",
        _attention_logits,
    ),
    Quantity(
        "forecast-fp16-range",
        "The largest activation of the stream",
        "fp16 overflows",
        "Train in bf16, keep the residual stream in float32, or norm the branches' outputs.",
        "fp16's largest number",
        "IEEE 754 binary16.",
        _fp16_states,
        warns=True,
    ),
    Quantity(
        "forecast-log-z",
        "The size of log Z",
        "bf16 logits lie half a unit apart",
        "Add a z-loss (1e-4 log Z squared), or weight decay on the head.",
        "bf16's spacing between 64 and 128",
        "Wortsman et al. 2023, section 3.1.2; Chowdhery et al. 2022 (PaLM).",
        _log_z,
    ),
    Quantity(
        "forecast-gain-drift",
        "The drift of the norm gain",
        "the norm scales its branch by ten times what it began with, or a tenth",
        "Look at weight decay on the norms' gains, and at their learning rate.",
        "ten times where it began, either way",
        "",
        _gains,
        warns=True,
    ),
    Quantity(
        "forecast-bias-share",
        "The bias share",
        "the branch says mostly the same at every token",
        "Drop this bias, or decay it.",
        "half of the output's energy",
        "Chowdhery et al. 2022 (PaLM), section 2: no biases, for stability.",
        _bias_shares,
    ),
)
