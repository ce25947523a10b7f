"""Hold a run against the recording of a good one: what leaves the band of values that the good run took around the same step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.errors import RecordingError

from .finding import Evidence, Finding
from .frames import groups
from .tables import Tables
from .thresholds import BASELINE_APART, BASELINE_LASTS, BASELINE_NEAR


@dataclass(frozen=True)
class Quantity:
    """A series per place: its code, its name, how it is read, the column, what tells places apart, below what it is nothing."""

    code: str
    name: str
    rows: Callable[[Tables], pd.DataFrame]
    column: str
    place: str
    floor: float


QUANTITIES = (
    Quantity("baseline-state", "RMS of the state", Tables.state_rms, "rms", "depth", 1e-12),
    Quantity("baseline-gradient", "gradient RMS of the state", Tables.gradient_profile, "rms", "depth", 1e-20),
    Quantity("baseline-update", "update ratio", Tables.update_ratios, "ratio", "block", 1e-8),
    Quantity(
        "baseline-attention-logit", "largest attention logit", Tables.attention_by_block, "logit_max", "block", 1.0
    ),
    Quantity("baseline-bias-share", "bias share", Tables.bias_share, "bias_share", "depth", 0.01),
)


@dataclass(frozen=True)
class _Departure:
    """Where one place first leaves the band, for good or for long enough."""

    step: int
    stack: int
    block: int
    branch: str
    value: float
    low: float
    high: float

    @property
    def ratio(self) -> float:
        """By how much the value lies outside the baseline's own range, above 1 whichever way."""
        return self.value / self.high if self.value > self.high else self.low / self.value


def against_baseline(tables: Tables, baseline: Tables) -> list[Finding]:
    """Report, of each quantity, the place that leaves the baseline's band first.

    At a step the band is the range of the baseline's values at steps within a factor of BASELINE_NEAR, widened by BASELINE_APART
    either way. A place has left it after BASELINE_LASTS sampled steps outside in a row, or where no more are compared.

    Raises:
        RecordingError: the two are not recordings of models of one shape.
    """
    check_alike(tables.anatomy, baseline.anatomy)
    found = []
    for quantity in QUANTITIES:
        departures = sorted(_departures(quantity, tables, baseline), key=lambda d: (d.step, -d.ratio))
        if departures:
            found.append(_finding(quantity, tables, departures))
    return found


def not_compared(tables: Tables, baseline: Tables) -> list[str]:
    """Say what of a run the baseline does not reach, and what it does not hold."""
    if not baseline.sampled_steps or not tables.sampled_steps:
        return ["Nothing was held against the baseline: one of the two holds no sampled step."]
    told = []
    last = BASELINE_NEAR * (baseline.sampled_steps[-1] + 1) - 1
    if tables.sampled_steps[-1] > last:
        told.append(f"Steps after {int(last):,} were not held against the baseline, which ends before.")
    for quantity in QUANTITIES:
        if len(quantity.rows(tables)) and not len(quantity.rows(baseline)):
            told.append(
                f"The {quantity.name} was not held against the baseline, in whose recording there is none of it."
            )
    return told


def check_alike(anatomy: Anatomy, baseline: Anatomy) -> None:
    """Refuse two anatomies that are not of one shape: stacks, widths, and the kinds of their branches in order.

    Raises:
        RecordingError: one is unknown, or they differ.
    """
    shapes = [
        [(stack.width, tuple((branch.block, branch.kind) for branch in stack.branches)) for stack in one.stacks]
        for one in (anatomy, baseline)
    ]
    if not all(any(branches for _, branches in shape) for shape in shapes):
        raise RecordingError(
            "Expected a recording and a baseline that both name a residual stream, got "
            f"{anatomy.n_branches} and {baseline.n_branches} branches. Pass recordings of models that were discovered."
        )
    if shapes[0] != shapes[1]:
        raise RecordingError(
            f"Expected a baseline of the same model, got {_words(baseline)} beside {_words(anatomy)}. "
            "Pass the recording of a good run of this model."
        )


def _words(anatomy: Anatomy) -> str:
    stacks = [f"{stack.n_blocks} blocks of {stack.width} ({len(stack.branches)} branches)" for stack in anatomy.stacks]
    return " and ".join(stacks)


def _departures(quantity: Quantity, tables: Tables, baseline: Tables) -> Iterator[_Departure]:
    keys = ["stack", quantity.place]
    good = {tuple(place): rows for place, rows in groups(_known(quantity, baseline), *keys)}
    for place, rows in groups(_known(quantity, tables), *keys):
        if tuple(place) in good:
            yield from _first(rows, good[tuple(place)])


def _known(quantity: Quantity, tables: Tables) -> pd.DataFrame:
    rows = quantity.rows(tables)
    rows = rows.assign(value=rows[quantity.column].astype(float).clip(lower=quantity.floor))
    return pd.DataFrame(rows[np.isfinite(rows["value"])].sort_values("step"))


def _first(rows: pd.DataFrame, good: pd.DataFrame) -> Iterator[_Departure]:
    """Yield the first of enough steps in a row outside the band, if there are any."""
    steps, values = good["step"].to_numpy(float) + 1, good["value"].to_numpy(float)
    run: list[_Departure] = []
    n_compared = 0
    for row in rows.to_dict("records"):
        step = float(row["step"]) + 1
        near = values[(steps >= step / BASELINE_NEAR) & (steps <= step * BASELINE_NEAR)]
        if not len(near):
            continue
        n_compared += 1
        low, high, value = float(near.min()), float(near.max()), float(row["value"])
        if low / BASELINE_APART <= value <= high * BASELINE_APART:
            run = []
            continue
        branch = str(row.get("branch", ""))
        run.append(_Departure(int(row["step"]), int(row["stack"]), int(row["block"]), branch, value, low, high))
        if len(run) == BASELINE_LASTS:
            break
    if len(run) == BASELINE_LASTS or (run and n_compared == len(run)):
        yield run[0]


def _finding(quantity: Quantity, tables: Tables, departures: list[_Departure]) -> Finding:
    first = departures[0]
    others = len(departures) - 1
    where = (
        f"at the {first.branch or 'end'} of block {first.block}"
        if first.block >= 0 and quantity.place == "depth"
        else (f"of block {first.block}" if first.block >= 0 else "at the embedding")
    ) + tables.stack_name(first.stack)
    way = "above" if first.value > first.high else "below"
    size = first.ratio if math.isfinite(first.ratio) else math.inf
    return Finding(
        code=quantity.code,
        severity="warning",
        confidence=0.7,
        block=first.block if first.block >= 0 else None,
        stack=first.stack,
        component=first.branch or f"stack {first.stack}",
        module_path="",
        step=first.step,
        sentence=f"The {quantity.name} {where} is {first.value:.3g} at step {first.step:,}; around that step the baseline lies "
        f"between {first.low:.3g} and {first.high:.3g}: {size:.3g} times {way}."
        + (f" It leaves its band at {others} other place{'s' if others > 1 else ''} as well." if others else ""),
        evidence=Evidence(
            quantity.name,
            first.value,
            first.high if way == "above" else first.low,
            f"the baseline at steps within a factor of {BASELINE_NEAR:g}",
            BASELINE_APART,
        ),
        remedy="Look for what differs from the baseline at this place and step: data, learning rate, code.",
    )
