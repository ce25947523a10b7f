"""Put a gate on what every branch writes: one number that the write is multiplied by, proved to take it out when it is closed.

The gradient of the loss with respect to an open gate is the sum over the write's elements of gradient times activation
(captum's LayerGradientXActivation, added up); closing it is the ablation of the whole write (LayerFeatureAblation with one mask).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from rheoscope.probes.anatomy import Anatomy, Branch, Point
from rheoscope.probes.batches import Batch
from rheoscope.probes.interventions import changed
from rheoscope.probes.together import seen_in
from torch import Tensor, nn

TOLERANCE = 1e-4  # of the sum's size: what may be left of a write that was taken out


@dataclass(frozen=True)
class Gate:
    """The gate of one branch: the points at which the write, or each term of it, is multiplied."""

    branch: Branch
    points: tuple[Point, ...]


def gates_of(model: nn.Module, batch: Batch, anatomy: Anatomy) -> tuple[tuple[Gate, ...], tuple[str, ...]]:
    """Return the gates that take out what they should, and why others are missing, in sentences.

    One forward with all of them closed proves them: every sum must then be its skip operand, times its scale. Call it inside
    ``at_rest(model)``.
    """
    found = [Gate(branch, points) for branch in anatomy.branches if (points := _points(branch))]
    wanted = {
        point for stack in anatomy.stacks for point in (stack.start, *(_ends(stack.branches))) if point is not None
    }
    with torch.no_grad(), gated(model, found, torch.zeros(len(found), device=_device(model))):
        seen = seen_in(model, batch, wanted)
    proved = tuple(gate for gate in found if _is_out(gate, anatomy, seen))
    missing = [branch for branch in anatomy.branches if branch not in [gate.branch for gate in proved]]
    sentences = tuple(
        f"What the {branch.kind} branch of block {branch.block} writes cannot be taken out: no hook holds all of it."
        for branch in missing
    )
    return proved, sentences


@contextmanager
def gated(model: nn.Module, gates: Sequence[Gate], values: Tensor) -> Iterator[None]:
    """Run a block in which every forward multiplies each branch's write by its gate's value.

    Args:
        model: the model.
        gates: on what.
        values: shape (gates); gradients flow into it.
    """
    with ExitStack() as stack:
        for gate, value in zip(gates, values, strict=True):
            for point in gate.points:
                stack.enter_context(changed(model, point, _times(value)))
        yield


def _times(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor * value.to(tensor)


def _points(branch: Branch) -> tuple[Point, ...]:
    """Return where the write is whole, or where all that it is made of is, up to constant factors."""
    if branch.write is not None and "write" not in branch.partial:
        return (branch.write,)
    return branch.terms or branch.seen


def _ends(branches: Sequence[Branch]) -> Iterator[Point | None]:
    for branch in branches:
        yield branch.state
        yield branch.sum


def _is_out(gate: Gate, anatomy: Anatomy, seen: dict[Point, Tensor]) -> bool:
    """Return whether the sum behind a closed gate is the state before it, times the skip's scale."""
    branch = gate.branch
    stack = anatomy.stacks[branch.stack]
    before = stack.start if branch.depth == 1 else stack.branches[branch.depth - 2].state
    total = branch.sum if branch.sum is not None else branch.state
    if before is None or total is None or before not in seen or total not in seen or branch.is_gated_skip:
        return False
    skip, found = branch.scale * seen[before].double(), seen[total].double()
    return skip.numel() == found.numel() and float((found.reshape(skip.shape) - skip).norm()) <= TOLERANCE * float(
        skip.norm()
    )


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
