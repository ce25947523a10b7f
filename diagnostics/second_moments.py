"""Diagnose Adam's second moments: gradients below its epsilon, and moments that remember smaller gradients than come."""

from __future__ import annotations

from statistics import median

import numpy as np
import pandas as pd

from .finding import Evidence, Finding
from .frames import groups
from .spikes import Episode, loss_episodes
from .tables import Tables
from .thresholds import (
    BELOW_EPSILON,
    BELOW_EPSILON_SIBLINGS,
    LEAST_SIBLINGS,
    STALE,
    STALE_AT_ENDS,
    STALE_BEFORE_SPIKE,
    STALE_ONCE,
    STALE_PRECEDES,
    STALE_SIBLINGS,
    UPDATE_JUDGED_AFTER,
)

_LAST = 3  # sampled steps whose median is judged


def below_epsilon(tables: Tables) -> list[Finding]:
    """Report weights most of whose second moments lie below Adam's epsilon: it, and not the gradient, sets their step.

    In one block alone, other than the first, whose queries and keys read bare embeddings, that is a warning; in all of them it is
    the choice of epsilon beside the loss's scale, and a remark. Embeddings are left out: absent tokens have no gradient.
    """
    rows = _weights(tables, "below_epsilon_share")
    rows = rows[rows["step"] >= UPDATE_JUDGED_AFTER]
    found = []
    for (stack,), group in groups(rows, "stack"):
        late = group[group["step"].isin(np.sort(group["step"].unique())[-_LAST:])]
        shares = {block: float(mine["value"].median()) for (block,), mine in groups(late, "block")}
        high = [block for block, share in shares.items() if share > BELOW_EPSILON]
        if not high:
            continue
        others = [share for block, share in shares.items() if block not in high]
        is_alone = (
            high[0] > 0 and len(high) == 1 and len(others) >= LEAST_SIBLINGS and max(others) < BELOW_EPSILON_SIBLINGS
        )
        share = median(shares[block] for block in high)
        place = f"block {high[0]}" if is_alone else f"{len(high)} of {len(shares)} blocks"
        found.append(
            Finding(
                code="below-epsilon",
                severity="warning" if is_alone else "info",
                confidence=0.9,
                block=high[0] if is_alone else None,
                stack=int(stack),
                component=f"stack {stack} weights",
                module_path="",
                step=int(late["step"].max()),
                sentence=f"In {place}{tables.stack_name(stack)} {share:.0%} of the weights have a second moment below Adam's "
                "epsilon"
                + (f"; in its siblings at most {max(others):.0%} have" if is_alone else "")
                + ": they move by less than the learning rate, in proportion to their gradients.",
                evidence=Evidence(
                    "share of weights with sqrt(v) < eps",
                    share,
                    median(others) if others else None,
                    "the other blocks" if is_alone else "the update halves where sqrt(v) = eps",
                    BELOW_EPSILON,
                ),
                remedy="Look at why so little gradient reaches this block, and at its parameter group's eps."
                if is_alone
                else "Set eps below the gradients' size (1e-8, or 1e-15 in large models), unless that is meant.",
                reference="Wortsman et al. 2023, section 3.4.",
            )
        )
    return found


def stale_second_moments(tables: Tables) -> list[Finding]:
    """Report a block whose gradients are far larger than Adam remembers while its siblings' are not; or before a loss spike.

    Right after, Adam divides by too little: the update is larger than the learning rate says.
    """
    rows = _weights(tables, "staleness")
    rows = rows[rows["step"] >= UPDATE_JUDGED_AFTER]
    found = []
    for (stack,), group in groups(rows, "stack"):
        found += _alone(tables, stack, group.pivot(index="step", columns="block", values="value"))
    return found or _before_spikes(rows, loss_episodes(tables))


def _alone(tables: Tables, stack: int, table: pd.DataFrame) -> list[Finding]:
    found = []
    for block in table.columns:
        others = table.drop(columns=block)
        if others.shape[1] < LEAST_SIBLINGS:
            continue
        middle = others.max(axis=1)
        far = STALE_AT_ENDS if block in (table.columns[0], table.columns[-1]) else 1.0
        is_stale = (table[block] > STALE) & (table[block] > far * STALE_SIBLINGS * middle)
        is_lasting = is_stale & is_stale.shift(1, fill_value=False)
        is_plain = (table[block] > STALE) & (table[block] > STALE_ONCE * middle)
        if not (is_lasting | is_plain).any():
            continue
        stale = table.index[is_stale | is_plain]
        step = int(stale[0])
        value, beside = float(table[block].loc[step]), float(middle.loc[step])
        found.append(
            Finding(
                code="stale-second-moment",
                severity="warning",
                confidence=0.7,
                block=int(block),
                stack=int(stack),
                component=f"stack {stack} weights",
                module_path="",
                step=step,
                sentence=f"At step {step:,} the gradients of block {int(block)}{tables.stack_name(stack)} are {value:.3g} "
                f"times what Adam's second moment remembers (RMS), those of its siblings at most {beside:.3g}; so it is at "
                f"{len(stale)} sampled step{'s' if len(stale) > 1 else ''}.",
                evidence=Evidence(
                    "RMS of g / (sqrt(v) + eps)", value, beside, "the largest of the other blocks", STALE
                ),
                remedy="Look at why this block's gradients were small before: a gap, a scale, an input that was rare. A "
                "smaller beta2 (0.95), or an update that is clipped (StableAdamW), forgets faster.",
                reference="Wortsman et al. 2023 (StableAdamW); Molybog et al. 2023.",
            )
        )
    return found


def _before_spikes(rows: pd.DataFrame, spikes: list[Episode]) -> list[Finding]:
    """Remark on second moments that fell behind just before the loss spiked, where a sampled step shows it."""
    by_step = (rows.assign(energy=rows["value"] ** 2).groupby("step")["energy"].mean() ** 0.5).sort_index()
    for spike in spikes:
        near = by_step[(by_step.index >= spike.first - STALE_PRECEDES) & (by_step.index <= spike.first)]
        earlier = by_step[by_step.index < spike.first - STALE_PRECEDES]
        if not len(near) or not len(earlier):
            continue
        step, value, usual = (
            int(near.index.to_numpy(int)[near.to_numpy(float).argmax()]),
            float(near.max()),
            float(earlier.median()),
        )
        if value > STALE_BEFORE_SPIKE and value > 2 * usual:
            return [
                Finding(
                    code="stale-second-moment",
                    severity="info",
                    confidence=0.6,
                    block=None,
                    component="weights",
                    module_path="",
                    step=step,
                    sentence=f"At step {step:,} gradients were {value:.3g} times what Adam's second moments remember (RMS "
                    f"over blocks; {usual:.3g} before), and at step {spike.first:,} the loss spiked.",
                    evidence=Evidence(
                        "RMS of g / (sqrt(v) + eps)", value, usual, "the run's own earlier steps", STALE_BEFORE_SPIKE
                    ),
                    remedy="A smaller beta2 (0.95), or an update that is clipped (StableAdamW).",
                    reference="Wortsman et al. 2023 (StableAdamW): 1 to 8 steps before a spike; Molybog et al. 2023.",
                )
            ]
    return []


def _weights(tables: Tables, column: str) -> pd.DataFrame:
    """Return step, stack, block, value: the mean over the block's weights; experts, which may see no token for long, left out."""
    rows = tables.parameters
    rows = rows[(rows["block"] >= 0) & (rows["role"] == "weight") & (rows["branch"] != "moe") & rows[column].notna()]
    weighted = rows.assign(total=rows["n"] * rows[column].astype(float))
    frame = weighted.groupby(["step", "stack", "block"], as_index=False)[["total", "n"]].sum()
    return frame.assign(value=frame["total"] / frame["n"])
