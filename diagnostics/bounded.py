"""Read tables of any length as bounded frames: a short one whole, of a long one whole steps, chosen so that nothing hides.

A long table's summary keeps the last sampled step of every bucket as it was recorded. To these come the steps that stand
out, found through the summary's extremes and read from the table: the first and the last step with something that is not
finite and the sampled step before, the largest activation and logit, and where the stream or its gradient, or the slope of
either over depth, departs furthest from its neighbours. Every row is one that was recorded; a rule need not know the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from rheoscope.probes.recording import Recording

N_OUTLYING = 2  # buckets that are searched for the stream and for its gradient
_SITE = ["stack", "depth", "site", "direction"]


def bounded(recording: Recording, name: str, steps: frozenset[int]) -> pd.DataFrame:
    """Return table ``name``: whole where it is short, else the kept steps and ``steps``, by step.

    Raises:
        RecordingError: the table cannot be read.
    """
    if not recording.is_long(name):
        return recording.table(name)
    kept, whole = recording.summary(name), recording.table(name, steps=[])
    wanted = steps | _extremes(recording) if name == "steps" else steps
    more = recording.table(name, steps=wanted)
    # A series whose last step of a bucket is one of those that stand out would come twice.
    kept = kept.loc[~kept["step"].isin(more["step"].unique()), whole.columns]
    return pd.concat([kept, more], ignore_index=True).sort_values("step", kind="stable", ignore_index=True)


def outstanding(recording: Recording) -> frozenset[int]:
    """Return the steps that must not be left out of any long table; empty where none is long.

    Raises:
        RecordingError: a table cannot be read.
    """
    names = ("steps", "activations", "parameters", "attention", "gradient_paths", "tokens")
    if not any(map(recording.is_long, names)):
        return frozenset()
    finders = (_losses, _ill_activations, _largest, _departures, _ill_parameters)
    found = {step for finder in finders for step in finder(recording)}
    return frozenset(found)


def _losses(recording: Recording) -> Iterator[int]:
    """Yield the first step whose loss is not finite."""
    rows, events = recording.table("steps", columns=["step", "loss"]), recording.table("events")
    ill = [*rows.loc[np.isinf(rows["loss"].to_numpy(float)), "step"]]
    ill += [*events.loc[events["kind"] == "nonfinite_loss", "step"]]
    yield from [int(min(ill))] if ill else []


def _extremes(recording: Recording) -> frozenset[int]:
    """Return where loss and gradient norm are largest and smallest in every bucket: a spike stays in the picture."""
    columns = ["loss", "gradient_norm"]
    rows = recording.table("steps", columns=["step", *columns]).dropna(subset=["step"])
    edges = np.unique(recording.summary("steps", columns=[])["step"])
    rows["bucket"] = np.searchsorted(edges, rows["step"].to_numpy())
    found: set[int] = set()
    for column in columns:
        known = rows[np.isfinite(rows[column].astype(float))].groupby("bucket")[column]
        found |= {int(step) for places in (known.idxmax(), known.idxmin()) for step in rows.loc[places, "step"]}
    return frozenset(found)


def _ill_activations(recording: Recording) -> Iterator[int]:
    summary = recording.summary("activations", columns=["nonfinite"])
    ill = summary[summary["nonfinite_max"] > 0]
    yield from _first_and_last(recording, "activations", ["nonfinite"], ill, lambda rows: rows["nonfinite"] > 0)


def _ill_parameters(recording: Recording) -> Iterator[int]:
    """Yield where a gradient is there and not finite: its size is then null."""
    summary = recording.summary("parameters", columns=["gradient_rms"])
    ill = summary[(summary["gradient_state"] == "value") & (summary["gradient_rms_n"] < summary["n_rows"])]
    columns = ["gradient_state", "gradient_rms"]
    yield from _first_and_last(recording, "parameters", columns, ill, _has_no_gradient)


def _has_no_gradient(rows: pd.DataFrame) -> pd.Series:
    size = rows["gradient_rms"].astype(float)
    return (rows["gradient_state"] == "value") & (size.isna() | np.isinf(size))


def _first_and_last(
    recording: Recording,
    name: str,
    columns: Sequence[str],
    ill: pd.DataFrame,
    is_ill: Callable[[pd.DataFrame], pd.Series],
) -> Iterator[int]:
    """Yield the first and the last step of the rows that are ill, and the sampled step before the first."""
    for bucket in {ill["bucket"].min(), ill["bucket"].max()} if len(ill) else ():
        rows = _inside(recording, name, ill[ill["bucket"] == bucket], ["step", *columns])
        steps = rows.loc[is_ill(rows), "step"]
        yield from (int(steps.min()), int(steps.max()))
        if bucket == ill["bucket"].min():
            sampled = recording.table("steps", columns=["step", "is_sampled"])
            is_before = sampled["is_sampled"].eq(other=True) & (sampled["step"] < steps.min())
            yield from map(int, sampled.loc[is_before, "step"].tail(1))


def _largest(recording: Recording) -> Iterator[int]:
    """Yield where the stream's largest activation is, and the largest attention logit."""
    for name, column in (("activations", "absmax"), ("attention", "logit_max")):
        summary = recording.summary(name, columns=[column])
        if "site" in summary:
            summary = summary[(summary["site"] == "state") & (summary["direction"] == "forward")]
        if summary[f"{column}_max"].notna().any():
            top = summary.loc[[summary[f"{column}_max"].idxmax()]]
            rows = _inside(recording, name, top, ["step", column])
            yield from map(int, rows.loc[rows[column] == top[f"{column}_max"].iloc[0], "step"].head(1))


def _departures(recording: Recording) -> Iterator[int]:
    """Yield where the RMS of the states, or of their gradients, is largest, smallest and steepest over depth.

    Only the buckets are searched in which some state's values lie furthest apart: a step that stands out lies in one.
    """
    summary = recording.summary("activations", columns=["rms"])
    states = summary[(summary["site"] == "state") & (summary["rms_min"] > 0)]
    for side in ("forward", "backward"):
        mine = states[states["direction"] == side]
        apart = (mine["rms_max"] / mine["rms_min"]).groupby(mine["bucket"]).max()
        for bucket in apart.nlargest(N_OUTLYING).index:
            rows = _inside(recording, "activations", mine[mine["bucket"] == bucket], ["step", *_SITE, "rms"])
            rows = rows[(rows["site"] == "state") & (rows["direction"] == side) & (rows["rms"] > 0)]
            grid = rows.assign(level=np.log(rows["rms"])).pivot_table(
                index="step", columns=["stack", "depth"], values="level"
            )
            sizes = grid.dropna()
            if len(sizes):
                depths = sizes.columns.get_level_values("depth").to_numpy(dtype=float)
                level, tilt = sizes.mean(axis=1), (sizes * (depths - depths.mean())).sum(axis=1)
                yield from map(int, (level.idxmax(), level.idxmin(), tilt.idxmax(), tilt.idxmin()))


def _inside(recording: Recording, name: str, rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the table's own rows at the steps that some rows of its summary stand for."""
    span = range(int(rows["first_step"].min()), int(rows["step"].max()) + 1)
    return recording.table(name, steps=span, columns=list(columns))
