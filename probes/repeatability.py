"""Find branches that do not give the same twice: dropout that evaluation leaves on, random routing, a kernel without an order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Branch, Point
from .batches import Batch
from .interventions import Change
from .running import place_of
from .together import ends_of, seen_in

ROUNDING = 1e-6  # of a sum: less is the sum's own rounding
TOLERANCE = 1e-4  # of the write: a kernel that adds in another order each time differs by 1e-6
# What asks how a branch answers a change, or another precision: of one that never answers alike it tells nothing.
SPOILED = (
    *("gradient_conservation", "causality", "samples", "bf16_error", "bf16_state_error", "stream_shift", "stream_end"),
    *("write_rest", "projection_rest", "projection_scale"),
)


def repeatability(
    model: nn.Module, batch: Batch, anatomy: Anatomy, still: Mapping[Point, Tensor]
) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``repeatability`` of every branch whose write is seen, in evaluation mode.

    ``observed`` is how far the write of a second forward is from that of the first, of its size; the state before each branch is
    put back, so that each answers for itself. What is random behind where the write is seen shows in the sum. One forward.
    Call it inside ``untouched(model, training=False)``.

    Args:
        model: the model.
        batch: one batch.
        anatomy: what ``discover`` found on it.
        still: what one forward showed at ``bf16_points``.
    """
    ends = [end for end in ends_of(anatomy) if written(end[0])]
    changes: dict[Point, Change] = {at: partial(_as, still[at]) for _, at, _ in ends if at in still}
    points = {point for branch, before, added in ends for point in (*written(branch), before, added)}
    again = seen_in(model, batch, points, changes)
    rows = []
    for branch, before, added in ends:
        mine = [point for point in written(branch) if point in still and point in again]
        if mine and all(again[point].shape == still[point].shape for point in mine):
            off = sum(_energy(again[point].double() - still[point].double()) for point in mine)
            size = sum(_energy(still[point].double()) for point in mine)
            if size > 0:
                behind = _behind(branch, before, added, still, again)
                rows.append(_row(branch, (max(off, behind) / size) ** 0.5))
    return rows


def _behind(
    branch: Branch, before: Point, added: Point, still: Mapping[Point, Tensor], again: Mapping[Point, Tensor]
) -> float:
    """Return the energy of what the sum changed by, less what its skip brought along; 0 where it is not told."""
    if any(seen.get(at) is None for seen in (still, again) for at in (before, added)):
        return 0.0
    change = again[added].double() - still[added].double()
    if before.side == "input":  # what was put back there was read by one module alone
        skip = again[before].double() - still[before].double()
        if skip.numel() != change.numel():
            return 0.0
        change = change - branch.scale * skip.reshape(change.shape)
    found = _energy(change)
    return found if found > _energy(still[added].double()) * ROUNDING**2 else 0.0


def without_spoiled(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows less what checks told of a block in which a branch does not repeat itself."""
    noisy = {
        (row["stack"], row["block"])
        for row in rows
        if row["check"] == "repeatability" and not row["observed"] <= row["tolerance"]
    }
    return [row for row in rows if row["check"] not in SPOILED or (row.get("stack"), row.get("block")) not in noisy]


def written(branch: Branch) -> tuple[Point, ...]:
    """Return where a branch's write is seen, or the terms that it is the sum of."""
    return (branch.write,) if branch.write is not None else branch.terms or branch.seen


def _as(value: Tensor, tensor: Tensor) -> Tensor:
    return value.reshape(tensor.shape)


def _energy(tensor: Tensor) -> float:
    return float(torch.nan_to_num(tensor).square().sum())


def _row(branch: Branch, off: float) -> dict[str, Any]:
    return {
        "check": "repeatability",
        **place_of(branch),
        "observed": off,
        "expected": 0.0,
        "tolerance": TOLERANCE,
        "note": "change of the write between two forwards from the same state, over the write",
    }
