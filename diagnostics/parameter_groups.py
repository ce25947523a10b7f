"""Diagnose the optimizer's parameter groups: gains that are decayed, and a block with a learning rate of its own."""

from __future__ import annotations

import pandas as pd

from .finding import Evidence, Finding
from .frames import groups
from .siblings import apart
from .tables import Tables
from .thresholds import DECAY_APART, LEAST_SIBLINGS, RATE_APART


def decayed_gains(tables: Tables) -> list[Finding]:
    """Report norm gains whose group is decayed: towards 0, away from the 1 at which they do nothing.

    Many recipes do so in every block, to little harm at 0.1: a remark. One block alone is a warning.
    """
    steps = tables.parameters["step"]
    if not len(steps):
        return []
    rows = _grouped(tables, int(steps.max()))
    gains = rows[(rows["role"] == "gain") & rows["weight_decay"].notna()]
    found = []
    for (stack,), group in groups(gains[gains["block"] >= 0], "stack"):
        decays = group.groupby("block")["weight_decay"].max()
        for block, value in zip(decays.index.to_numpy(int), decays.to_numpy(float), strict=True):
            others = decays.drop(block)
            if len(others) >= LEAST_SIBLINGS and others.nunique() == 1 and value > DECAY_APART * float(others.iloc[0]):
                found.append(_alone(tables, stack, int(block), float(value), group, float(others.iloc[0])))
    decayed = gains[gains["weight_decay"] > 0]
    if found or not len(decayed):
        return found
    usual = float(decayed["weight_decay"].median())
    return [
        Finding(
            code="gain-decay",
            severity="info",
            confidence=1.0,
            block=None,
            component="norm gains",
            module_path="",
            step=int(decayed["step"].max()),
            sentence=f"{len(decayed)} of {len(gains)} norm gains are decayed, by {usual:.3g} times the learning rate a step: "
            "towards 0.",
            evidence=Evidence(
                "weight decay of the gains' group", usual, 0.0, "gains and biases are spared in most recipes"
            ),
            remedy="None needed at this size in most runs; a group of its own without decay spares gains and biases.",
            reference="nanoGPT and Hugging Face's Trainer decay matrices alone.",
        )
    ]


def _alone(tables: Tables, stack: int, block: int, value: float, group: pd.DataFrame, others: float) -> Finding:
    mine = group[(group["block"] == block) & (group["weight_decay"] == value)].iloc[0]
    return Finding(
        code="gain-decay",
        severity="warning",
        confidence=0.9,
        block=block,
        stack=int(stack),
        component=str(mine["branch"]),
        module_path=str(mine["name"]),
        step=int(mine["step"]),
        sentence=f"The norm gains of block {block}{tables.stack_name(stack)} are decayed by {value:.3g} times the learning "
        f"rate a step, towards 0; those of the other blocks by {others:.3g}.",
        evidence=Evidence("weight decay of the gains' group", value, others, "the other blocks", DECAY_APART * others),
        remedy="Look at which parameter group these gains were put into.",
    )


def odd_rate(tables: Tables) -> list[Finding]:
    """Report a block whose weights have another learning rate than those of all the other blocks.

    Rates that change with depth are a schedule. The first or the last block is often set apart on purpose: a remark.
    """
    found = []
    steps = tables.parameters["step"]
    early = _rates(tables, int(steps.min())) if len(steps) else {}
    for stack, rates in (_rates(tables, int(steps.max())) if len(steps) else {}).items():
        then = {one.index for one in apart(early.get(stack, rates).tolist(), RATE_APART)}
        for odd in apart(rates.tolist(), RATE_APART):
            block = int(rates.index.to_numpy(int)[odd.index])
            is_end = odd.index in (0, len(rates) - 1)
            found.append(
                Finding(
                    code="learning-rate-odd",
                    severity="info" if is_end else "warning",
                    confidence=0.9,
                    block=block,
                    stack=int(stack),
                    component="weights",
                    module_path="",
                    step=int(steps.min() if odd.index in then else steps.max()),
                    sentence=f"The weights of block {block}{tables.stack_name(stack)} have a learning rate of "
                    f"{odd.value:.3g}: {odd.words}.",
                    evidence=Evidence(
                        "learning rate of the block's weights", odd.value, odd.middle, "the other blocks", RATE_APART
                    ),
                    remedy="Look at which parameter group this block was put into.",
                )
            )
    return found


def _rates(tables: Tables, step: int) -> dict[int, pd.Series]:
    """Return the mean learning rate of each block's weights at a step, by stack."""
    rows = _grouped(tables, step)
    rows = rows[(rows["block"] >= 0) & (rows["role"] == "weight") & rows["lr"].notna()]
    sums = rows.assign(total=rows["n"] * rows["lr"]).groupby(["stack", "block"])[["total", "n"]].sum()
    rates = sums["total"] / sums["n"]
    return {stack: rates.xs(stack, level="stack") for stack in rates.index.unique("stack").to_numpy(int).tolist()}


def _grouped(tables: Tables, step: int) -> pd.DataFrame:
    """Return the parameters of a step with lr and weight_decay of their group; those of which it is not known are left out."""
    rows = tables.parameters
    rows = rows[rows["optimizer_group"].notna() & (rows["step"] == step)]
    own = tables.recording.table("groups", steps=step)[["group", "lr", "weight_decay"]]
    return pd.DataFrame(rows.merge(own, left_on="optimizer_group", right_on="group", how="inner"))
