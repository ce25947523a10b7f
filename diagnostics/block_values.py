"""Give each block the few numbers that colour it: its state, the gradient there, and what the skips carry of it."""

from __future__ import annotations

import pandas as pd

from .frames import block_states
from .tables import Tables

COLUMNS = ["stack", "block", "state_rms", "gradient_rms", "skip_share"]


def block_values(tables: Tables) -> pd.DataFrame:
    """Return one row a block, at the last sampled step: stack, block, state_rms, gradient_rms, skip_share.

    ``state_rms`` and ``gradient_rms`` are of the block's last state. ``skip_share`` is what comes back along the skips of the
    block's adds over what comes back along skips and through branches together, in energies: sum skip^2 / sum (skip^2 +
    branch^2); the two parts may point against each other, so that this is no share of the energy of their sum. What is not
    recorded at that step is NaN.
    """
    if not tables.sampled_steps:
        return pd.DataFrame(columns=COLUMNS)
    step = tables.sampled_steps[-1]
    states, gradients = (
        block_states(frame[frame["step"] == step]).set_index(["stack", "block"])["rms"]
        for frame in (tables.state_rms(), tables.gradient_profile())
    )
    adds = tables.paths()
    adds = adds[(adds["step"] == step) & (adds["block"] >= 0)].dropna(subset=["skip_rms", "branch_rms"])
    energies = adds.assign(skip=adds["skip_rms"] ** 2, both=adds["skip_rms"] ** 2 + adds["branch_rms"] ** 2)
    summed = energies.groupby(["stack", "block"])[["skip", "both"]].sum()
    share = summed["skip"] / summed["both"].where(summed["both"] > 0)
    found = pd.DataFrame({"state_rms": states, "gradient_rms": gradients, "skip_share": share})
    return found.rename_axis(["stack", "block"]).reset_index()[COLUMNS]
