"""Measure what share of each write dropout takes away in training: blocks of one class have one dropout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Branch, Point
from .batches import Batch
from .running import place_of
from .together import seen_in
from .untouched import untouched


def dropped(model: nn.Module, batch: Batch, anatomy: Anatomy) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``dropped_share`` of every branch, in one forward with dropout on.

    ``observed`` is the share of a write's elements that are not 0 but for training, where they are 0: the probability of
    the dropout that stands last in the branch, to the square root of ``p (1 - p) / n``, n of elements, or of samples where those
    are dropped whole. Two forwards; the model's random state
    and buffers are put back.
    """
    ends = {branch: _ends(branch) for branch in anatomy.branches}
    points = {point for several in ends.values() for end in several for point in end}
    if not points:
        return []
    seen = []
    for training in (False, True):
        with untouched(model, training=training):
            torch.manual_seed(0)
            seen.append(seen_in(model, batch, points))
    still, noisy = seen
    rows = []
    for branch, several in ends.items():
        for end in several:
            shares = [(_dropped(still[at], noisy[at]), at) for at in end if at in still and at in noisy]
            found = [(share, at) for share, at in shares if share is not None]
            if found:
                (share, n), at = max(found, key=lambda pair: pair[0])
                rows.append(_row(branch, at, share, n))
    return rows


def _ends(branch: Branch) -> list[tuple[Point, ...]]:
    """Return where each term of a write is seen; a norm that ends the branch hides what was 0 before it: there as well."""
    if branch.write is None:
        return [(term,) for term in branch.terms]
    return [(branch.write, *(Point(path, "input", (0,)) for path in branch.output_norms[:1]))]


def _dropped(still: Tensor, noisy: Tensor) -> tuple[float, int] | None:
    """Return the share that is 0 in training alone, and of how many draws; None where nothing is there to be dropped."""
    n = int((still != 0).sum())
    if not n:
        return None
    share = (_zero_share(noisy) - _zero_share(still)) * noisy.numel() / n
    whole = (noisy == 0).flatten(1).all(1) if noisy.dim() > 1 else noisy == 0
    # Stochastic depth drops a sample's whole write: one draw each.
    return share, len(whole) if bool(whole.any()) and share * n <= int((still[whole] != 0).sum()) else n


def _zero_share(tensor: Tensor) -> float:
    return float((tensor == 0).double().mean())


def _row(branch: Branch, end: Point, beyond: float, n: int) -> dict[str, Any]:
    share = max(0.0, beyond)
    return {
        "check": "dropped_share",
        **place_of(branch),
        "module_path": end.module_path,
        "observed": share,
        "tolerance": 6 * (max(share, 1 / n) / n) ** 0.5,
        "note": f"share of the write that is 0 in training alone, of {n:,} draws",
    }
