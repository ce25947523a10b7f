"""Look at compared runs as cells of an experiment: learning rates swept, placements and biases crossed, seeds repeated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from .frames import records
from .student import contrast_interval, mean_interval

_CELL = ["group", "placement", "has_biases"]
_SHARED = ["norm_kind", "n_blocks"]


def outcomes(summary: pd.DataFrame, losses_of: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return one row a run that was trained: label, group, placement, has_biases, norm_kind, n_blocks, lr, loss, is_stable.

    ``lr``: the largest learning rate of the run, NaN where none was recorded. ``loss``: the mean over the last tenth of its
    steps. ``is_stable``: whether every loss is finite and ``loss`` lies below the first.

    Args:
        summary: as ``Comparison.summary`` gives it.
        losses_of: label -> columns loss and lr, one row a step.
    """
    rows = []
    for row in records(summary):
        steps = losses_of[row["label"]]
        losses = steps["loss"].astype(float)
        if len(losses) < 2 or not losses.notna().any():
            continue
        is_stable = bool(np.isfinite(losses.dropna()).all() and row["loss_last"] < losses.dropna().iloc[0])
        lr = float(steps["lr"].astype(float).max())
        kept = {name: row[name] for name in ["label", *_CELL, *_SHARED]}
        rows.append({**kept, "lr": lr, "loss": row["loss_last"], "is_stable": is_stable})
    return pd.DataFrame(rows, columns=["label", *_CELL, *_SHARED, "lr", "loss", "is_stable"])


def sweep(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell and learning rate: group, placement, has_biases, lr, loss, low, high, n_runs, n_stable.

    Cells are those of runs that differ in placement or biases; one with a single learning rate is no sweep and left out.
    ``loss`` is the mean over its stable runs with the 95 % interval, NaN without one.

    Args:
        runs: as ``outcomes`` gives them.
    """
    rows: list[dict[str, Any]] = []
    known = runs.dropna(subset=["lr"])
    for cell, mine in known.groupby(_CELL, sort=False):
        if mine["lr"].nunique() < 2:
            continue
        for lr, alike in mine.groupby("lr", sort=True):
            stable = alike.loc[alike["is_stable"], "loss"].astype(float).tolist()
            loss, low, high = mean_interval(stable) if stable else (np.nan, np.nan, np.nan)
            counts = {"n_runs": len(alike), "n_stable": len(stable)}
            rows.append(
                {**dict(zip(_CELL, cell, strict=True)), "lr": lr, "loss": loss, "low": low, "high": high, **counts}
            )
    return pd.DataFrame(rows, columns=[*_CELL, "lr", "loss", "low", "high", "n_runs", "n_stable"])


def learning_rates(swept: pd.DataFrame) -> pd.DataFrame:
    """Return, of every cell of a sweep: group, placement, has_biases, best_lr (lowest loss), largest_stable_lr, is_bounded.

    ``largest_stable_lr`` is the largest at which, and below which, all runs were stable; ``is_bounded`` whether a larger one
    was tried: else the true one may be larger.
    """
    rows = []
    for cell, mine in swept.groupby(_CELL, sort=False):
        ordered = mine.sort_values("lr")
        is_stable = (ordered["n_stable"] == ordered["n_runs"]).cummin()
        stable = ordered.loc[is_stable, "lr"]
        losses = ordered.dropna(subset=["loss"])
        best = float(losses.sort_values("loss", kind="stable")["lr"].iloc[0]) if len(losses) else np.nan
        largest = float(stable.max()) if len(stable) else np.nan
        found = {"best_lr": best, "largest_stable_lr": largest, "is_bounded": bool((~is_stable).any())}
        rows.append({**dict(zip(_CELL, cell, strict=True)), **found})
    return pd.DataFrame(rows, columns=[*_CELL, "best_lr", "largest_stable_lr", "is_bounded"])


def interaction(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the final losses of a factorial of placement and biases, and what is more than the sum of both.

    One row a cell (``effect`` empty: ``loss`` with its 95 % interval over seeds), then one a pair of placements with ``effect``
    ``interaction``: (B with biases - B without) - (A with - A without), of placements A and B, with Welch's interval. Columns
    group, effect, placement, has_biases, loss, low, high, n_runs. Empty where a group lacks a cell, or a cell has one run
    alone: without repetitions nothing tells an effect from chance. Runs of a group that differ in norm kind, depth or learning
    rate are no factorial of these two alone.

    Args:
        runs: as ``outcomes`` gives them.
    """
    rows: list[dict[str, Any]] = []
    for group, mine in runs[runs["is_stable"].astype(bool)].groupby("group", sort=False):
        placements = list(dict.fromkeys(mine["placement"]))
        cells = {
            (placement, biases): mine.loc[
                (mine["placement"] == placement) & (mine["has_biases"] == biases), "loss"
            ].tolist()
            for placement in placements
            for biases in (True, False)
        }
        is_one_design = all(mine[name].nunique(dropna=False) == 1 for name in [*_SHARED, "lr"])
        if len(placements) < 2 or not is_one_design or min(map(len, cells.values())) < 2:
            continue
        for (placement, biases), losses in cells.items():
            rows.append(_row(group, "", placement, mean_interval(losses), len(losses), has_biases=biases))
        first = placements[0]
        for other in placements[1:]:
            signs = {(other, True): 1.0, (other, False): -1.0, (first, True): -1.0, (first, False): 1.0}
            found = contrast_interval([(sign, cells[cell]) for cell, sign in signs.items()])
            n = sum(len(cells[cell]) for cell in signs)
            rows.append(_row(group, "interaction", f"{other} against {first}", found, n, has_biases=None))
    return pd.DataFrame(rows, columns=["group", "effect", "placement", "has_biases", "loss", "low", "high", "n_runs"])


def _row(
    group: object, effect: str, placement: str, found: tuple[float, float, float], n: int, *, has_biases: bool | None
) -> dict[str, Any]:
    names = {"group": group, "effect": effect, "placement": placement, "has_biases": has_biases}
    return {**names, "loss": found[0], "low": found[1], "high": found[2], "n_runs": n}
