"""Tell how much of an attention takes no part: the rows or columns of its projections whose gradient is exactly 0."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .anatomy import Anatomy, Branch
from .running import place_of

_ATTENTIONS = ("attention", "cross_attention", "parallel")
LEAST = 4  # lines: no head is smaller


def silent_heads(model: nn.Module, anatomy: Anatomy) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``silent_heads`` of every branch that attends.

    ``observed`` is the largest share of a projection's rows or columns whose gradient is exactly 0 while others of the same
    matrix have one: of a head whose result is thrown away, whose weights are all 0, or whose softmax has no slope left. Reads the
    gradients of the backward that has just run.

    Args:
        model: the model, with its gradients.
        anatomy: what ``discover`` found on it.
    """
    parameters = dict(model.named_parameters())
    rows = []
    for branch in anatomy.branches:
        names = [p.weight for p in branch.projections if p.weight in parameters] if branch.kind in _ATTENTIONS else []
        found = [
            (_share(g), name) for name in names if (g := parameters[name].grad) is not None and _attends(g, branch)
        ]
        if found:
            share, weight = max(found)
            rows.append(_row(branch, share, weight.rpartition(".")[0] if share else ""))
    return rows


def _attends(gradient: Tensor, branch: Branch) -> bool:
    """Return whether a matrix is of attention alone: a parallel branch has hidden units too, some of them dead."""
    width = None if branch.hidden is None else branch.hidden.width
    return gradient.dim() == 2 and (branch.kind != "parallel" or (width is not None and max(gradient.shape) < width))


def _share(gradient: Tensor) -> float:
    """Return the share of rows, or of columns, without any gradient; 0 where there are none, few, or no others."""
    live = gradient != 0
    counts = [(int((~live.any(1 - axis)).sum()), live.shape[axis]) for axis in (0, 1)]
    return max((n / size for n, size in counts if LEAST <= n < size), default=0.0)


def _row(branch: Branch, share: float, path: str) -> dict[str, Any]:
    return {
        "check": "silent_heads",
        **place_of(branch),
        "module_path": path,
        "observed": share,
        "expected": 0.0,
        "tolerance": 0.0,
        "note": "largest share of a projection's rows or columns whose gradient is exactly 0",
    }
