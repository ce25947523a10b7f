"""Say in a few scalars what a sampled step's tables hold: the extremes that tell early that training goes wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

STEP_SCALARS = (
    "loss",
    "lr",
    "gradient_norm",
    "unclipped_gradient_norm",
    "clip_coefficient",
    "loss_scale",
    "memory_bytes",
)


@dataclass(frozen=True)
class Extreme:
    """One scalar of a step: the largest, smallest or sum of a column over the rows that have the values named.

    Attributes:
        name: of the scalar.
        table: where the column is.
        column: its name.
        how: max, min or sum.
        where: which values other columns must have.
    """

    name: str
    table: str
    column: str
    how: str = "max"
    where: tuple[tuple[str, str], ...] = ()


_FORWARD_STATES = (("site", "state"), ("direction", "forward"))
_BACKWARD_STATES = (("site", "state"), ("direction", "backward"))
EXTREMES = (
    Extreme("largest_state_rms", "activations", "rms", where=_FORWARD_STATES),
    Extreme("largest_state_gradient_rms", "activations", "rms", where=_BACKWARD_STATES),
    Extreme("smallest_state_gradient_rms", "activations", "rms", "min", where=_BACKWARD_STATES),
    Extreme("nonfinite_elements", "activations", "nonfinite", "sum"),
    Extreme("smallest_skip_gain", "gradient_paths", "skip_gain", "min"),
    Extreme("largest_skip_gain", "gradient_paths", "skip_gain"),
    Extreme("largest_update_ratio", "parameters", "update_ratio", where=(("role", "weight"),)),
    Extreme("largest_staleness", "parameters", "staleness", where=(("role", "weight"),)),
    Extreme("largest_attention_logit", "attention", "logit_max"),
    Extreme("smallest_attention_entropy_ratio", "attention", "entropy_ratio", "min"),
    Extreme("largest_output_logit", "logits", "logit_max"),
    Extreme("log_z", "logits", "log_z"),
    Extreme("largest_token_cosine", "tokens", "cosine"),
    Extreme("largest_expert_load", "experts", "load"),
)
_HOW: dict[str, Callable[..., Any]] = {"max": np.max, "min": np.min, "sum": np.sum}


def scalars_of(table: str, columns: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Return by step the scalars of a table's columns, as they are written; one of which there is no value is left out."""
    found: dict[int, dict[str, float]] = {}
    wanted = [extreme for extreme in EXTREMES if extreme.table == table and extreme.column in columns]
    if not wanted:
        return found
    steps = np.asarray(_plain(columns["step"]), dtype=np.int64)
    for extreme in wanted:
        values = np.array([math.nan if v is None else v for v in _plain(columns[extreme.column])], dtype=np.float64)
        chosen = ~np.isnan(values)
        for column, value in extreme.where:
            chosen &= np.asarray(_plain(columns[column]), dtype=object) == value
        for step in np.unique(steps[chosen]):
            found.setdefault(int(step), {})[extreme.name] = float(_HOW[extreme.how](values[chosen & (steps == step)]))
    return found


def joined(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Return the scalars of a step whose table was written in two parts."""
    how = {extreme.name: extreme.how for extreme in EXTREMES}
    both = {name: float(_HOW[how[name]]([first[name], second[name]])) for name in first.keys() & second.keys()}
    return {**first, **second, **both}


def step_scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalars of a row of table steps."""
    return {name: float(row[name]) for name in STEP_SCALARS if row.get(name) is not None}


def _plain(values: Any) -> Sequence[Any]:
    return values.to_pylist() if isinstance(values, pa.Array) else list(values)
