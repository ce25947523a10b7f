"""Measure what share of each write dropout takes away in training: blocks of one class have one dropout."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Point
from .batches import Batch, call
from .hooked import Hooked
from .untouched import untouched


def dropped(model: nn.Module, batch: Batch, anatomy: Anatomy) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``dropped_share`` of every branch, in one forward with dropout on.

    ``observed`` is the share of a write's elements that are 0 in training beyond those that are 0 without: the probability of
    the dropout that stands last in the branch, to the square root of ``p (1 - p) / n``. Two forwards; the model's random state
    and buffers are put back.
    """
    points = {}
    for branch in anatomy.branches:
        ends = (branch.write,) if branch.write is not None else branch.terms
        points[branch.stack, branch.depth] = tuple(ends)
    wanted = {end for ends in points.values() for end in ends}
    if not wanted:
        return []
    shares = []
    for training in (False, True):
        with untouched(model, training=training):
            torch.manual_seed(0)
            shares.append(_zero_shares(model, batch, wanted))
    rows = []
    for branch in anatomy.branches:
        for end in points[branch.stack, branch.depth]:
            if end in shares[0] and end in shares[1]:
                (still, _), (noisy, n) = shares[0][end], shares[1][end]
                share = max(0.0, noisy - still)
                rows.append(
                    {
                        "check": "dropped_share",
                        "stack": branch.stack,
                        "block": branch.block,
                        "branch": branch.kind,
                        "depth": branch.depth,
                        "module_path": end.module_path,
                        "observed": share,
                        "tolerance": 6 * (max(share, 1 / n) / n) ** 0.5,
                        "note": f"share of {n:,} elements of the write that are 0 in training alone",
                    }
                )
    return rows


def _zero_shares(model: nn.Module, batch: Batch, points: set[Point]) -> dict[Point, tuple[float, int]]:
    seen: dict[Point, tuple[float, int]] = {}

    def see(point: Point, tensor: Tensor) -> None:
        seen[point] = float((tensor.detach() == 0).double().mean()), max(1, tensor.numel())

    hooks = Hooked(model, points, lambda point: partial(see, point))
    try:
        with torch.no_grad():
            call(model, batch)
    finally:
        hooks.remove()
    return seen
