"""Follow the gradient down the skip path alone, norm by norm: the exact skip transmission.

The gradient at the last state is taken from the loss; from there on it goes from each state to its sum through the norm on the
stream alone (a vector-Jacobian product), and on to the state before, times the skip's scale. No branch takes part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Point, Stack
from .batches import Batch, call
from .hooked import Hooked
from .versions import version_of

Seen = dict[Point, tuple[Tensor, int]]


def skip_path(
    model: nn.Module, batch: Batch, anatomy: Anatomy, loss_of: Callable[[Any], Tensor]
) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``skip_transmission`` from the last state of each stack to each state.

    A stack without norms on the stream needs no measurement: its transmission is the product of its scales. Where a sum or
    a state is hidden, or was written over in place, the rows end above it. Call it inside ``untouched(model)``.

    Args:
        model: the model.
        batch: one batch.
        anatomy: what ``discover`` found on it.
        loss_of: turns the model's output into a scalar.
    """
    wanted = {
        point
        for stack in anatomy.stacks
        if any(branch.sum is not None for branch in stack.branches)
        for branch in stack.branches
        for point in (branch.state, branch.sum)
        if point is not None
    }
    seen: Seen = {}

    def see(point: Point, tensor: Tensor) -> None:
        seen[point] = (tensor, version_of(tensor))

    loss = None
    if wanted:
        hooks = Hooked(model, wanted, lambda point: partial(see, point))
        try:
            with torch.enable_grad():
                loss = loss_of(call(model, batch))
        finally:
            hooks.remove()
    return [row for stack in anatomy.stacks for row in _rows(stack, seen, loss)]


def _rows(stack: Stack, seen: Seen, loss: Tensor | None) -> list[dict[str, Any]]:
    """Walk down one stack."""
    is_identity = all(branch.sum is None for branch in stack.branches)
    top = _whole(seen, stack.branches[-1].state)
    gradient = None if is_identity or top is None or loss is None else _pulled(loss, top, None)
    if not is_identity and gradient is None:
        return []
    size = 1.0 if gradient is None else float(gradient.double().norm())
    if size == 0:
        return []
    gain, rows = 1.0, []
    for branch in reversed(stack.branches):
        rows.append(_row(stack.index, branch.block, branch.kind, branch.depth, gain))
        if branch.sum is not None:
            state, total = _whole(seen, branch.state), _whole(seen, branch.sum)
            if state is None or total is None or gradient is None:
                return rows
            gradient = _pulled(state, total, gradient)
            if gradient is None:
                return rows
        if gradient is None:
            gain *= abs(branch.scale)
        else:
            gradient = gradient * branch.scale
            gain = float(gradient.double().norm()) / size
    rows.append(_row(stack.index, -1, "embedding", 0, gain))
    return rows


def _row(stack: int, block: int, branch: str, depth: int, gain: float) -> dict[str, Any]:
    place = {"stack": stack, "block": block, "branch": branch, "depth": depth}
    note = "gain of the gradient along the skip path alone, from the last state; a product of Jacobians, norm by norm"
    return place | {"check": "skip_transmission", "observed": gain, "note": note}


def _pulled(output: Tensor, source: Tensor, gradient: Tensor | None) -> Tensor | None:
    """Return the product of ``gradient`` with the Jacobian of ``output`` to ``source``; None where none connects them."""
    if not source.requires_grad or (gradient is not None and gradient.shape != output.shape):
        return None
    outputs = None if gradient is None else [gradient]
    found = torch.autograd.grad([output], [source], outputs, retain_graph=True, allow_unused=True)
    return found[0]


def _whole(seen: Seen, point: Point | None) -> Tensor | None:
    """Return a tensor as it was when it was seen; None once something was written into it."""
    found = seen.get(point) if point is not None else None
    return found[0] if found is not None and version_of(found[0]) == found[1] else None
