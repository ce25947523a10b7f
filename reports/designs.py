"""Add to a comparison's summary what its runs tell as an experiment: intervals over seeds, learning rates."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rheoscope.diagnostics.designs import learning_rates, sweep
from rheoscope.diagnostics.frames import records
from rheoscope.diagnostics.student import mean_interval

from .compared import Compared
from .theme import number

_CELL = ["group", "placement", "has_biases"]


def with_designs(compared: Compared) -> pd.DataFrame:
    """Return the summary with loss_interval, best_lr and largest_stable_lr: each missing where the runs do not tell it.

    ``loss_interval``: mean final loss with its 95 % interval, of the runs that differ from this one in their seed alone, where
    there are two or more of one learning rate.
    """
    runs = compared.outcomes
    found: dict[str, dict[str, Any]] = {label: {"label": label} for label in runs["label"]}
    for _, alike in runs.groupby([*_CELL, "norm_kind", "n_blocks", "lr"], dropna=False):
        if len(alike) > 1:
            mean, low, high = map(number, mean_interval(alike["loss"].tolist()))
            for label in alike["label"]:
                found[label]["loss_interval"] = f"{mean} ({low} to {high})"
    for best in records(learning_rates(sweep(runs))):
        largest = number(best["largest_stable_lr"]) + ("" if best["is_bounded"] else " or more")
        for label in runs.loc[(runs[_CELL] == [best[name] for name in _CELL]).all(axis=1), "label"]:
            found[label] |= {"best_lr": best["best_lr"], "largest_stable_lr": largest}
    columns = ["label", "loss_interval", "best_lr", "largest_stable_lr"]
    return compared.summary.merge(pd.DataFrame(list(found.values()), columns=columns), on="label", how="left")
