"""Lay out what is measured: one measurement a point and direction, one row a site that it stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .anatomy import Anatomy, Branch, Point, Stack
from .kernels import WANTS_CHANNELS, WANTS_ROW_MEANS

_A_PART = "hooks see only a copy or another view of it, whose gradient is a part of its own"


@dataclass(frozen=True)
class Site:
    """One row of the activations table, but for its numbers; of a partial one the gradient is not known."""

    stack: int
    block: int
    branch: str
    depth: int
    site: str
    point: Point
    is_partial: bool = False


@dataclass(frozen=True)
class Layout:
    """What to measure, in a fixed order.

    Attributes:
        points: every point that is measured, forward and backward.
        sites: the rows that the points stand for; one point may be several sites.
        not_measured: in sentences, which sites no hook sees.
        flags: of every point, what a kernel reads of it beside its moments.
    """

    points: tuple[Point, ...]
    sites: tuple[Site, ...]
    not_measured: tuple[str, ...]
    flags: Mapping[Point, int]


def layout(anatomy: Anatomy) -> Layout:
    """Return every site of ``anatomy`` that a hook sees."""
    sites: list[Site] = []
    hidden: list[str] = []
    for stack in anatomy.stacks:
        _add_stack(stack, sites, hidden)
    hidden += _without_logits(anatomy)
    normed = {branch.output for branch in anatomy.branches if branch.output_norms}
    flags: dict[Point, int] = {}
    for site in sites:
        # A channel of logits is one word of the vocabulary: of what all tokens share there nothing is asked.
        channels = 0 if site.site == "logits" else WANTS_CHANNELS
        # What a norm reads: the share of energy that a LayerNorm removes.
        means = WANTS_ROW_MEANS if site.site in ("state", "sum") or site.point in normed else 0
        flags[site.point] = flags.get(site.point, 0) | channels | means
    return Layout(tuple(flags), tuple(sites), tuple(hidden), flags)


def _add_stack(stack: Stack, sites: list[Site], hidden: list[str]) -> None:
    if stack.start is None:
        hidden.append(f"State 0 of stack {stack.index} is not measured: no module shows it.")
    else:
        sites.append(Site(stack.index, -1, "embedding", 0, "state", stack.start, stack.start_is_partial))
        if stack.start_is_partial:
            hidden.append(f"The gradient of state 0 of stack {stack.index} is not measured: {_A_PART}.")
    for branch in stack.branches:
        place = (stack.index, branch.block, branch.kind, branch.depth)
        wanted = [("state", branch.state), ("write", branch.write), ("branch_output", branch.output)]
        for name, point in wanted:
            if point is None:
                hidden.append(
                    f"The {name.replace('_', ' ')} of the {branch.kind} branch of block {branch.block} "
                    f"(stack {stack.index}) is not measured: no module shows it."
                )
            else:
                sites.append(Site(*place, name, point, name in branch.partial))
        if branch.sum is not None:
            sites.append(Site(*place, "sum", branch.sum, "sum" in branch.partial))
        if branch.hidden is not None and branch.hidden.point is not None:
            sites.append(Site(*place, "hidden", branch.hidden.point, "hidden" in branch.partial))
        hidden += [
            f"The gradient of the {name.replace('_', ' ')} of the {branch.kind} branch of block {branch.block} (stack "
            f"{stack.index}) is not measured: {_A_PART}."
            for name in branch.partial
        ]
        is_part = "branch_input" in branch.partial
        sites += [Site(*place, "branch_input", point, is_part) for point in branch.inputs]
    hidden += _without_hidden_layer(stack)
    _add_outlet(stack, sites, hidden)


def _add_outlet(stack: Stack, sites: list[Site], hidden: list[str]) -> None:
    """Add the final norm and the logits: block -1, branch output, one deeper than the last state."""
    outlet, where = stack.outlet, f"of stack {stack.index}"
    if outlet is None:
        hidden.append(f"The final norm and the logits {where} are not measured: this anatomy does not name them.")
        return
    place = (stack.index, -1, "output", 1 + max((branch.depth for branch in stack.branches), default=0))
    if outlet.norm is not None:
        sites.append(Site(*place, "final_norm", outlet.norm, "final_norm" in outlet.partial))
    elif outlet.norm_path is not None:
        hidden.append(f"The output of the final norm {where} is not measured: no module shows it.")
    for name in outlet.partial:
        hidden.append(f"The gradient at the {name.replace('_', ' ')} {where} is not measured: {_A_PART}.")
    if outlet.logits is not None:
        sites.append(Site(*place, "logits", outlet.logits, "logits" in outlet.partial))
    elif outlet.has_logits:
        hidden.append(f"The logits {where} are not measured: no module shows them.")


def _without_logits(anatomy: Anatomy) -> Iterator[str]:
    outlets = [stack.outlet for stack in anatomy.stacks if stack.outlet is not None]
    if outlets and not any(outlet.has_logits for outlet in outlets):
        yield "No logits are measured: the model returns nothing that a last projection makes of a stack's last state."


def _without_hidden_layer(stack: Stack) -> Iterator[str]:
    """Say of which feed-forward branches no hidden layer is seen, and why."""
    missing: dict[tuple[str, str], list[Branch]] = {}
    for branch in stack.branches:
        if branch.kind in ("mlp", "moe") and (branch.hidden is None or branch.hidden.point is None):
            reason = "" if branch.hidden is None else branch.hidden.reason
            why = (
                "each expert has one of its own" if branch.kind == "moe" else reason.rstrip(".") or "no module shows it"
            )
            missing.setdefault((branch.kind, why), []).append(branch)
    for (kind, why), branches in missing.items():
        n = f"{len(branches)} {kind} branches" if len(branches) > 1 else f"the {kind} branch"
        yield (
            f"The hidden layer of {n} of stack {stack.index}, first in block {branches[0].block}, is not measured: "
            f"{why[:1].lower()}{why[1:]}."
        )
