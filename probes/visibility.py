"""Find which branches let a position see later ones, or a sample another: each alone, whatever those before it have leaked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
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


@dataclass(frozen=True)
class _Leak:
    """How far a change at last positions reaches, over the sum's largest value: ``earlier`` positions, and ``other`` samples."""

    earlier: float
    other: float | None

    @property
    def most(self) -> float:
        """The larger of the two."""
        return max(self.earlier, self.other or 0.0)


def visibility(
    model: nn.Module, batch: Batch, anatomy: Anatomy, still: Mapping[Point, Tensor], *, seed: int = 0
) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``causality`` and ``samples`` of every branch of a batch of token ids.

    The state before a branch is changed at the last position alone, of all samples but the first; ``observed`` is by how much the
    sum behind the branch changes relative to its largest value, at earlier positions: 0 where a position sees no later one; and
    in the first sample: 0 where no sample sees another. One forward a branch of the block, not of the model. Call it inside
    ``untouched(model, training=False)``.

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
    leaks: dict[int, _Leak | None] = {}
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
            if leak is None or leak.most == 0 or leak.most > TOLERANCE:
                break
    known = [(adds[index][0], leak) for index, leak in sorted(leaks.items()) if leak is not None]
    return [
        *(_row("causality", branch, leak.earlier, "at earlier positions") for branch, leak in known),
        *(_row("samples", branch, leak.other, "in other samples") for branch, leak in known if leak.other is not None),
    ]


def _exceptions(adds: Sequence[Ends], leaks: Mapping[int, _Leak | None]) -> list[int]:
    """Return the adds that leak while half of their kind do not; where more do they are made to see everything."""
    kinds: dict[tuple[int, str], list[int]] = {}
    for index, leak in leaks.items():
        if leak is not None:
            kinds.setdefault((adds[index][0].stack, adds[index][0].kind), []).append(index)
    reaches = {i: (leak.earlier, leak.other or 0.0) for i, leak in leaks.items() if leak is not None}
    found: dict[int, None] = {}
    for mine in kinds.values():
        for nth, level in product((0, 1), (0.0, TOLERANCE)):
            some = [index for index in mine if reaches[index][nth] > level]
            found |= dict.fromkeys(some if 2 * len(some) <= len(mine) else ())
    return list(found)


def _as(state: Tensor, tensor: Tensor) -> Tensor:
    return state.reshape(tensor.shape)


def _changed(n: int) -> slice:
    """Return which of n samples are changed: all but the first, which is to stay as it is; a single one itself."""
    return slice(1 if n > 1 else 0, None)


def _last_moved(state: Tensor, lengths: set[Any], generator: torch.Generator) -> Tensor | None:
    """Return a state with the last position of samples moved; None where its positions are not told."""
    shape = shape_of(state, lengths)
    if shape is None:
        return None
    moved = state.clone().view(shape)
    last = moved[_changed(shape[0]), -1]
    noise = torch.randn(last.shape, generator=generator).to(moved)
    moved[_changed(shape[0]), -1] += STEP * noise * moved[:, -1].square().mean().sqrt()
    return moved.view(state.shape)


def _leak(moved: Tensor, still: Tensor, lengths: set[Any]) -> _Leak | None:
    """Return how far a change at last positions reaches; None where positions are not told, or nothing changes."""
    shape = shape_of(still, lengths)
    if shape is None or moved.shape != still.shape:
        return None
    change = (moved - still).abs().view(shape)
    size, n = float(still.abs().max()), shape[0]
    if not (float(change.max()) > 0 and size > 0):
        return None
    other = float(change[0].max()) / size if n > 1 else None
    return _Leak(float(change[_changed(n), :-1].max()) / size, other)


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


def _row(check: str, branch: Branch, leak: float, where: str) -> dict[str, Any]:
    return {
        "check": check,
        **place_of(branch),
        "observed": leak,
        "expected": 0.0,
        "tolerance": TOLERANCE,
        "note": f"change of the sum {where}, over its largest value, when the state before changes at last positions alone",
    }
