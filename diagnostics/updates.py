"""Diagnose parameters that move too far or not at all."""

from __future__ import annotations

from statistics import median

from .finding import Evidence, Finding
from .frames import groups
from .siblings import Apart, apart
from .tables import Tables
from .thresholds import (
    LEAST_BLOCKS,
    UPDATE_APART_AT_FIRST,
    UPDATE_JUDGED_AFTER,
    UPDATE_RATIO_HIGH,
    UPDATE_SIBLINGS,
)

_APART = 0.8  # confidence of a block that stands apart from its siblings, above that of a mere rule of thumb
_SLOWER = "Lower the learning rate, or lengthen the warm-up."


def update_ratio(tables: Tables) -> list[Finding]:
    """Judge update RMS over weight RMS per block, against a limit and against the sibling blocks."""
    ratios = tables.update_ratios()
    late = ratios[ratios["step"] >= UPDATE_JUDGED_AFTER].dropna()
    if not len(late):
        return []
    first, last = int(late["step"].min()), int(late["step"].max())
    medians = {(stack, block): float(rows["ratio"].median()) for (stack, block), rows in groups(late, "stack", "block")}
    middle = median(medians.values())
    far = []
    for (stack, block), value in medians.items():
        is_apart = middle > 0 and len(medians) >= LEAST_BLOCKS and value > UPDATE_SIBLINGS * middle
        if value > UPDATE_RATIO_HIGH or is_apart:
            far.append(_too_far((stack, block), value, middle, (first, last), is_apart=is_apart))
    if far and all(finding.confidence < _APART for finding in far) and len(far) == len(medians):
        return [_all_too_far(middle, first, last)]
    return far or [
        Finding(
            code="update-ratio",
            severity="info",
            confidence=0.8,
            block=None,
            component="weights",
            module_path="",
            step=last,
            sentence=f"An optimizer step moves the blocks' weights by {middle:.2g} of their size "
            f"(median over blocks, steps {first} to {last}).",
            evidence=Evidence("update RMS / weight RMS", middle, 1e-3, "about 1e-3 is common", UPDATE_RATIO_HIGH),
            remedy="None needed.",
            reference="A rule of thumb; no paper.",
        )
    ]


def _too_far(place: tuple[int, int], value: float, middle: float, steps: tuple[int, int], *, is_apart: bool) -> Finding:
    stack, block = place
    against = f"{value / middle:.0f} times the median block's" if is_apart else "more than a tenth"
    return Finding(
        code="update-ratio",
        severity="warning",
        confidence=_APART if is_apart else 0.6,
        block=block,
        stack=stack,
        component=f"stack {stack} weights",
        module_path="",
        step=steps[0],
        sentence=f"One optimizer step moves the weights of block {block} by {value:.2g} of their size, {against} "
        f"(median of steps {steps[0]} to {steps[1]}).",
        evidence=Evidence(
            "update RMS / weight RMS",
            value,
            middle if is_apart else 1e-3,
            "median of the sibling blocks" if is_apart else "about 1e-3 is common",
            UPDATE_SIBLINGS * middle if is_apart else UPDATE_RATIO_HIGH,
        ),
        remedy="Lower this parameter group's learning rate." if is_apart else _SLOWER,
    )


def _all_too_far(middle: float, first: int, last: int) -> Finding:
    """One cause for all blocks: one finding."""
    return Finding(
        code="update-ratio",
        severity="warning",
        confidence=0.6,
        block=None,
        component="weights",
        module_path="",
        step=first,
        sentence=f"One optimizer step moves the weights of every block by more than a tenth of their size, {middle:.2g} at "
        f"the median block (median of steps {first} to {last}).",
        evidence=Evidence("update RMS / weight RMS", middle, 1e-3, "about 1e-3 is common", UPDATE_RATIO_HIGH),
        remedy=_SLOWER,
    )


def update_siblings(tables: Tables) -> list[Finding]:
    """Report a block that the optimizer's first sampled step moves by another share of its size than the others, or not at all.

    From the same init, one optimizer moves sibling blocks alike at first: Adam by its learning rate, whatever the gradients.
    """
    rows = tables.parameters
    rows = rows[(rows["block"] >= 0) & (rows["role"] == "weight")]
    moved = rows[rows["update_rms"].notna()]
    ratios = tables.update_ratios()
    steps = ratios.loc[ratios["ratio"] > 0, "step"]
    if not len(steps):
        return []
    step = int(steps.min())
    found = []
    for (stack,), group in groups(rows[rows["step"] == step], "stack"):
        blocks = sorted({int(block) for block in group["block"]})
        known = {int(block) for block in moved.loc[(moved["step"] == step) & (moved["stack"] == stack), "block"]}
        left = [block for block in blocks if block not in known]
        # The first blocks of a fine-tuned model are often left alone on purpose: then they are frozen, and have no gradients.
        is_first = left == list(range(len(left)))
        has_gradients = (group.loc[group["block"].isin(left), "gradient_state"] == "value").any()
        if known and left and (has_gradients or not is_first) and len(left) * 4 <= len(blocks):
            found += [_not_updated(block, step, len(known)) for block in left]
        mine = ratios[(ratios["step"] == step) & (ratios["stack"] == stack)].sort_values("block", ignore_index=True)
        found += [
            _apart_at_first(int(mine["block"].iloc[odd.index]), step, odd)
            for odd in apart(mine["ratio"].tolist(), UPDATE_APART_AT_FIRST)
        ]
    return found


def _not_updated(block: int, step: int, n: int) -> Finding:
    return Finding(
        code="not-updated",
        severity="warning",
        confidence=0.9,
        block=block,
        component="weights",
        module_path="",
        step=step,
        sentence=f"No optimizer moves the weights of block {block}; it moves those of {n} other blocks.",
        evidence=Evidence("weights of the block that an optimizer moves", 0.0, None, "the other blocks"),
        remedy="Look at which parameters were handed to the optimizer.",
    )


def _apart_at_first(block: int, step: int, odd: Apart) -> Finding:
    return Finding(
        code="update-ratio",
        severity="warning",
        confidence=0.9,
        block=block,
        component="weights",
        module_path="",
        step=step,
        sentence=f"At step {step} the optimizer moves the weights of block {block} by {odd.value:.3g} of their size: "
        f"{odd.words}.",
        evidence=Evidence("update RMS / weight RMS", odd.value, odd.middle, "the other blocks", UPDATE_APART_AT_FIRST),
        remedy="Look at this block's parameter group: its learning rate, and what scales it.",
    )


def untrained(tables: Tables) -> list[Finding]:
    """Report parameters that require a gradient and never received one while others did.

    Inside a block that is a fault (checkpointing that cuts the graph, a detach); elsewhere a part may be unused on purpose.
    """
    rows = tables.parameters
    if not (rows["gradient_state"] == "value").any():
        return []
    is_none = rows["gradient_state"] == "none"
    reached = set(rows.loc[~is_none & (rows["gradient_state"] != "frozen"), "name"])
    never = rows[is_none & ~rows["name"].isin(reached)]
    names = sorted(never["name"].astype(str).unique())
    if not names:
        return []
    inside = never[never["block"] >= 0]
    blocks = sorted({int(block) for block in inside["block"]})
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return [
        Finding(
            code="no-gradient",
            severity="warning" if len(inside) else "info",
            confidence=0.9,
            block=blocks[0] if len(blocks) == 1 else None,
            component="parameters",
            module_path=names[0] if len(names) == 1 else "",
            step=int(never["step"].min()),
            sentence=f"{len(names)} parameter{'s require' if len(names) > 1 else ' requires'} a gradient and never received one: "
            f"{shown}.",
            evidence=Evidence(
                "parameters without a gradient", float(len(names)), 0.0, "every parameter in use receives one"
            ),
            remedy="Freeze them if that is meant. Otherwise look for a detach, or for reentrant checkpointing of inputs that "
            "require no gradient (enable_input_require_grads, or use_reentrant=False).",
        )
    ]
