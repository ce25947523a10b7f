"""Certify every add by plain hooks: ``sum = scale * skip operand + write``, each captured on its own."""

from __future__ import annotations

from functools import partial

import torch
from rheoscope.probes.anatomy import Point, Stack
from rheoscope.probes.batches import Batch, call
from rheoscope.probes.hooked import Hooked
from torch import Tensor, nn

SAMPLE = 65_536  # elements of each tensor that are compared


def captured(model: nn.Module, batch: Batch, points: set[Point]) -> dict[Point, Tensor]:
    """Return what plain hooks see at ``points`` in one forward: the first elements, in float64, on the CPU.

    Call it inside ``untouched(model, training=False)``.
    """
    seen: dict[Point, Tensor] = {}

    def see(point: Point, tensor: Tensor) -> None:
        seen[point] = _sample(tensor)

    hooks = Hooked(model, points, lambda point: partial(see, point))
    try:
        with torch.no_grad():
            call(model, batch)
    finally:
        hooks.remove()
    return seen


def ledger_errors(stack: Stack, seen: dict[Point, Tensor]) -> list[tuple[float | None, float]]:
    """Return, per branch, the relative error of its add and the scale of its skip operand that fits best.

    The error is None where a term is hidden, of another layout, or not finite.
    """
    result: list[tuple[float | None, float]] = []
    previous = stack.start
    for branch in stack.branches:
        end = branch.sum or branch.state
        total = seen.get(end) if end else None
        skip = seen.get(previous) if previous else None
        writes = [seen.get(point) for point in (branch.terms or (branch.write,)) if point is not None]
        previous = branch.state
        write = _summed([item for item in writes if item is not None]) if None not in writes and writes else None
        result.append(_error(total, skip, write, fit=branch.scale != 1.0))
    return result


def _error(total: Tensor | None, skip: Tensor | None, write: Tensor | None, *, fit: bool) -> tuple[float | None, float]:
    if total is None or skip is None or write is None or not total.shape == skip.shape == write.shape:
        return None, 1.0
    if not bool(torch.isfinite(total).all()):
        return None, 1.0
    scale = float((total - write) @ skip / (skip @ skip)) if fit and bool(skip.any()) else 1.0
    size = float(total.norm())
    return (float((total - scale * skip - write).norm()) / size if size else 0.0), scale


def _summed(terms: list[Tensor]) -> Tensor | None:
    if not terms or any(term.shape != terms[0].shape for term in terms):
        return None
    return torch.stack(terms).sum(0)


def _sample(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1)[:SAMPLE].to("cpu", torch.float64).clone()
