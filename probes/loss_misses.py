"""Ask the loss itself whether the gradient at a tensor is all that a step along it moves the loss by."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batch, call
from .interventions import changed
from .point import Point

SIZES = (1.0, 3.0, 10.0)  # times the step: one that is too small for the loss is made larger
ROUNDING = 1e-6  # of the loss, a mean of float32
STEADY = 0.25  # of what is missing: what curvature adds is a quarter at half the step, what is missing is the same


def loss_misses(
    model: nn.Module,
    batch: Batch,
    at: tuple[Point, Tensor, Tensor],
    loss_of: Callable[[Any], Tensor],
    *,
    through: float,
    tolerance: float,
) -> bool | None:
    """Return whether the loss moves otherwise than the gradient says; None where it does not tell.

    Args:
        model: the model.
        batch: one batch.
        at: where the tensor is changed, the gradient that arrives there, and the step.
        loss_of: turns the model's output into a scalar.
        through: what a part of the gradient says, which the rest of it is no concern of.
        tolerance: as a fraction of what the loss demands of that part.
    """
    for size in SIZES:
        missing, rounding = _missing(model, batch, at, loss_of, size)
        allowed = tolerance * max(abs(through + missing), abs(through))
        if not math.isfinite(missing):
            return None
        if abs(missing) > rounding + allowed:
            half = missing if size == 1 else _missing(model, batch, at, loss_of, size / 2)[0]
            return True if abs(half - missing) <= STEADY * abs(missing) else None
        if rounding <= allowed:
            return False
    return None


def _missing(
    model: nn.Module, batch: Batch, at: tuple[Point, Tensor, Tensor], loss_of: Callable[[Any], Tensor], size: float
) -> tuple[float, float]:
    """Return how far the loss moves beyond what the gradient says, a unit of the step, and what rounding may make of it."""
    point, gradient, step = at
    ends = []
    for sign in (size, -size):
        with torch.no_grad(), changed(model, point, lambda tensor, sign=sign: tensor + sign * step):  # type: ignore[misc]
            ends.append(float(loss_of(call(model, batch)).double()))
    told = float((gradient.double() * step.double()).sum())
    return (ends[0] - ends[1]) / (2 * size) - told, ROUNDING * abs(ends[0]) / size
