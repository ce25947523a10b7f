"""Find massive activations: one value, or one channel, that dwarfs the rest of the stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from .finding import Evidence, Finding
from .frames import PLACE, groups, joined, records
from .harm import is_harmed
from .steadiness import order
from .tables import Tables
from .thresholds import (
    CHANNEL_EVEN,
    CHANNEL_GROWS,
    CHANNEL_MOST,
    CHANNEL_SHARE,
    FORECAST_LEAST_POINTS,
    FORECAST_ORDERED,
    MASSIVE_PEAK,
)

_NONE_NEEDED = (
    "None needed while training in bf16 or float32. Quantising to 8 bits by one scale a tensor loses the other channels, "
    "and fp16 ends at 65,504."
)


def massive_activations(tables: Tables) -> list[Finding]:
    """Remark on the block behind which a value or a channel first dwarfs the stream; warn where one channel takes over.

    A value counts from MASSIVE_PEAK times the RMS of the state on, a channel from CHANNEL_SHARE of the state's energy in its
    mean over tokens. Trained networks have both on purpose (Sun et al. 2024). It is a warning only where the mean of one channel
    makes most of the state's energy from one block on, still grows at the end of the run, and the loss has not fallen.
    """
    rows = _states(tables)
    found = []
    for (stack,), group in groups(rows, "stack"):
        last = group[group["step"] == group["step"].max()].sort_values("depth")
        massive = records(last[last["is_massive"]])
        if not massive:
            continue
        row, first_depth = massive[0], int(last["depth"].iloc[0])
        before = last.loc[last["depth"] == row["depth"] - 1, "share"]
        grown = _growth(group[group["depth"] == row["depth"]])
        is_ill = (
            row["share"] > CHANNEL_MOST
            and int(row["depth"]) > first_depth
            and len(before) > 0
            and float(before.iloc[0]) < CHANNEL_SHARE
            and grown > CHANNEL_GROWS
            and is_harmed(tables, int(group["step"].min()))
        )
        found.append(_finding(tables, stack, row, len(massive), grown if is_ill else None))
    return found


def _states(tables: Tables) -> pd.DataFrame:
    """Return step, place, rms, peak (absmax over RMS), channel (largest mean of one), share (its energy's), is_massive."""
    rows = tables.activations
    rows = rows[(rows["site"] == "state") & (rows["direction"] == "forward") & (rows["rms"] > 0)]
    rows = rows.assign(energy=rows["rms"] ** 2, channel=rows["channel_absmean"])
    frame = joined(rows, ["step", *PLACE], {"energy": "mean", "absmax": "max", "channel": "max"})
    widths = {stack.index: float(stack.width) for stack in tables.anatomy.stacks if stack.width}
    width = frame["stack"].map(widths).astype(float)
    frame = frame.assign(
        rms=np.sqrt(frame["energy"]),
        peak=frame["absmax"] / np.sqrt(frame["energy"]),
        times=frame["channel"] ** 2 / frame["energy"],
    )
    frame = frame.assign(share=(frame["times"] / width).fillna(0.0))
    is_channel = (frame["share"] > CHANNEL_SHARE) & (frame["times"] > CHANNEL_EVEN)
    return pd.DataFrame(frame.assign(is_massive=is_channel | (frame["peak"] > MASSIVE_PEAK)))


def _growth(rows: pd.DataFrame) -> float:
    """Return by how much the largest channel's mean grew over the last half of the run, 0 where it did not grow steadily."""
    rows = rows.sort_values("step")
    steps, values = rows["step"].to_numpy(float), rows["channel"].to_numpy(float)
    recent = values[steps >= (steps[0] + steps[-1]) / 2]
    if len(recent) < FORECAST_LEAST_POINTS or not (recent > 0).all():
        return 0.0
    return float(np.median(recent[-3:]) / np.median(recent[:3])) if order(recent) > FORECAST_ORDERED else 0.0


def _finding(tables: Tables, stack: int, row: dict[str, Any], n: int, grown: float | None) -> Finding:
    block, peak, share = int(row["block"]), float(row["peak"]), float(row["share"])
    by_channel = share > CHANNEL_SHARE
    where = f"behind the {row['branch']} branch of block {block}" if block >= 0 else "at the embedding"
    what = (
        f"the mean of one channel makes {share:.0%} of the state's energy"
        if by_channel
        else f"the largest value is {peak:,.0f} times the state's RMS"
    )
    return Finding(
        code="massive-activations",
        severity="info" if grown is None else "warning",
        confidence=0.9 if grown is None else 0.6,
        block=block if block >= 0 else None,
        stack=int(stack),
        component=str(row["branch"]),
        module_path="",
        step=int(row["step"]),
        sentence=f"From {where}{tables.stack_name(stack)} on {what}, as in {n} state{'s' if n > 1 else ''}"
        + (
            "." if grown is None else f"; before it none did, and it grew by {grown:.2g} over the last half of the run."
        ),
        evidence=Evidence(
            "share of the state's energy in the mean of one channel", share, None, "one branch", CHANNEL_SHARE
        )
        if by_channel
        else Evidence("largest |activation| / RMS of the state", peak, None, "Sun et al. 2024", MASSIVE_PEAK),
        remedy=_NONE_NEEDED
        if grown is None
        else "Look at this branch's last bias and projection: what writes the same to every token, and whether weight decay "
        "spares it.",
        reference="Sun et al. 2024 (massive activations); Dettmers et al. 2022 (LLM.int8).",
    )
