"""Diagnose one block whose activations stand apart from its siblings': hidden units, attention logits, tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from rheoscope.probes.anatomy import Branch

from .finding import Evidence, Finding
from .frames import groups, records
from .freshness import is_fresh
from .siblings import Apart, apart
from .tables import Tables
from .thresholds import (
    COSINE_JUMP,
    DEAD_APART,
    DEAD_SHARE,
    HIDDEN_APART,
    HIDDEN_APART_AT_ENDS,
    LEAST_SIBLINGS,
    LOGITS_APART,
    LOGITS_APART_AT_ENDS,
    LOGITS_EVEN,
    WRITE_APART,
    WRITE_APART_AT_ENDS,
)


def hidden_units(tables: Tables) -> list[Finding]:
    """Report an MLP whose hidden units are dead, or far larger or smaller than those of the other blocks."""
    rows = tables.hidden_layers()
    if not len(rows):
        return []
    rows = rows[rows["step"] == rows["step"].max()]
    rows = rows.assign(size=rows["rms"] / _of_what_it_reads(tables, rows, _hidden_power))
    found = []
    for group in _alike(rows):
        middle = float(group["zero_share"].median())
        for row in records(group):
            if (
                row["zero_share"] > DEAD_SHARE
                and row["zero_share"] > middle + DEAD_APART
                and len(group) > LEAST_SIBLINGS
            ):
                found.append(
                    _finding(
                        row,
                        "dead-units",
                        f"{row['zero_share']:.0%} of the hidden units' values in the {_where(row)} are exactly 0; in its "
                        f"siblings {middle:.0%} are.",
                        Evidence(
                            "share of hidden values that are 0", float(row["zero_share"]), middle, "the other blocks"
                        ),
                        "Look at this MLP's input bias, and at a learning rate that pushed its units below 0.",
                    )
                )
        found += [
            _finding(
                records(group)[odd.index],
                "hidden-scale",
                f"The hidden layer of the {_where(records(group)[odd.index])} has an RMS of {odd.value:.3g}: {odd.words}.",
                _evidence("hidden RMS", odd, HIDDEN_APART),
                "Look at this MLP's first projection and its bias.",
            )
            for odd in _apart_either_way(group, HIDDEN_APART)
            if _is_far(odd, len(group), HIDDEN_APART_AT_ENDS)
        ]
    return found


def attention_logits(tables: Tables) -> list[Finding]:
    """Report an attention whose logits spread far more, or less, than those of the other blocks."""
    rows = tables.attention()
    if not len(rows):
        return []
    rows = rows[rows["step"] == rows["step"].max()]
    joined = rows.groupby(["step", "stack", "depth", "block", "branch"], as_index=False, sort=True)["logit_std"].mean()
    joined = joined.assign(rms=joined["logit_std"].clip(lower=LOGITS_EVEN))
    joined = joined.assign(size=joined["rms"] / _of_what_it_reads(tables, joined, _logit_power))
    return [
        _finding(
            records(group)[odd.index],
            "attention-logits",
            f"The attention logits of the {_where(records(group)[odd.index])} have a standard deviation of {odd.value:.3g}: "
            f"{odd.words}.",
            _evidence("std of attention logits", odd, LOGITS_APART),
            "Look at the scale of this block's logits (1 / sqrt(head size)) and at its query and key weights.",
        )
        for group in _alike(joined)
        for odd in _apart_either_way(group, LOGITS_APART)
        # Both ends of a healthy stack differ: the first attention reads bare embeddings, the last serves the head.
        if odd.index not in (0, len(group) - 1) or odd.value > LOGITS_APART_AT_ENDS * odd.high
    ]


def write_size(tables: Tables) -> list[Finding]:
    """Report a branch that writes far more, or less, beside its state than the same branch of the other blocks."""
    writes = tables.sites("write")
    if not len(writes):
        return []
    writes = writes[writes["step"] == writes["step"].max()]
    state = tables.state_rms().set_index(["step", "stack", "depth"])["rms"]
    keys = pd.MultiIndex.from_arrays([writes["step"], writes["stack"], writes["depth"] - 1])
    shares = writes.assign(share=writes["rms"].to_numpy() / state.reindex(keys).to_numpy())
    # The first block reads the embedding, whose size is a choice of its own.
    shares = shares[shares["block"] > 0]
    return [
        _finding(
            records(group)[odd.index],
            "write-size",
            f"The {_where(records(group)[odd.index])} writes {odd.value:.3g} of its state's RMS: {odd.words}.",
            _evidence("write RMS / state RMS", odd, WRITE_APART),
            "Look at what this branch multiplies with: its last projection, its norm, a scale.",
        )
        for group in _alike(shares)
        for odd in apart(group["share"].tolist(), WRITE_APART)
        # A write of the usual size is large beside a small state.
        if odd.index in {one.index for one in apart(group["rms"].tolist(), WRITE_APART)}
        # Where writes add up to more and more, the first of them counts most.
        if _is_far(odd, len(group), WRITE_APART_AT_ENDS)
    ]


def rank_collapse(tables: Tables) -> list[Finding]:
    """Report a block behind which the tokens are suddenly alike."""
    rows = tables.tokens()
    if not len(rows) or not is_fresh(tables, int(rows["step"].min())):
        return []  # trained networks gather their tokens where it serves them
    rows = rows[rows["step"] == rows["step"].min()]
    found = []
    for _, group in groups(rows.sort_values(["stack", "depth"]), "stack"):
        jumps = group.assign(jump=group["cosine"].diff()).dropna(subset=["jump"])
        for row in records(jumps):
            others = jumps.loc[jumps["depth"] != row["depth"], "jump"]
            usual = float(others.max()) if len(others) > LEAST_SIBLINGS else float("inf")
            # The first blocks meet embeddings, bare or nearly: what they add there says nothing of the others.
            if row["jump"] > COSINE_JUMP and row["jump"] > 2 * usual and row["block"] > 1:
                found.append(
                    _finding(
                        row,
                        "rank-collapse",
                        f"Behind the {_where(row)} the tokens' mean cosine is {row['cosine']:.2g}, {row['jump']:.2g} more than "
                        f"before it; no other branch adds more than {usual:.2g}.",
                        Evidence(
                            "rise of the tokens' mean cosine",
                            float(row["jump"]),
                            usual,
                            "the other branches",
                            COSINE_JUMP,
                        ),
                        "Look for something in this branch that writes the same to every token: a mean, a bias, a lost mask.",
                    )
                )
    return found


def _of_what_it_reads(tables: Tables, rows: pd.DataFrame, power: Callable[[Branch], int]) -> np.ndarray:
    """Return what each row grows with by design: a power of its state's RMS where the branch has no norm of its own before it.

    A stream that nothing norms between blocks, or an embedding as it is, may be of any size; what is made of it follows.
    """
    branches = {(branch.stack, branch.depth): branch for branch in tables.anatomy.branches}
    states = tables.state_rms()
    sizes = {(r["step"], r["stack"], r["depth"]): float(r["rms"]) for r in records(states)}
    found = []
    for row in records(rows):
        branch = branches.get((row["stack"], row["depth"]))
        is_bare = branch is not None and branch.placement in ("post", "reordered", "none")
        size = sizes.get((row["step"], row["stack"], row["depth"] - 1), 1.0)
        found.append(size ** power(branch) if branch is not None and is_bare and size > 0 else 1.0)
    return np.array(found)


def _hidden_power(branch: Branch) -> int:
    """A gate multiplies two projections of what is read."""
    return 2 if branch.hidden is not None and branch.hidden.is_gated else 1


def _logit_power(branch: Branch) -> int:
    """Logits multiply queries and keys; where both are normed what is read does not count."""
    return 0 if branch.attention is not None and branch.attention.qk_norm.endswith("norm") else 2


def _apart_either_way(group: pd.DataFrame, least: float) -> list[Apart]:
    """Return the sizes that stand apart as they are, and beside what the branches read as well: what is read explains none."""
    beside = {odd.index for odd in apart(group["size"].tolist(), least)}
    return [odd for odd in apart(group["rms"].tolist(), least) if odd.index in beside]


def _alike(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the rows of each kind of branch of each stack, by depth."""
    for _, group in rows.sort_values("depth").groupby(["stack", "branch"], sort=False):
        yield group.reset_index(drop=True)


def _is_far(odd: Apart, n: int, at_ends: float) -> bool:
    """Return whether the first or the last block, which differ in healthy stacks too, is as far out as ``at_ends`` times."""
    return odd.index not in (0, n - 1) or odd.value > at_ends * odd.high or odd.value * at_ends < odd.low


def _where(row: dict[str, Any]) -> str:
    return f"{row['branch']} branch of block {int(row['block'])}"


def _evidence(quantity: str, odd: Apart, least: float) -> Evidence:
    return Evidence(quantity, odd.value, odd.middle, "the same branch of the other blocks", least)


def _finding(row: dict[str, Any], code: str, sentence: str, evidence: Evidence, remedy: str) -> Finding:
    return Finding(
        code=code,
        severity="warning",
        confidence=0.6,
        block=int(row["block"]),
        stack=int(row["stack"]),
        component=str(row["branch"]),
        module_path="",
        step=int(row["step"]),
        sentence=sentence,
        evidence=evidence,
        remedy=remedy,
    )
