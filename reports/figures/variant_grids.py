"""Compare variants block by step: one heatmap each, all on one scale of colours."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from rheoscope.diagnostics.frames import block_states
from rheoscope.reports.compared import Compared
from rheoscope.reports.theme import number, plain

from .chart import Chart
from .heatmap import heatmaps

MOST_GRIDS = 12  # heatmaps of one chart


def gradients(compared: Compared) -> Chart:
    """Draw the gradient RMS after every block at every sampled step, variant by variant."""
    key, title = "gradient-grids", "Gradient RMS after every block at every sampled step"
    reading = (
        "One heatmap a variant, block by step, all on one scale of colours: a column that darkens towards block 0 is a step at "
        "which the gradient is lost on its way down; rows of one colour are a gradient that every block receives alike."
    )
    found = {label: block_states(tables.gradient_profile()) for label, tables in compared.runs.items()}
    frames = {
        label: frame for label, frame in found.items() if frame["step"].nunique() > 1 and frame["block"].nunique() > 1
    }
    if not frames:
        return Chart(
            key, title, reading, absent="No variant was trained with its gradients sampled at two steps or more."
        )
    ends = {label: ratio for label, frame in frames.items() if (ratio := _first_over_last(frame)) is not None}
    if ends:
        said = "At the last sampled step, the gradient's RMS after the first block over that after the last"
        title = f"{said}: {compared.by_placement(ends)}"
    shown, note = _most(frames)
    return Chart(key, title, reading + note, heatmaps(shown, "rms", "gradient RMS"), table=_labelled(frames))


def bias_shares(compared: Compared) -> Chart:
    """Draw the bias share of every block at every sampled step, variant and kind of branch by kind."""
    key, title = "bias-share-grids", "Bias share of the write, block by step and branch by branch"
    reading = (
        "Energy of the last projection's bias over energy of the branch's output, one heatmap a variant and kind of branch, all "
        "on one scale of colours. Where the ground shows the bias is still 0. A row brighter than the others is a block "
        "that says much of the same at every token."
    )
    frames: dict[str, pd.DataFrame] = {}
    for label, tables in compared.runs.items():
        shares = tables.bias_share().dropna(subset=["bias_share"])
        for kind, rows in shares.groupby("branch", sort=False):
            if rows["step"].nunique() > 1 and (rows["bias_share"] > 0).any():
                frames[f"{label}: {plain(kind, 24)}"] = rows
    if not frames:
        return Chart(key, title, reading, absent="No variant was trained with a bias at the end of a branch.")
    last = {name: rows[rows["step"] == rows["step"].max()] for name, rows in frames.items()}
    name = max(last, key=lambda found: float(last[found]["bias_share"].max()))
    top = last[name].loc[last[name]["bias_share"].idxmax()]
    title = (
        f"The largest share at the last sampled step is {number(float(top['bias_share']))}, in block {int(top['block'])} "
        f"({plain(name)})"
    )
    shown, note = _most(frames)
    return Chart(key, title, reading + note, heatmaps(shown, "bias_share", "bias share"), table=_labelled(frames))


def _first_over_last(frame: pd.DataFrame) -> float | None:
    last = frame[frame["step"] == frame["step"].max()].sort_values(["stack", "depth"])
    above = float(last["rms"].iloc[-1])
    return float(last["rms"].iloc[0]) / above if above > 0 else None


def _most(frames: Mapping[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], str]:
    shown = dict(list(frames.items())[:MOST_GRIDS])
    return shown, f" The first {MOST_GRIDS} of {len(frames)} are drawn." if len(shown) < len(frames) else ""


def _labelled(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([rows.assign(variant=label) for label, rows in frames.items()], ignore_index=True)
