"""Change many states in one forward, each of which is put back before the next is changed: each one's effect is seen alone.

A state that is shown as a module's output can be put back there, for all that follows. One that is shown as an input is changed
for that module alone, and what its branch writes goes on down the skip to the next state that is put back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Branch, Point
from .batches import Batch, call
from .hooked import Hooked
from .interventions import Change, changed

Ends = tuple[Branch, Point, Point]


def ends_of(anatomy: Anatomy) -> list[Ends]:
    """Return every add whose state before it and whose sum are both seen whole: its branch, and where."""
    return [
        (branch, before, branch.added)
        for index, branch in enumerate(anatomy.branches)
        if (before := anatomy.before(index)) is not None and branch.added is not None and before != branch.added
    ]


def groups_of(adds: Sequence[Ends]) -> list[list[int]]:
    """Return groups of adds, by their numbers, that can be changed in one forward: a point between two puts the stream back.

    Stacks are apart: what a stack ends in is read by the next.
    """
    found: list[list[int]] = []
    for stack in dict.fromkeys(branch.stack for branch, _, _ in adds):
        mine = [index for index, (branch, _, _) in enumerate(adds) if branch.stack == stack]
        groups: list[list[int]] = []
        for index in mine:
            fitting = (group for group in groups if any(_puts_back(adds[k]) for k in mine if group[-1] < k <= index))
            group = next(fitting, None)
            if group is None:
                groups.append([index])
            else:
                group.append(index)
        found += groups
    return found


def _puts_back(add: Ends) -> bool:
    return add[1].side == "output"


def seen_in(
    model: nn.Module, batch: Batch, points: Iterable[Point], changes: Mapping[Point, Change] | None = None
) -> dict[Point, Tensor]:
    """Return what a forward without gradients shows at ``points``, where it carries on with changed tensors.

    At a point that is both seen and changed the tensor is seen before it is changed.
    """
    seen: dict[Point, Tensor] = {}

    def see(point: Point, tensor: Tensor) -> None:
        seen[point] = tensor.detach().clone()

    hooks = Hooked(model, set(points), lambda point: partial(see, point))
    try:
        with torch.no_grad(), ExitStack() as stack:
            for point, change in (changes or {}).items():
                stack.enter_context(changed(model, point, change))
            call(model, batch)
    finally:
        hooks.remove()
    return seen


def moved_in(
    model: nn.Module,
    batch: Batch,
    adds: Sequence[Ends],
    group: Sequence[int],
    states: Mapping[Point, Tensor],
    moved: Mapping[int, Tensor],
) -> dict[int, Tensor]:
    """Return the sums behind the adds of a group in one forward in which each begins with its state as ``moved`` has it.

    Args:
        model: the model.
        batch: one batch.
        adds: all of them.
        group: the numbers of those that are moved.
        states: the state before every add, as the forward has it.
        moved: by an add's number, its state moved.
    """
    stack = adds[group[0]][0].stack
    changes: dict[Point, Change] = {
        before: partial(_as, states[before])
        for branch, before, _ in adds
        if branch.stack == stack and before.side == "output" and before in states
    }
    changes |= {adds[index][1]: partial(_as, moved[index]) for index in group if index in moved}
    seen = seen_in(model, batch, {adds[index][2] for index in group}, changes)
    return {index: seen[adds[index][2]] for index in group if adds[index][2] in seen and index in moved}


def _as(value: Tensor, tensor: Tensor) -> Tensor:
    return value.reshape(tensor.shape)
