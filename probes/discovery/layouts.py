"""Follow elements through views: which element of one tensor is which element of another.

A *position* is an element's distance in memory from the first element of its value, so that all views of one value
agree about it. A call that only moves elements is replayed on a tensor of positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .form import Form
from .recorder import Operation

NOWHERE = -1


def sample(form: Form, most: int) -> Tensor:
    """Return at most ``most`` evenly spread logical indices (row-major) of a tensor of this form."""
    count = 1
    for size in form.shape:
        count *= size
    if count <= most:
        return torch.arange(count)
    # An odd step visits every column of a power-of-two width.
    step = count // most | 1
    return torch.arange(0, count, step)[:most]


def positions(form: Form, indices: Tensor) -> Tensor:
    """Return where in memory the elements with these logical indices lie."""
    found = torch.zeros_like(indices)
    rest = indices
    for size, stride in zip(reversed(form.shape), reversed(form.strides), strict=True):
        found += rest % size * stride
        rest = rest // size
    return found


def broadcast(form: Form, shape: Sequence[int]) -> Form:
    """Return the form of a tensor expanded to ``shape``."""
    missing = len(shape) - len(form.shape)
    strides = [0] * missing + [
        stride if size == wanted else 0
        for size, stride, wanted in zip(form.shape, form.strides, shape[missing:], strict=True)
    ]
    return Form(tuple(shape), tuple(strides))


def indices_at(form: Form, wanted: Tensor) -> Tensor:
    """Return the logical indices of the elements at ``wanted`` positions; NOWHERE where there is none."""
    count = 1
    for size in form.shape:
        count *= size
    every = torch.arange(count)
    table = torch.full((form.span + 1,), NOWHERE)
    table[positions(form, every)] = every
    return _looked_up(table, wanted)


def moved_back(operation: Operation, source: int, target: int, wanted: Tensor) -> Tensor:
    """Return the positions in ``source``, which ``target`` was made of, of the elements at ``wanted`` positions."""
    given, made = operation.forms[source], operation.forms[target]
    indices = indices_at(made, wanted)
    there = _origins(operation, given, made, operation.outputs.index(target))
    return torch.where(indices >= 0, there[indices.clamp(min=0)], torch.tensor(NOWHERE))


def moved_on(operation: Operation, source: int, target: int, wanted: Tensor) -> Tensor:
    """Return the positions in ``target``, which was made of ``source``, of the elements at ``wanted`` positions."""
    given, made = operation.forms[source], operation.forms[target]
    there = _origins(operation, given, made)
    table = torch.full((given.span + 1,), NOWHERE)
    table[there] = positions(made, torch.arange(len(there)))
    return _looked_up(table, wanted)


def _origins(operation: Operation, given: Form, made: Form, which: int = 0) -> Tensor:
    """Return, for every logical index of what was made, the position that the element had in what was given."""
    count = 1
    for size in given.shape:
        count *= size
    before = positions(given, torch.arange(count)).reshape(given.shape)
    if operation.replay is None:
        if given.shape != made.shape:
            raise ValueError("elements cannot be followed")
        return before.reshape(-1)
    with torch.no_grad():
        after = operation.replay(before)
    if isinstance(after, tuple | list):
        after = after[which] if which < len(after) else None
    if not isinstance(after, Tensor) or tuple(after.shape) != made.shape:
        raise ValueError("elements cannot be followed")
    return after.reshape(-1)


def _looked_up(table: Tensor, wanted: Tensor) -> Tensor:
    inside = (wanted >= 0) & (wanted < len(table))
    return torch.where(inside, table[wanted.clamp(0, len(table) - 1)], torch.tensor(NOWHERE))
