"""Make one table of those of a pipeline's stages, where their rows are not simply beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING

from .schema import TABLES

if TYPE_CHECKING:
    import pandas as pd

    from .recording import Recording

ALIKE = 1e-5  # of its size: what stages agree upon
Frames = Sequence["pd.DataFrame"]


def steps_of(frames: Frames) -> pd.DataFrame:
    """Return the rows of all stages as one a step.

    The loss is the last stage's that has one, norms add up as squares, times and memory are the largest.
    """
    import pandas as pd

    indexed = [frame.set_index("step") for frame in frames]
    common = reduce(lambda a, b: a.intersection(b), (frame.index for frame in indexed))
    indexed = [frame.loc[common] for frame in indexed]
    whole = indexed[0].copy()
    for column in ("loss", "lowest_loss", "highest_loss"):
        whole[column] = reduce(lambda late, early: late.combine_first(early), [f[column] for f in reversed(indexed)])
    for column in ("gradient_norm", "unclipped_gradient_norm", "clip_coefficient"):
        whole[column] = _together(column, pd.DataFrame([frame[column] for frame in indexed]).T)
    for column in ("seconds", "memory_bytes", "n_tokens", "micro_batches"):
        whole[column] = pd.concat([frame[column] for frame in indexed], axis=1).max(axis=1)
    whole["n_ranks"] = sum(frame["n_ranks"] for frame in indexed)
    whole["batch_id"] = reduce(lambda a, b: a.combine_first(b), [frame["batch_id"] for frame in indexed])
    skipped = pd.concat([frame["is_skipped"] for frame in indexed], axis=1)
    whole["is_skipped"] = skipped.astype("boolean").any(axis=1).where(skipped.notna().any(axis=1))
    whole["is_sampled"] = pd.concat([frame["is_sampled"] for frame in indexed], axis=1).astype("boolean").all(axis=1)
    return whole.reset_index()[list(TABLES["steps"])]


def _together(column: str, values: pd.DataFrame) -> pd.Series:
    """Return norms of stages as one: what all of them agree upon is the whole's already, the pipeline's own clip joined it."""
    whole = values.notna().all(axis=1)
    are_one = (values.max(axis=1) - values.min(axis=1)) <= ALIKE * values.abs().max(axis=1)
    if column == "clip_coefficient":
        return values.iloc[:, 0].where(whole & are_one)
    squares = (values**2).sum(axis=1) ** 0.5
    joined = values.iloc[:, 0].where(are_one, squares) if column == "unclipped_gradient_norm" else squares
    return joined.where(whole)


def numbered(frames: Frames) -> list[pd.DataFrame]:
    """Return the rows of table groups, the groups of later stages counted on."""
    found, offset = [], 0
    for frame in frames:
        found.append(frame.assign(group=frame["group"] + offset))
        offset += 1 + int(frame["group"].max()) if len(frame) else 0
    return found


def events(frames: Frames) -> pd.DataFrame:
    """Return the events of all stages: one of all of them once, any other with the stage that tells it."""
    import pandas as pd

    whole = pd.concat([frame.assign(stage=index) for index, frame in enumerate(frames)], ignore_index=True)
    keys = ["step", "kind", "sentence"]
    counts = whole.groupby(keys)["stage"].transform("nunique") if len(whole) else whole["stage"]
    own = counts < len(frames)
    whole.loc[own, "sentence"] = [
        f"Stage {stage}: {sentence}"
        for stage, sentence in zip(whole["stage"][own], whole["sentence"][own], strict=True)
    ]
    return whole.drop_duplicates(keys)[keys]


def one_rank(stage: Recording, index: int, steps: range | None) -> pd.DataFrame:
    """Return what table ranks would hold of a stage that one process trains; ``rank`` is the stage's index."""
    frame = stage.table("steps", steps=steps, columns=["step", "loss", "seconds", "memory_bytes"]).assign(rank=index)
    rows = stage.table(
        "activations", steps=steps, columns=["step", "depth", "site", "direction", "n", "rms", "nonfinite"]
    )
    states = rows[rows["site"] == "state"]
    ends = {"state_rms": ("forward", len(stage.anatomy.branches)), "gradient_rms": ("backward", 0)}
    for name, (direction, depth) in ends.items():
        chosen = states[(states["direction"] == direction) & (states["depth"] == depth)]
        energy = (chosen["rms"] ** 2 * chosen["n"]).groupby(chosen["step"]).sum(min_count=1)
        count = chosen["n"].groupby(chosen["step"]).sum(min_count=1)
        frame[name] = frame["step"].map((energy / count) ** 0.5)
    weights = stage.table("parameters", steps=steps, columns=["step", "n", "weight_rms"])
    squares = (weights["weight_rms"] ** 2 * weights["n"]).groupby(weights["step"]).sum(min_count=1)
    frame["weight_norm"] = frame["step"].map(squares.map(math.sqrt, na_action="ignore"))
    frame["nonfinite"] = frame["step"].map(rows.groupby("step")["nonfinite"].sum(min_count=1))
    return frame[list(TABLES["ranks"])]
