"""Derive where a run stands now: its last steps, and the depth profile of its last sampled step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from rheoscope.probes.recording import Recording

from .frames import block_states
from .opened import opened
from .tables import Tables

N_LOSSES = 200  # of the last steps
QUANTITIES = ("state_rms", "gradient_rms", "update_ratio", "logit_max")


@dataclass(frozen=True)
class Latest:
    """Where a run stands.

    Attributes:
        label: of the recording.
        is_closed: whether the run has ended.
        step: the last that is written; -1 before the first.
        sampled_step: the last that was sampled in full; -1 before the first.
        losses: of up to 200 last steps, NaN where it is not known.
        gradient_norm: of the last step that has one; NaN without any.
        seconds: median over these steps of what one takes; NaN where it is not known.
        profile: one row a block of the last sampled step: stack, block, and each of ``QUANTITIES``, NaN where it was not
            recorded; the same with ``first_`` before it at the first sampled step.
    """

    label: str
    is_closed: bool
    step: int
    sampled_step: int
    losses: tuple[float, ...]
    gradient_norm: float
    seconds: float
    profile: pd.DataFrame


def latest(recording: Recording) -> Latest:
    """Return where the run stands that ``recording`` is of, from what is written of it.

    Raises:
        RecordingError: a table cannot be read.
    """
    tables = opened(recording)
    steps = recording.table("steps", columns=["step", "loss", "gradient_norm", "seconds"])
    steps = steps.dropna(subset=["step"]).sort_values("step").tail(N_LOSSES)
    norms = steps["gradient_norm"].astype(float).dropna()
    sampled = tables.sampled_steps
    return Latest(
        label=str(recording.manifest.get("label") or ""),
        is_closed=recording.manifest.get("status") == "closed",
        step=int(steps["step"].iloc[-1]) if len(steps) else -1,
        sampled_step=sampled[-1] if sampled else -1,
        losses=tuple(steps["loss"].astype(float)),
        gradient_norm=float(norms.iloc[-1]) if len(norms) else float("nan"),
        seconds=float(steps["seconds"].astype(float).median()) if len(steps) else float("nan"),
        profile=_profile(tables, sampled),
    )


def _profile(tables: Tables, sampled: list[int]) -> pd.DataFrame:
    keys = ["stack", "block"]
    empty = pd.DataFrame(columns=[*keys, *QUANTITIES, *(f"first_{name}" for name in QUANTITIES)])
    if not sampled:
        return empty
    frames = {
        "state_rms": block_states(tables.state_rms()).rename(columns={"rms": "state_rms"}),
        "gradient_rms": block_states(tables.gradient_profile()).rename(columns={"rms": "gradient_rms"}),
        "update_ratio": tables.update_ratios().rename(columns={"ratio": "update_ratio"}),
        "logit_max": tables.attention_by_block(),
    }
    found: pd.DataFrame | None = None
    for name, frame in frames.items():
        for prefix, step in (("", sampled[-1]), ("first_", sampled[0])):
            column = frame[frame["step"] == step][[*keys, name]].rename(columns={name: prefix + name})
            found = column if found is None else found.merge(column, on=keys, how="outer")
    if found is None or not len(found):
        return empty
    numbers = [name for name in empty.columns if name not in keys]
    found[numbers] = found[numbers].astype(float).replace([np.inf, -np.inf], np.nan)
    return found[list(empty.columns)].sort_values(keys, ignore_index=True)
