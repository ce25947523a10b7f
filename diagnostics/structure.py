"""Diagnose one block that is built or initialised otherwise than its siblings: weights, gains, biases, norms, dropout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from .bias_terms import without_gradient
from .finding import Evidence, Finding
from .frames import records
from .freshness import before_step, is_fresh
from .siblings import Apart, apart
from .tables import Tables
from .thresholds import (
    BIAS_APART,
    BIAS_FLOOR,
    DROPOUT_APART,
    EPSILON_MATTERS,
    EPSILON_SHRINKS,
    EPSILON_USUAL,
    FROM_ZERO_APART,
    GAIN_APART,
    GAIN_ENDS_APART,
    LEAST_SIBLINGS,
    SIBLINGS_SAME,
    STARTS_AT_ONE,
    TRAINED_ENDS_APART,
    WEIGHT_APART,
)

_WORDS = {"weight": "The weight", "gain": "The norm gain", "bias": "The bias", "norm_bias": "The norm bias"}
_LEAST = {"weight": WEIGHT_APART, "gain": GAIN_APART, "bias": BIAS_APART, "norm_bias": BIAS_APART}
_REMEDIES = {
    "weight": "Look at the init of this parameter, and at what was loaded into it.",
    "gain": "Look at this norm's init, and at whether weight decay or a learning rate of its own moves it.",
    "bias": "Look at this bias's init, its learning rate, and whether weight decay spares it.",
    "norm_bias": "Look at this bias's init, its learning rate, and whether weight decay spares it.",
}


def odd_parameters(tables: Tables) -> list[Finding]:
    """Report a parameter whose size stands apart from that of the same parameter in the other blocks.

    Weights of a run that began fresh are judged as they began: where training takes them is no matter of their init.
    """
    rows = tables.parameters
    rows = rows[(rows["block"] >= 0) & rows["role"].isin(list(_WORDS)) & rows["weight_rms"].notna()]
    if not len(rows):
        return []
    first, last = int(rows["step"].min()), int(rows["step"].max())
    began_fresh, fresh = is_fresh(tables, first), is_fresh(tables, last)
    is_judged = rows["step"] == last
    if began_fresh:
        is_judged = is_judged.where(rows["role"] != "weight", rows["step"] == first)
        rows = rows.assign(weight_rms=rows["weight_rms"].where(rows["role"] != "weight", before_step(rows)))
    rows = rows[is_judged]
    idle = without_gradient(tables)  # what changes nothing wanders
    found = []
    for step, role, group in _classes(rows):
        # The RMS of n random numbers varies by 1 / sqrt(2 n) from one draw to the next.
        drawn = 1 + 6 / (2 * float(group["n"].min())) ** 0.5 if role == "weight" else 1.0
        # Biases start at 0, and some never leave it but for rounding: a key's has no gradient.
        sizes = group["weight_rms"].clip(lower=BIAS_FLOOR) if role in ("bias", "norm_bias") else group["weight_rms"]
        odd = apart(sizes.tolist(), max(_LEAST[role], drawn))
        found += [
            _parameter(step, role, group.iloc[one.index], one)
            for one in odd
            if str(group["name"].iloc[one.index]) not in idle
            and (fresh or (began_fresh and step == first) or _is_far(one, len(group), role))
        ]
    return found


def _is_far(odd: Apart, n: int, role: str) -> bool:
    """Return whether training alone would not put a block so far from the others."""
    is_end = odd.index in (0, n - 1)
    if role != "weight" and odd.middle < STARTS_AT_ONE:
        least = FROM_ZERO_APART
    elif role == "gain" and odd.high <= SIBLINGS_SAME * odd.low:
        least = GAIN_ENDS_APART if is_end else 1.0
    else:
        least = TRAINED_ENDS_APART if is_end else 1.0
    return odd.value > least * odd.high or odd.value * least < odd.low


def _classes(rows: pd.DataFrame) -> Iterator[tuple[int, str, pd.DataFrame]]:
    """Yield the same parameter of all blocks of a stack: the nth of its size in its branch.

    Names do not tell: in one block a norm may not behave as one, and its gain pass for a weight. The role is that of most.
    """
    place = ["stack", "branch", "n"]
    numbered = rows.assign(
        nth=rows.groupby([*place, "block"], sort=False).cumcount(),
        count=rows.groupby([*place, "block"], sort=False)["name"].transform("size"),
    )
    # A block with more or fewer of them than most cannot be told apart one by one.
    usual = numbered.groupby(place, sort=False)["count"].transform(_most_common)
    for _, group in numbered[numbered["count"] == usual].groupby([*place, "nth"], sort=False):
        yield int(group["step"].iloc[0]), str(_most_common(group["role"])), group.reset_index(drop=True)


def _most_common(values: pd.Series) -> Any:
    """Return the value that most have, the least of several."""
    found, counts = np.unique(values.to_numpy(), return_counts=True)
    return found[counts.argmax()]


def _parameter(step: int, role: str, row: Any, odd: Apart) -> Finding:
    return Finding(
        code=f"{role.replace('_', '-')}-scale",
        severity="warning",
        confidence=0.9,
        block=int(row["block"]),
        stack=int(row["stack"]),
        component=str(row["branch"]),
        module_path=str(row["name"]),
        step=step,
        sentence=f"{_WORDS[role]} {row['name']} has an RMS of {odd.value:.3g}: {odd.words}.",
        evidence=Evidence(
            "parameter RMS", odd.value, odd.middle, "the same parameter of the other blocks", _LEAST[role]
        ),
        remedy=_REMEDIES[role],
    )


def odd_dropout(tables: Tables) -> list[Finding]:
    """Report a branch whose dropout differs from that of all its siblings, which is the same."""
    rows = tables.identities
    found = []
    for _, group in rows[rows["check"] == "dropped_share"].groupby(["stack", "branch"], sort=False):
        shares, tolerances = group["observed"].to_numpy(float), group["tolerance"].to_numpy(float)
        usual = float(np.median(shares))
        odd = np.abs(shares - usual) > np.maximum(DROPOUT_APART, 2 * tolerances)
        if odd.sum() != 1 or len(shares) <= LEAST_SIBLINGS:
            continue
        row = records(group)[int(np.flatnonzero(odd)[0])]
        found.append(
            Finding(
                code="dropout-odd",
                severity="warning",
                confidence=0.9,
                block=int(row["block"]),
                stack=int(row["stack"]),
                component=str(row["branch"]),
                module_path=str(row["module_path"] or ""),
                step=0,
                sentence=f"In training dropout takes {row['observed']:.0%} of what the {row['branch']} branch of block "
                f"{int(row['block'])} writes; of its siblings' it takes {usual:.0%}.",
                evidence=Evidence("share dropped", float(row["observed"]), usual, "the other blocks", DROPOUT_APART),
                remedy="Look at this block's dropout.",
            )
        )
    return found


def norm_epsilon(tables: Tables) -> list[Finding]:
    """Report a norm that gives less than its gain because its epsilon is large beside what it reads.

    Where a check-up has run the norm alone its epsilon is known, and judged as such.
    """
    checks = tables.identities
    known = set(checks.loc[checks["check"] == "norm_epsilon", "module_path"])
    norms = tables.norms
    # One that does not behave as a norm has no gain that is known: it is taken to have that of its siblings.
    usual = norms.groupby(["step", "stack", "branch", "role"])["gain_rms"].transform("median")
    norms = norms.assign(gain_rms=norms["gain_rms"].fillna(usual))
    norms = norms[(norms["role"] == "input") & (norms["gain_rms"] > 0)]
    if not len(norms):
        return []
    step = int(norms["step"].min())
    given = tables.sites("branch_input").set_index(["step", "stack", "depth"])["rms"]
    rows = norms[norms["step"] == step]
    keys = pd.MultiIndex.from_frame(rows[["step", "stack", "depth"]])
    rows = rows.assign(
        shrink=given.groupby(level=[0, 1, 2]).first().reindex(keys).to_numpy() / rows["gain_rms"].to_numpy()
    )
    found = []
    for (_, _), group in rows.groupby(["stack", "branch"], sort=False):
        group = group.reset_index(drop=True)
        for odd in apart(group["shrink"].tolist(), EPSILON_SHRINKS):
            row = records(group)[odd.index]
            if row["module_path"] in known:
                continue
            if odd.value < EPSILON_MATTERS * odd.middle and EPSILON_USUAL[0] < odd.middle < EPSILON_USUAL[1]:
                found.append(_epsilon(step, row, odd))
    return found


def _epsilon(step: int, row: dict[str, Any], odd: Apart) -> Finding:
    size = float(row["input_rms"])
    own = "" if not np.isfinite(size) else f", which reads an RMS of {size:.3g}"
    return Finding(
        code="norm-epsilon",
        severity="warning",
        confidence=0.9,
        block=int(row["block"]),
        component=str(row["branch"]),
        module_path=str(row["module_path"]),
        step=step,
        sentence=f"The norm before the {row['branch']} branch of block {int(row['block'])}{own}, gives {odd.value:.3g} of what "
        f"its gain says; its siblings give {odd.middle:.3g}: its epsilon is large beside its input.",
        evidence=Evidence(
            "output RMS of the norm / gain RMS", odd.value, odd.middle, "the same norm of the other blocks"
        ),
        remedy="Look at this norm's epsilon; 1e-5 or 1e-6 is usual.",
    )


def frozen_block(tables: Tables) -> list[Finding]:
    """Report a block none of whose parameters ever received a gradient while those of the other blocks did."""
    rows = tables.parameters
    embedding_moves = bool(rows.loc[rows["role"] == "embedding", "gradient_state"].isin(["zero", "value"]).any())
    rows = rows[rows["block"] >= 0]
    found = []
    for stack, group in rows.groupby("stack", sort=False):
        received = group["gradient_state"].isin(["zero", "value"])
        reached = group.assign(reached=received).groupby("block")["reached"].any()
        frozen = [int(block) for block in reached.index[~reached.to_numpy(bool)]]
        # The first blocks of a fine-tuned model are often frozen on purpose, and with them what they read.
        is_purpose = frozen == list(range(len(frozen))) and not embedding_moves
        if not frozen or is_purpose or len(frozen) * 4 > len(reached):
            continue
        for block in frozen:
            n = int((group["block"] == block).sum())
            found.append(
                Finding(
                    code="frozen-block",
                    severity="warning",
                    confidence=0.9,
                    block=block,
                    stack=int(str(stack)),
                    component="parameters",
                    module_path="",
                    step=int(group["step"].min()),
                    sentence=f"No parameter of block {block}{tables.stack_name(int(str(stack)))} ever received a gradient; those "
                    f"of the {len(reached) - len(frozen)} other blocks did.",
                    evidence=Evidence("parameters of the block with a gradient", 0.0, float(n), "the other blocks"),
                    remedy="Look at requires_grad in this block, and for a no_grad or a detach around it.",
                )
            )
    return found
