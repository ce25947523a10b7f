"""Join what is recorded of parameters over those of a block: sizes of weights and biases, and what Adam knows of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .tables import Tables

_BLOCK = ["step", "stack", "block"]


def block_rms(tables: Tables, roles: Sequence[str], column: str = "weight_rms") -> pd.DataFrame:
    """Return step, stack, block, rms: over all elements of a block's parameters of these roles together.

    Args:
        tables: of the recording.
        roles: such as weight; bias and norm_bias.
        column: an RMS in table parameters: weight_rms, update_rms, staleness, second_moment_rms.
    """
    rows = _inside(tables, roles, column)
    energies = rows.assign(energy=rows["n"] * rows[column].astype(float) ** 2)
    frame = energies.groupby(_BLOCK, as_index=False)[["energy", "n"]].sum()
    return frame[_BLOCK].assign(rms=np.sqrt(frame["energy"] / frame["n"].where(frame["n"] > 0)))


def block_share(tables: Tables, roles: Sequence[str], column: str) -> pd.DataFrame:
    """Return step, stack, block, share: of all elements of a block's parameters of these roles together.

    Args:
        tables: of the recording.
        roles: such as weight.
        column: a share of elements in table parameters: below_epsilon_share.
    """
    rows = _inside(tables, roles, column)
    counts = (
        rows.assign(counted=rows["n"] * rows[column].astype(float))
        .groupby(_BLOCK, as_index=False)[["counted", "n"]]
        .sum()
    )
    return counts[_BLOCK].assign(share=counts["counted"] / counts["n"].where(counts["n"] > 0))


def _inside(tables: Tables, roles: Sequence[str], column: str) -> pd.DataFrame:
    rows = tables.parameters
    return rows[(rows["block"] >= 0) & rows["role"].isin(list(roles)) & rows[column].notna()]
