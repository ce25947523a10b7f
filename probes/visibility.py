"""Find which branches let a position see later ones: each on its own, whatever the branches before it have leaked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Branch, Point
from .batches import Batch, arguments, tensors
from .interventions import seen_after
from .running import place_of
from .together import Ends, ends_of, groups_of, moved_in

TOLERANCE = 1e-6  # of the sum's largest value: several times what float32 kernels that work in tiles differ by
STEP = 1.0  # of the state's own RMS: what a branch that writes little leaks must stand out of the rounding
LARGE = 30.0  # times the step, where siblings show nothing at all and one shows less than the tolerance


def visible_points(anatomy: Anatomy) -> set[Point]:
    """Return where ``visibility`` looks."""
    return {point for _, before, added in ends_of(anatomy) for point in (before, added)}


def visibility(
    model: nn.Module, batch: Batch, anatomy: Anatomy, still: Mapping[Point, Tensor], *, seed: int = 0
) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``causality`` of every branch of a batch of token ids.

    The state before a branch is changed at its last position alone; ``observed`` is by how much the sum behind the branch
    changes at earlier positions, relative to its largest value: 0 where a position sees no later one. One forward a branch of
    the block, not of the model. Call it inside ``untouched(model, training=False)``.

    Args:
        model: the model.
        batch: one batch.
        anatomy: what ``discover`` found on it.
        still: what one forward showed at ``visible_points``.
        seed: of the change.
    """
    lengths = lengths_of(batch)
    generator = torch.Generator().manual_seed(seed)
    adds = ends_of(anatomy)
    if not adds or not lengths:
        return []
    moved = {
        index: state
        for index, (_, before, _) in enumerate(adds)
        if before in still and (state := _last_moved(still[before], lengths, generator)) is not None
    }
    leaks: dict[int, float | None] = {}
    for group in groups_of(adds):
        sums = moved_in(model, batch, adds, group, still, moved)
        leaks |= {index: _leak(sums[index], still[adds[index][2]], lengths) for index in sums}
    for index in _exceptions(adds, leaks):
        # Asked again alone: another of the group may have leaked into it.
        _, before, added = adds[index]
        for size in (1.0, LARGE):
            # A small leak grows with the change; what kernels round otherwise does not.
            state = torch.lerp(still[before], moved[index], size)
            alone = seen_after(model, batch, before, partial(_as, state), added)
            leaks[index] = leak = None if alone is None else _leak(alone, still[added], lengths)
            if not leak or leak > TOLERANCE:
                break
    return [_row(adds[index][0], leak) for index, leak in sorted(leaks.items()) if leak is not None]


def _exceptions(adds: Sequence[Ends], leaks: Mapping[int, float | None]) -> list[int]:
    """Return the adds that leak while half of their kind do not; where more do they are made to see everything."""
    kinds: dict[tuple[int, str], list[int]] = {}
    for index, leak in leaks.items():
        if leak is not None:
            kinds.setdefault((adds[index][0].stack, adds[index][0].kind), []).append(index)
    levels = [(mine, level) for mine in kinds.values() for level in (0.0, TOLERANCE)]
    ill = [([index for index in mine if (leaks[index] or 0.0) > level], len(mine)) for mine, level in levels]
    return list(dict.fromkeys(index for some, n in ill if 2 * len(some) <= n for index in some))


def _as(state: Tensor, tensor: Tensor) -> Tensor:
    return state.reshape(tensor.shape)


def _last_moved(state: Tensor, lengths: set[Any], generator: torch.Generator) -> Tensor | None:
    """Return a state with its last position moved; None where its positions are not told."""
    shape = shape_of(state, lengths)
    if shape is None:
        return None
    moved = state.clone().view(shape)
    noise = torch.randn(moved[:, -1].shape, generator=generator).to(moved)
    moved[:, -1] += STEP * noise * moved[:, -1].square().mean().sqrt()
    return moved.view(state.shape)


def _leak(moved: Tensor, still: Tensor, lengths: set[Any]) -> float | None:
    """Return the largest change at earlier positions over the largest value; None where positions are not told."""
    shape = shape_of(still, lengths)
    if shape is None or moved.shape != still.shape:
        return None
    change = (moved - still).abs().view(shape)
    leak, size = float(change[:, :-1].max()), float(still.abs().max())
    return leak / size if float(change.max()) > 0 and size > 0 else None


def lengths_of(batch: Batch) -> set[Any]:
    """Return the shapes, batch by positions, of the token ids and other whole numbers in a batch."""
    return {t.shape for _, t in tensors(arguments(batch)) if t.dtype in (torch.int32, torch.int64) and t.dim() == 2}


def shape_of(tensor: Tensor, lengths: set[Any]) -> tuple[int, int, int] | None:
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
        **place_of(branch),
        "observed": leak,
        "tolerance": TOLERANCE,
        "note": "change of the sum at earlier positions, over its largest value, when the state before changes at the last alone",
    }
