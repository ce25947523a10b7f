"""Judge every architecture at its own best learning rate: sweep, and read off what the sweep says of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from .experiment import Setting, curve
from .intervals import over_seeds
from .run import Run
from .stability import largest_stable
from .sweep import sweep


def swept(variants: Mapping[str, Run], rates: Sequence[float], setting: Setting) -> pd.DataFrame:
    """Carry out every variant at every learning rate and seed of the setting.

    Args:
        variants: label -> run, whose own learning rate and seed are replaced.
        rates: learning rates.
        setting: its seeds, folder and executor are used.

    Returns:
        The sweep's rows with a column ``label``.
    """
    runs = [
        (label, replace(run, lr=rate, seed=seed))
        for seed in setting.seeds
        for label, run in variants.items()
        for rate in rates
    ]
    found = sweep(
        [run for _, run in runs], setting.folder, executor=setting.executor, on_progress=setting.on_progress
    ).set_index("key")
    rows = [
        found.loc[run.key].to_dict() | {"key": run.key, "label": label, "chance": run.chance} for label, run in runs
    ]
    return pd.DataFrame(rows)


def at_best(frame: pd.DataFrame, by: str = "last_loss") -> pd.DataFrame:
    """Return one row a variant, in their order: what a sweep over learning rates says of it.

    ``best_lr`` is that of the lowest mean last loss over seeds; ``loss`` the interval of the last loss there, ``loss_mean`` its
    mean; ``largest_stable_lr`` the largest up to which no seed diverges or loses half of what the best learned; ``sensitivity``
    the mean over learning rates of the last loss, at most chance, less the best (Wortsman et al. 2023, section 2.2);
    ``n_seeds``, ``n_parameters``, ``cpu_seconds`` a run and ``failed`` runs.

    Args:
        frame: of ``swept``.
        by: the loss that is looked at: last_loss or held_out_loss.
    """
    rows = []
    for label in dict.fromkeys(frame["label"]):
        mine = frame[(frame["label"] == label) & (frame["error"] == "")]
        failed = int(((frame["label"] == label) & (frame["error"] != "")).sum())
        if mine.empty:
            rows.append({"label": label, "failed": failed})
            continue
        means = mine.groupby("lr")[by].mean()
        best = float(means.idxmin())
        loss = over_seeds(mine.loc[mine["lr"] == best, by])
        rows.append(
            {
                "label": label,
                "best_lr": best,
                "loss": str(loss),
                "loss_mean": loss.mean,
                "loss_low": loss.low,
                "loss_high": loss.high,
                "largest_stable_lr": largest_stable(_by_rate(mine, by), float(mine["chance"].iloc[0])),
                "sensitivity": float((means - means.min()).mean()),
                "n_seeds": loss.n,
                "n_parameters": int(mine["n_parameters"].iloc[0]),
                "cpu_seconds": float(mine["cpu_seconds"].mean()),
                "failed": failed,
            }
        )
    return pd.DataFrame(rows)


def sensitivities(frame: pd.DataFrame, label: str) -> list[float]:
    """Return a variant's sensitivity to the learning rate, one a seed: mean last loss over rates less that seed's best."""
    mine = frame[(frame["label"] == label) & (frame["error"] == "")]
    losses = [mine.loc[mine["seed"] == seed, "last_loss"] for seed in sorted(mine["seed"].unique())]
    return [float((each - each.min()).mean()) for each in losses]


def rows_at_best(frame: pd.DataFrame, label: str, by: str = "last_loss") -> pd.DataFrame:
    """Return a variant's runs at its own best learning rate, one a seed, by seed; none where all of them failed."""
    mine = frame[(frame["label"] == label) & (frame["error"] == "")]
    best = None if mine.empty else mine.groupby("lr")[by].mean().idxmin()
    return mine[mine["lr"] == best].set_index("seed").sort_index()


def gaps(frame: pd.DataFrame, a: str, b: str, by: str = "last_loss") -> list[float]:
    """Return by how much variant ``a`` ends above ``b``, each at its own best learning rate, one value a seed, in nats."""
    last = [rows_at_best(frame, label, by)[by] for label in (a, b)]
    return [float(gap) for gap in (last[0] - last[1]).dropna()]


def increases(frame: pd.DataFrame, reference: str) -> dict[str, list[float]]:
    """Return by how many per cent every other variant's held-out loss lies above the reference's, by seed, each at its best."""
    losses = {label: rows_at_best(frame, label, "held_out_loss")["held_out_loss"] for label in frame["label"].unique()}
    return {
        label: [float(value) for value in 100 * (each / losses[reference] - 1)]
        for label, each in losses.items()
        if label != reference
    }


def loss_curves(
    frame: pd.DataFrame, chart: str = "last loss (nats) against learning rate", by: str = "last_loss"
) -> pd.DataFrame:
    """Return rows of a result's curves: last loss against learning rate, one line a variant."""
    lines = []
    for label in dict.fromkeys(frame["label"]):
        mine = frame[frame["label"] == label]
        points = [(rate, over_seeds(mine.loc[mine["lr"] == rate, by])) for rate in sorted(mine["lr"].unique())]
        lines.append(curve(chart, label, points))
    return pd.concat(lines, ignore_index=True)


def _by_rate(rows: pd.DataFrame, by: str) -> dict[float, list[float]]:
    """Return the last losses by learning rate; infinite where a run diverged."""
    losses = rows[by].where(~rows["has_diverged"].astype(bool), math.inf)
    return {float(rate): losses[rows["lr"] == rate].tolist() for rate in rows["lr"].unique()}
