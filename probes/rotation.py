"""Measure how attention turns queries from one position to the next, and tell a block that turns them unlike its siblings.

Where every position projects to the same vector, queries differ by what their position does to them alone: nothing, or a rotation
``q(t + 1) = R q(t)`` (Su et al. 2021, RoFormer, equation 14). R is the same in all blocks that share one rotary embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Branch
from .attention_calls import AttentionCalls
from .batches import Batch
from .running import place_of
from .visibility import lengths_of, shape_of

TOLERANCE = 0.05  # of the turn: what a fit in float64 to float32 queries leaves is a thousandth
LEAST_SIBLINGS = 4
RIDGE = 1e-6  # of the queries' energy: planes that a batch hardly reaches are taken as not turned
TURNS = 1e-3  # of a vector: below it nothing is turned


def rotation(model: nn.Module, batch: Batch, anatomy: Anatomy) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``rotation`` and ``rotation_size`` of attention branches, where queries are turned.

    ``rotation`` is how far a branch's queries are turned from where the median R of its kind and stack would turn them, over the
    larger of the two turns: 0 in a model with one rotary embedding, 1 in a block without. ``rotation_size`` is the size of its
    turn over that of the median R. No row where nothing is turned, and none with fewer than five branches. One forward. Call it
    inside ``untouched(model, training=False)``.
    """
    watch = _Turns(anatomy, lengths_of(batch))
    if not watch.lengths:
        return []
    watch.follow(model, batch)
    rows = []
    for _, group in groupby(sorted(watch.turns.values(), key=_kind), key=_kind):
        turns = list(group)
        if len(turns) > LEAST_SIBLINGS:
            rows += _compared(turns)
    return rows


@dataclass(frozen=True)
class _Turn:
    """R - 1 of one branch, from the right, and the energy of its queries by direction: what none reaches counts for nothing."""

    branch: Branch
    matrix: Tensor
    energy: Tensor

    def size(self, matrix: Tensor) -> float:
        """Return the RMS by which a matrix moves the branch's queries, over theirs."""
        moved = torch.einsum("ij,ik,kj->", matrix, self.energy, matrix)
        return math.sqrt(max(float(moved), 0.0) / float(self.energy.diagonal().sum()))


def _kind(turn: _Turn) -> tuple[int, str, int]:
    return turn.branch.stack, turn.branch.kind, len(turn.matrix)


def _compared(turns: list[_Turn]) -> list[dict[str, Any]]:
    usual = torch.stack([turn.matrix for turn in turns]).median(0).values
    sizes = [max(turn.size(turn.matrix), turn.size(usual)) for turn in turns]
    if max(sizes) < TURNS:
        return []
    rows = []
    for turn, size in zip(turns, sizes, strict=True):
        rows.append(_row(turn.branch, turn.size(turn.matrix - usual) / max(size, TURNS)))
        note = "how far queries are turned from one position to the next, over how far the median block turns them"
        of_size = {"check": "rotation_size", "observed": turn.size(turn.matrix) / max(turn.size(usual), TURNS)}
        rows.append({**place_of(turn.branch), **of_size, "note": note})
    return rows


class _Turns(AttentionCalls):
    """Gives every position the projection of the first, and fits R to the queries of each branch's first attention."""

    def __init__(self, anatomy: Anatomy, lengths: set[Any]) -> None:
        """Know the shapes of a batch."""
        super().__init__(anatomy)
        self.lengths = lengths
        self.turns: dict[tuple[int, int], _Turn] = {}

    def projected(self, branch: Branch, result: Tensor) -> Tensor:
        """Return what the first position is projected to, at all positions."""
        shape = shape_of(result, self.lengths)
        if shape is None or (branch.stack, branch.depth) in self.turns:
            return result
        return result.view(shape)[:, :1].expand(shape).reshape(result.shape)

    def attended_at_once(self, branch: Branch, query: Tensor, key: Tensor, scale: float) -> None:  # noqa: ARG002
        """Fit R to the queries."""
        self._fit(branch, query)

    def attended_by_hand(self, branch: Branch, product: Tensor, query: Tensor, key: Tensor, logits: Tensor) -> None:  # noqa: ARG002
        """Fit R to the queries."""
        self._fit(branch, query)

    def _fit(self, branch: Branch, query: Tensor) -> None:
        positions = {length[1] for length in self.lengths}
        if (branch.stack, branch.depth) in self.turns or query.dim() < 3 or query.shape[-2] not in positions:
            return
        all_of = query.detach().double().flatten(0, -3)
        now, then = all_of[:, :-1].flatten(0, 1), all_of[:, 1:].flatten(0, 1)
        energy = now.mT @ now
        size = float(energy.diagonal().sum())
        if not 0 < size < float("inf"):
            return
        ridge = RIDGE * size / len(energy) * torch.eye(len(energy), dtype=energy.dtype, device=energy.device)
        turn = torch.linalg.solve(energy + ridge, now.mT @ (then - now))
        self.turns[branch.stack, branch.depth] = _Turn(branch, turn.cpu(), energy.cpu())


def _row(branch: Branch, apart: float) -> dict[str, Any]:
    return {
        "check": "rotation",
        **place_of(branch),
        "observed": apart,
        "expected": 0.0,
        "tolerance": TOLERANCE,
        "note": "how far queries are turned from one position to the next from where the median block turns them, over the turn",
    }
