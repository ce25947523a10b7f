"""Find which branches let a position see later ones: each on its own, whatever the branches before it have leaked."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Branch, Point
from .batches import Batch, arguments, call, tensors
from .hooked import Hooked
from .interventions import seen_after

TOLERANCE = 1e-6  # of the sum's largest value: several times what float32 kernels that work in tiles differ by
STEP = (
    1.0  # of the state's own RMS: a branch that writes little, and leaks little of that, must stand out of the rounding
)


def visibility(model: nn.Module, batch: Batch, anatomy: Anatomy, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``causality`` of every branch of a batch of token ids.

    The state before a branch is changed at its last position alone; ``observed`` is by how much the sum behind the branch
    changes at earlier positions, relative to its largest value: 0 where a position sees no later one. A
    forward, and one up to each add. Call it inside ``untouched(model, training=False)``.

    Args:
        model: the model.
        batch: one batch.
        anatomy: what ``discover`` found on it.
        seed: of the change.
    """
    lengths = {t.shape for _, t in tensors(arguments(batch)) if t.dtype in (torch.int32, torch.int64) and t.dim() == 2}
    generator = torch.Generator().manual_seed(seed)
    pairs = [
        (branch, before, branch.added)
        for index, branch in enumerate(anatomy.branches)
        if (before := anatomy.before(index)) is not None and branch.added is not None and before != branch.added
    ]
    still = _still(model, batch, {added for _, _, added in pairs}) if pairs and lengths else {}
    leaks = [
        (branch, _leak(model, batch, (before, added), still[added], lengths, generator))
        for branch, before, added in pairs
        if added in still
    ]
    return [_row(branch, leak) for branch, leak in leaks if leak is not None]


def _still(model: nn.Module, batch: Batch, points: set[Point]) -> dict[Point, Tensor]:
    """Return the sums of a forward in which nothing is changed."""
    seen: dict[Point, Tensor] = {}

    def see(point: Point, tensor: Tensor) -> None:
        seen[point] = tensor.detach().clone()

    hooks = Hooked(model, points, lambda point: partial(see, point))
    try:
        with torch.no_grad():
            call(model, batch)
    finally:
        hooks.remove()
    return seen


def _leak(
    model: nn.Module,
    batch: Batch,
    ends: tuple[Point, Point],
    still: Tensor,
    lengths: set[Any],
    generator: torch.Generator,
) -> float | None:
    """Return the largest change at earlier positions over that at the last; None where positions are not told."""
    is_told: list[bool] = []

    def last_moved(tensor: Tensor) -> Tensor:
        shape = _shape(tensor, lengths)
        is_told.append(shape is not None)
        if shape is None:
            return tensor
        moved = tensor.clone().view(shape)
        noise = torch.randn(moved[:, -1].shape, generator=generator).to(moved)
        moved[:, -1] += STEP * noise * moved[:, -1].square().mean().sqrt()
        return moved.view(tensor.shape)

    moved = seen_after(model, batch, ends[0], last_moved, ends[1])
    if moved is None or not all(is_told) or not is_told:
        return None
    shape = _shape(still, lengths)
    if shape is None or moved.shape != still.shape:
        return None
    change = (moved - still).abs().view(shape)
    own, leak, size = float(change[:, -1].max()), float(change[:, :-1].max()), float(still.abs().max())
    return leak / size if own > 0 and size > 0 and leak == leak else None


def _shape(tensor: Tensor, lengths: set[Any]) -> tuple[int, int, int] | None:
    """Return the tensor's shape as batch, positions and width, where its axes are those of one batch of ids."""
    found = {
        (length[0], length[1], tensor.shape[-1])
        for length in lengths
        if tuple(tensor.shape[:-1]) in ((length[0], length[1]), (length[0] * length[1],)) and length[1] > 1
    }
    return found.pop() if len(found) == 1 and tensor.is_contiguous() else None


def _row(branch: Branch, leak: float) -> dict[str, Any]:
    return {
        "check": "causality",
        "stack": branch.stack,
        "block": branch.block,
        "branch": branch.kind,
        "depth": branch.depth,
        "observed": leak,
        "tolerance": TOLERANCE,
        "note": "change of the sum at earlier positions, over its largest value, when the state before changes at the last alone",
    }
