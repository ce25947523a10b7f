"""Prove the gradient of every branch: what arrives below an add must be what the forward itself says.

Let x be the state before branch k and s the sum behind it. To first order s moves by D when x moves by e v; a sound backward
gives ``<dL/dx, v> = <dL/ds, D / e>``, magnitude and direction, whatever the branch computes. A detached branch, a gradient
that is scaled or turned around, a wrong hand-written backward break it, and no norm of any gradient shows the last two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Branch, Point
from .batches import Batch, call
from .hooked import Hooked
from .interventions import changed, seen_after
from .loss_misses import loss_misses
from .running import place_of
from .together import ends_of, groups_of, moved_in

STEP = 1e-2  # of the state's norm: central differences err by its square, float32 rounding by 1e-7 over it
LARGE = 10.0  # times the step, to see a branch that does little move; dead units must stay dead
TOLERANCE = 0.02
ROUNDING = 3e-6  # of float32 in a sum, as the gradient above it sees it; ten times what one rounding gives
SEEN = 20.0  # times the rounding: what a branch does must stand out of it to be judged
SMOOTH = 0.25  # a second step, so many times the first: where the two disagree the forward has an edge (a router's)


LossOf = Callable[[Any], Tensor]


@dataclass(frozen=True)
class _Add:
    """One add whose two ends are seen, and what one backward gave there.

    Attributes:
        branch: the branch that is added.
        before: where the state is changed; who reads it there reads what was changed.
        added: where the sum shows its whole gradient.
        value: the state.
        total: the sum.
        below: the gradient that arrives from those who read the state at ``before``.
        above: the gradient of the sum.
    """

    branch: Branch
    before: Point
    added: Point
    value: Tensor
    total: Tensor
    below: Tensor
    above: Tensor

    @property
    def through(self) -> Tensor:
        """The gradient through the branch. Where the state is shown as a module's input the skip may not be among its readers."""
        rest = self.below - self.branch.scale * self.above
        return rest if float(rest.double().norm()) < float(self.below.double().norm()) else self.below

    @property
    def has_skip(self) -> bool:
        """Whether ``below`` holds the skip's part."""
        return self.through is not self.below


def conservation(
    model: nn.Module, batch: Batch, anatomy: Anatomy, loss_of: LossOf, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``gradient_conservation`` of every add that could be tested.

    ``observed`` is the gradient through the branch over the one that the forward demands, along one direction: 1 in a sound
    model, 0 where the branch is detached. A violation is recorded only where the loss itself confirms it: a state that other
    parts of the model read as well is no false alarm. Costs a forward and backward, and two forwards a branch of the block, not
    of the model; a branch that fails there is asked again alone. Call it inside ``untouched(model, training=False)``.

    Args:
        model: the model.
        batch: one batch.
        anatomy: what ``discover`` found on it.
        loss_of: turns the model's output into a scalar.
        seed: of the random part of the directions.
    """
    generator = torch.Generator().manual_seed(seed)
    adds = [add for add in _adds(model, batch, anatomy, loss_of) if _is_useful(add)]
    steps = []
    for add in adds:
        # Along the branch's own gradient every wrong factor shows; the random part shows a branch without any.
        noise = torch.randn(add.below.shape, generator=generator).to(add.below)
        steps.append(_step(_unit(add.through) + _unit(noise), add.value))
    rows = []
    for add, step, ends in zip(adds, steps, _ends_together(model, batch, adds, steps), strict=True):
        found = _tested(model, batch, add, step, loss_of, ends)
        if found is not None:
            rows.append(conserved(add.branch, found))
    return rows


def _ends_together(
    model: nn.Module, batch: Batch, adds: list[_Add], steps: list[Tensor]
) -> list[tuple[Tensor, Tensor] | None]:
    """Return the sum behind every add after a step forth and one back before it, many in one forward."""
    places = [(add.branch, add.before, add.added) for add in adds]
    states = {add.before: add.value for add in adds}
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for group in groups_of(places):
        forth, back = (
            moved_in(model, batch, places, group, states, {k: adds[k].value + sign * steps[k] for k in group})
            for sign in (1.0, -1.0)
        )
        found |= {k: (forth[k], back[k]) for k in group if k in forth and k in back}
    return [found.get(k) for k in range(len(adds))]


def _adds(model: nn.Module, batch: Batch, anatomy: Anatomy, loss_of: LossOf) -> list[_Add]:
    """Return the adds both ends of which one forward and backward showed."""
    pairs = ends_of(anatomy)
    states: dict[Point, Tensor] = {}
    sums: dict[Point, Tensor] = {}
    above: dict[Point, Tensor] = {}

    def keep(point: Point, tensor: Tensor) -> Tensor:
        # Kept is a copy that nobody writes to; its readers are those of the changed tensor, and no others.
        states[point] = tensor.clone()
        return states[point].clone()

    def see(point: Point, tensor: Tensor) -> None:
        sums[point] = tensor.detach().clone()
        if tensor.requires_grad:
            # A hook has the gradient of what the tensor was, also where the next add writes into it.
            tensor.register_hook(lambda gradient: above.__setitem__(point, gradient.detach()))  # type: ignore[no-untyped-call]

    hooks = Hooked(model, {added for _, _, added in pairs}, lambda point: partial(see, point))
    try:
        with torch.enable_grad(), ExitStack() as stack:
            for point in {before for _, before, _ in pairs}:
                stack.enter_context(changed(model, point, partial(keep, point)))
            loss = loss_of(call(model, batch))
    finally:
        hooks.remove()
    below = _gradients(loss, states)
    return [
        # A sum may be shown as tokens by width where the state is a batch of them.
        _Add(branch, at, added, states[at].detach(), sums[added], below[at], above[added].reshape(below[at].shape))
        for branch, at, added in pairs
        if at in below and added in above and above[added].numel() == below[at].numel()
    ]


def _gradients(loss: Tensor, tensors: dict[Point, Tensor]) -> dict[Point, Tensor]:
    """Return the gradient of each tensor that requires one: zero where none arrives."""
    able = {point: tensor for point, tensor in tensors.items() if tensor.requires_grad}
    if not able or not loss.requires_grad:
        return {}
    found = torch.autograd.grad(loss, list(able.values()), allow_unused=True)
    pairs = zip(able.items(), found, strict=True)
    return {point: torch.zeros_like(tensor) if g is None else g.detach() for (point, tensor), g in pairs}


def _tested(
    model: nn.Module,
    batch: Batch,
    add: _Add,
    step: Tensor,
    loss_of: LossOf,
    together: tuple[Tensor, Tensor] | None,
) -> float | None:
    """Return the ratio of the gradient that arrives to the one demanded; None where it cannot be told."""
    if _is_cut(add):
        # Nothing arrives of what the branch does: who else reads the state could only add to it.
        return 0.0 if _moves(model, batch, add, step * LARGE) else None
    if together is not None and _agrees(add, step, _demanded(add, step, together)):
        return 1.0
    demanded = _demanded(add, step, _ends(model, batch, add, step))
    if demanded is None or _is_hidden(add, step, demanded):
        return None
    if _agrees(add, step, demanded):
        return 1.0
    again = _demanded(add, step * SMOOTH, _ends(model, batch, add, step * SMOOTH))
    share = max(abs(demanded), abs(_dot(add.through, step)))
    if again is None or abs(again / SMOOTH - demanded) > TOLERANCE * share + _rounding(add) / SMOOTH:
        return None
    through = _dot(add.through, step)
    at = add.before, add.below, step
    is_missing = loss_misses(model, batch, at, loss_of, through=through, tolerance=TOLERANCE)
    # How much is missing is said by what the add has shown, which is sharper.
    return None if is_missing is None else through / demanded if is_missing else 1.0


def _rounding(add: _Add) -> float:
    size = float(add.above.double().norm() * add.total.double().norm())
    return float(ROUNDING * size / add.total.numel() ** 0.5)


def _is_hidden(add: _Add, step: Tensor, demanded: float) -> bool:
    """Return whether what the branch does drowns in rounding."""
    return max(abs(demanded), abs(_dot(add.through, step))) <= SEEN * _rounding(add)


def _agrees(add: _Add, step: Tensor, demanded: float | None) -> bool:
    """Return whether the gradient that arrives is what the forward demands, and visibly so."""
    if demanded is None or _is_hidden(add, step, demanded):
        return False
    through = _dot(add.through, step)
    return abs(demanded - through) <= TOLERANCE * max(abs(demanded), abs(through)) + _rounding(add)


def _is_cut(add: _Add) -> bool:
    """Return whether nothing arrives through the branch at any token: one whose gradient is huge hides what others have."""
    arrived, passing = (part.double().norm(dim=-1) for part in (add.through, add.above))
    return bool((arrived <= ROUNDING * passing).all())


def _step(direction: Tensor, value: Tensor) -> Tensor:
    """Return a step along a direction, of each token in proportion to its own size: one at 0 does not move."""
    own = direction.double().norm(dim=-1, keepdim=True)
    size = STEP * value.double().norm(dim=-1, keepdim=True)
    return (direction * torch.where(own > 0, size / own, 0.0)).to(value)


def _ends(model: nn.Module, batch: Batch, add: _Add, step: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the sum after a step forth and one back before it, in forwards of their own."""
    forth, back = (seen_after(model, batch, add.before, _by(sign * step), add.added) for sign in (1.0, -1.0))
    return None if forth is None or back is None else (forth, back)


def _moves(model: nn.Module, batch: Batch, add: _Add, step: Tensor) -> bool:
    """Return whether a larger step before the branch moves what the branch writes."""
    ends = _ends(model, batch, add, step)
    if ends is None or ends[0].shape != add.total.shape:
        return False
    skip = 2 * add.branch.scale * step if add.has_skip else torch.zeros_like(step)
    moved = (ends[0] - ends[1]).reshape(step.shape) - skip
    size = float(add.total.double().norm() + 2 * step.double().norm())
    return float(moved.double().norm()) > 10 * ROUNDING * size


def _by(step: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor + step


def _demanded(add: _Add, step: Tensor, ends: tuple[Tensor, Tensor] | None) -> float | None:
    """Return how far the branch moves the loss by a step before it, as the gradient above the add has it."""
    if ends is None or ends[0].shape != add.total.shape:
        return None
    skip = add.branch.scale * _dot(add.above, step) if add.has_skip else 0.0
    moved = _dot(add.above, (ends[0].double() - ends[1].double()).reshape(add.above.shape)) / 2 - skip
    return moved if math.isfinite(moved) else None


def _is_useful(add: _Add) -> bool:
    are_wide = add.value.dtype in (torch.float32, torch.float64)
    return are_wide and bool(torch.isfinite(add.above).all() and torch.isfinite(add.below).all() and add.above.any())


def _unit(tensor: Tensor) -> Tensor:
    norm = float(tensor.double().norm())
    return tensor / norm if norm > 0 else tensor


def _dot(one: Tensor, other: Tensor) -> float:
    return float((one.double() * other.double()).sum())


def conserved(branch: Branch, ratio: float) -> dict[str, Any]:
    """Return a row of the identities table: what arrives through a branch over what its forward demands."""
    return {
        "check": "gradient_conservation",
        **place_of(branch),
        "observed": ratio,
        "expected": 1.0,
        "tolerance": TOLERANCE,
        "note": "gradient through the branch over the one that the forward demands, along one direction",
    }
