"""Lay out what is measured: one measurement a point and direction, one row a site that it stands for."""

from __future__ import annotations

from dataclasses import dataclass

from .anatomy import Anatomy, Point, Stack

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
    """

    points: tuple[Point, ...]
    sites: tuple[Site, ...]
    not_measured: tuple[str, ...]


def layout(anatomy: Anatomy) -> Layout:
    """Return every site of ``anatomy`` that a hook sees."""
    sites: list[Site] = []
    hidden: list[str] = []
    for stack in anatomy.stacks:
        _add_stack(stack, sites, hidden)
    return Layout(tuple(dict.fromkeys(site.point for site in sites)), tuple(sites), tuple(hidden))


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
        hidden += [
            f"The gradient of the {name} of the {branch.kind} branch of block {branch.block} (stack {stack.index}) is not "
            f"measured: {_A_PART}."
            for name in branch.partial
        ]
        sites += [Site(*place, "branch_input", point) for point in branch.inputs]
