"""Follow attention over training: logits that harden until a query sees one key, and sinks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import pandas as pd

from .finding import Evidence, Finding
from .frames import groups, largest
from .harm import is_harmed
from .tables import Tables
from .thresholds import (
    ENTROPY_COLLAPSED,
    ENTROPY_COLLAPSED_FIRST,
    ENTROPY_FALLS,
    ENTROPY_LEAST_STEPS,
    ENTROPY_NEAREST,
    ENTROPY_SIBLINGS,
    FROZEN_HARD,
    LEAST_SIBLINGS,
    SINK_SHARE,
)

_VALUES = ["logit_std", "entropy_ratio", "sink_share"]
_LAST = 3  # sampled steps whose median is the end of a run: one batch is no trend
_REFERENCE = (
    "Dehghani et al. 2023 (ViT-22B), section 2: near-zero entropy; Derrida 1981: Gaussian exponents condense beyond a "
    "standard deviation of sqrt(2 ln n)."
)


@dataclass(frozen=True)
class _End:
    """Where one attention branch stands at the end of a run.

    Attributes:
        block: of it.
        step: the first sampled one at which it had fallen.
        first: entropy over that of even weights, at the first sampled step.
        ratio: the same at the end.
        std: of a query's logits.
        frozen: ``std`` over sqrt(2 ln n), n the keys that a query sees.
        sink: attention on the first key.
    """

    block: int
    step: int
    first: float
    ratio: float
    std: float
    frozen: float
    sink: float

    @property
    def is_collapsed(self) -> bool:
        """Whether training froze the softmax, and not a sink, which lowers entropy as well and is sound."""
        fell = self.ratio < ENTROPY_COLLAPSED and self.first > ENTROPY_FALLS * self.ratio
        return fell and self.frozen > 1 and self.sink < SINK_SHARE


def entropy_collapse(tables: Tables) -> list[Finding]:
    """Report attention whose entropy fell towards 0 while its logits spread beyond sqrt(2 ln n): a frozen softmax.

    One block apart from its siblings is told, and most blocks together. It is a warning only where the loss has not fallen since,
    and of most blocks only beyond FROZEN_HARD, where even the second key is no longer seen: trained attention is selective on
    purpose, and sound runs of a few hundred steps go as far.
    """
    found = []
    for stack, kind, ends in _branches(tables):
        fallen = [end for end in ends if end.is_collapsed]
        others = {end.block: [o.ratio for o in ends if o.block != end.block] for end in fallen}
        is_shared = len(fallen) * 2 >= len(ends) > 1
        apart = [
            end
            for end in fallen
            if not is_shared
            and len(others[end.block]) >= LEAST_SIBLINGS
            # The first attention reads bare embeddings, and soon chooses by position alone.
            and (end.block > 0 or end.ratio < ENTROPY_COLLAPSED_FIRST)
            and min(others[end.block]) > ENTROPY_NEAREST * end.ratio
            and median(others[end.block]) > ENTROPY_SIBLINGS * end.ratio
        ]
        name = f"{kind} branch{{}}{tables.stack_name(stack)}"
        found += [
            _alone(end, kind, name, median(others[end.block]), is_ill=is_harmed(tables, end.step)) for end in apart
        ]
        if is_shared:
            is_ill = is_harmed(tables, max(end.step for end in fallen))
            found.append(_shared(fallen, len(ends), kind, name, is_ill=is_ill))
    return found


def _branches(tables: Tables) -> Iterator[tuple[int, str, list[_End]]]:
    """Yield stack, kind and ends of its branches, where enough steps were sampled to speak of a trend."""
    rows = tables.attention()
    keys = ["step", "stack", "branch", "depth", "block"]
    rows = rows.assign(log_keys=rows["entropy"] / rows["entropy_ratio"].where(rows["entropy_ratio"] > 0))
    joined = rows.groupby(keys, as_index=False, sort=True)[[*_VALUES, "log_keys"]].mean()
    for _, group in joined.groupby(["stack", "branch"], sort=False):
        log_keys = float(group["log_keys"].median())
        ends = [
            _end(one, log_keys) for _, one in group.groupby("depth") if one["step"].nunique() >= ENTROPY_LEAST_STEPS
        ]
        if log_keys > 0 and ends:
            yield int(group["stack"].iloc[0]), str(group["branch"].iloc[0]), ends


def _end(rows: pd.DataFrame, log_keys: float) -> _End:
    last = rows.tail(_LAST)[_VALUES].median()
    low = rows.loc[rows["entropy_ratio"] < ENTROPY_COLLAPSED, "step"]
    return _End(
        block=int(rows["block"].iloc[0]),
        step=int(low.iloc[0]) if len(low) else int(rows["step"].iloc[-1]),
        first=float(rows["entropy_ratio"].iloc[0]),
        ratio=float(last["entropy_ratio"]),
        std=float(last["logit_std"]),
        frozen=float(last["logit_std"]) / math.sqrt(2 * log_keys) if log_keys > 0 else math.nan,
        sink=float(last["sink_share"]),
    )


def _alone(end: _End, kind: str, name: str, others: float, *, is_ill: bool) -> Finding:
    where = name.format(f" of block {end.block}")
    return Finding(
        code="entropy-collapse",
        severity="warning" if is_ill else "info",
        confidence=0.8,
        block=end.block,
        component=kind,
        module_path="",
        step=end.step,
        sentence=f"In the {where} the softmax freezes: its entropy fell from {end.first:.2g} to {end.ratio:.2g} of that of "
        f"even weights, its siblings' is {others:.2g}. Its logits' standard deviation is {end.std:.3g}, {end.frozen:.2g} "
        "times sqrt(2 ln n), beyond which a query sees few of its n keys.",
        evidence=Evidence(
            "entropy over that of even weights",
            end.ratio,
            others,
            "the same branch of the other blocks",
            ENTROPY_COLLAPSED,
        ),
        remedy="Norm this branch's queries and keys (QK-norm), or look at what makes them grow: a learning rate of its own, "
        "a missing 1 / sqrt(head size).",
        reference=_REFERENCE,
    )


def _shared(fallen: list[_End], n: int, kind: str, name: str, *, is_ill: bool) -> Finding:
    frozen, ratio = median(end.frozen for end in fallen), median(end.ratio for end in fallen)
    is_hard = frozen > FROZEN_HARD and is_ill
    return Finding(
        code="entropy-collapse",
        severity="warning" if is_hard else "info",
        confidence=0.7,
        block=None,
        component=kind,
        module_path="",
        step=min(end.step for end in fallen),
        sentence=f"Attention froze in {len(fallen)} of the {n} blocks ({name.format('es')}): entropy fell to {ratio:.2g} of "
        f"that of even weights (median), and the logits' standard deviation is {frozen:.3g} times sqrt(2 ln n)"
        + (", at which the second key of a query is no longer seen." if is_hard else "."),
        evidence=Evidence(
            "std of logits / sqrt(2 ln n)", frozen, 1.0, "Gaussian logits condense on few keys beyond 1", FROZEN_HARD
        ),
        remedy="Lower the learning rate, or norm queries and keys (QK-norm)."
        if is_hard
        else "None needed where the loss still falls; QK-norm bounds the logits.",
        reference=_REFERENCE,
    )


def attention_sinks(tables: Tables) -> list[Finding]:
    """Remark on heads that put most of their attention on the first key: sound, and of consequence for whoever cuts the cache."""
    rows = tables.attention().dropna(subset=["sink_share"])
    found = []
    for (stack,), group in groups(rows[rows["step"] == rows["step"].max()], "stack"):
        heads = group[group["branch"] == "attention"]
        sinks = heads[heads["sink_share"] > SINK_SHARE]
        if not len(sinks):
            continue
        top = largest(sinks, "sink_share")
        found.append(
            Finding(
                code="attention-sinks",
                severity="info",
                confidence=0.9,
                block=None,
                stack=int(stack),
                component="attention",
                module_path="",
                step=int(top["step"]),
                sentence=f"{len(sinks)} of {len(heads)} attention heads{tables.stack_name(stack)} put more than half of "
                f"their attention on the first key, at most {top['sink_share']:.0%}, in block {int(top['block'])}.",
                evidence=Evidence(
                    "largest attention on the first key", float(top["sink_share"]), None, "half of it", SINK_SHARE
                ),
                remedy="None needed. Keep the first tokens in a cache that is cut, and expect massive activations there.",
                reference="Xiao et al. 2024 (StreamingLLM); Sun et al. 2024 (massive activations).",
            )
        )
    return found
