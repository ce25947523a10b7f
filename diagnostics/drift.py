"""Tell what drifted where between checkpoints of one model, each examined on the same batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from rheoscope.probes.recording import Recording

from .frames import block_states
from .opened import opened
from .siblings import apart
from .tables import Tables
from .thresholds import DRIFT_APART

KEYS = ["quantity", "stack", "branch", "block"]
COLUMNS = ["quantity", "stack", "branch", "block", "first", "last", "ratio", "siblings", "half_at", "is_apart"]
WHOLE = -1  # block of a row that is about all blocks together


def measured(recordings: Mapping[int, Recording]) -> pd.DataFrame:
    """Return one row a checkpoint, quantity and place: step, quantity, stack, branch, block, value; what is 0 is left out.

    RMS of the block's last state, of the loss's gradient there, of weight matrices and of norm gains; standard deviation of
    attention's logits and their entropy; bias share; log Z of the output.
    """
    parts = [frame.assign(step=step) for step, one in recordings.items() for frame in _quantities(opened(one))]
    if not parts:
        return pd.DataFrame(columns=["step", *KEYS, "value"])
    rows = pd.concat(parts, ignore_index=True)[["step", *KEYS, "value"]]
    values = rows["value"].to_numpy(float)
    known: pd.DataFrame = rows[np.isfinite(values) & (values > 0)].reset_index(drop=True)
    return known


def drift(recordings: Mapping[int, Recording]) -> pd.DataFrame:
    """Return how each quantity changed from the first checkpoint to the last: ``COLUMNS``, what changed most first.

    A row of block -1 is about all blocks of a stack: medians. The others are blocks whose change stands apart from that of their
    siblings (``is_apart``), and quantities of no block. ``half_at`` is the first checkpoint by which half of the change, in
    logarithms, was there.

    Args:
        recordings: check-ups by step of the checkpoint; at least two.
    """
    rows = measured(recordings)
    steps = sorted(recordings)
    found = []
    for (quantity, stack, branch), group in rows.groupby(KEYS[:3], sort=True):
        table = group.pivot_table(index="block", columns="step", values="value").reindex(columns=steps)
        table = table.dropna(subset=[steps[0], steps[-1]])
        if not len(table):
            continue
        ratios = (table[steps[-1]] / table[steps[0]]).to_numpy(float)
        blocks = [int(block) for block in table.index.to_numpy()]
        place = {"quantity": quantity, "stack": int(str(stack)), "branch": branch}
        found.append({**place, **_change(table.median(), WHOLE if len(table) > 1 else blocks[0])})
        for odd in apart(ratios.tolist(), DRIFT_APART):
            row = table.iloc[odd.index]
            change = _change(row, blocks[odd.index])
            found.append({**place, **change, "siblings": odd.middle, "is_apart": True})
    frame = pd.DataFrame(found, columns=COLUMNS)
    size = np.abs(np.log(frame["ratio"].to_numpy(float)))
    return frame.assign(size=size).sort_values(["is_apart", "size"], ascending=False, ignore_index=True)[COLUMNS]


def _change(values: pd.Series, block: int) -> dict[str, object]:
    """Return first, last, ratio and where half of the change was there, of one quantity by step."""
    known = values.dropna()
    logs = np.log(known.to_numpy(float))
    moved = np.abs(logs - logs[0]) >= abs(logs[-1] - logs[0]) / 2
    half = int(known.index[int(np.argmax(moved))]) if logs[-1] != logs[0] else None
    first, last = float(known.iloc[0]), float(known.iloc[-1])
    return {"block": block, "first": first, "last": last, "ratio": last / first, "siblings": math.nan, "half_at": half,
            "is_apart": False}  # fmt: skip


def _quantities(tables: Tables) -> Sequence[pd.DataFrame]:
    blocks = {"state RMS": block_states(tables.state_rms()), "gradient RMS": block_states(tables.gradient_profile())}
    found = [_named(frame.assign(branch=""), name, "rms") for name, frame in blocks.items()]
    rows = tables.parameters
    for role, name in (("weight", "weight RMS"), ("gain", "norm gain RMS")):
        chosen = rows[(rows["block"] >= 0) & (rows["role"] == role)].dropna(subset=["weight_rms", "n"])
        energy = chosen.assign(energy=chosen["n"] * chosen["weight_rms"] ** 2, branch=chosen["branch"].fillna(""))
        summed = energy.groupby(["stack", "block", "branch"], as_index=False)[["energy", "n"]].sum()
        found.append(_named(summed.assign(rms=np.sqrt(summed["energy"] / summed["n"])), name, "rms"))
    heads = (
        tables.attention().groupby(["stack", "block", "branch"], as_index=False)[["logit_std", "entropy_ratio"]].mean()
    )
    found += [_named(heads, "attention logits' std", "logit_std"), _named(heads, "attention entropy", "entropy_ratio")]
    found.append(_named(tables.bias_share(), "bias share", "bias_share"))
    log_z = tables.log_z()
    found.append(_named(log_z.assign(block=WHOLE, branch="output"), "log Z", "log_z"))
    return [frame for frame in found if len(frame)]


def _named(frame: pd.DataFrame, quantity: str, column: str) -> pd.DataFrame:
    return frame.rename(columns={column: "value"}).assign(quantity=quantity)[[*KEYS, "value"]]
