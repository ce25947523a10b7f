"""Check the gradient that the loss hands to the logits: of a mean cross-entropy it is ``(softmax - one hot) / n``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy
from .batches import Batch, call
from .hooked import Hooked

TOLERANCE = 0.01
FIT = 1e-3  # of a row's own size: what is left when a row is explained as cross-entropy
MOST_ROWS = 512  # tokens looked at


def loss_gradient(
    model: nn.Module, batch: Batch, anatomy: Anatomy, loss_of: Callable[[Any], Tensor]
) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``loss_scale`` of every stack that ends in logits.

    A row of the gradient that is ``c (softmax(logits) - one hot)`` tells c. ``observed`` is the sum of c over the tokens: 1 for a
    mean over those that count, their number for a sum. Without a row where the loss is no plain cross-entropy of these logits
    (label smoothing, a z-loss, several losses). Costs a forward and backward. Call it inside ``untouched(model)``.

    Args:
        model: the model.
        batch: one batch.
        anatomy: what ``discover`` found on it.
        loss_of: turns the model's output into a scalar.
    """
    points = {
        stack.index: stack.outlet.logits
        for stack in anatomy.stacks
        if stack.outlet is not None and stack.outlet.logits is not None and "logits" not in stack.outlet.partial
    }
    seen: dict[Any, Tensor] = {}
    hooks = Hooked(model, set(points.values()), lambda point: partial(seen.__setitem__, point))
    try:
        with torch.enable_grad():
            loss = loss_of(call(model, batch))
    finally:
        hooks.remove()
    rows = []
    for stack, point in points.items():
        logits = seen.get(point)
        if logits is None or not logits.requires_grad or not loss.requires_grad:
            continue
        (gradient,) = torch.autograd.grad(loss, [logits], retain_graph=True, allow_unused=True)
        scale = None if gradient is None else _scale(logits.detach(), gradient)
        if scale is not None:
            rows.append(_row(stack, *scale))
    return rows


def _scale(logits: Tensor, gradient: Tensor) -> tuple[float, int] | None:
    """Return the sum of c, and over how many tokens; None where some token's gradient is not that of a cross-entropy."""
    logits, gradient = (t.reshape(-1, t.shape[-1]).double() for t in (logits, gradient))
    counted = gradient.abs().amax(-1) > 0
    n = int(counted.sum())
    if n == 0 or not bool(torch.isfinite(gradient).all()):
        return None
    # Evenly over those that count: each has the same c, or the mean of some stands for all.
    chosen = counted.nonzero().flatten()[:: max(1, n // MOST_ROWS)]
    chances, gradient = logits[chosen].softmax(-1), gradient[chosen]
    wanted = torch.zeros_like(chances)
    # The one that the loss pulls up; where c is negative, the one that it pushes down.
    sign = torch.where(gradient.amax(-1) > -gradient.amin(-1), -1.0, 1.0)
    wanted.scatter_(-1, (gradient * sign[:, None]).argmin(-1, keepdim=True), 1.0)
    direction = chances - wanted
    c = (gradient * direction).sum(-1) / direction.square().sum(-1)
    left = (gradient - c[:, None] * direction).norm(dim=-1)
    if bool((left > FIT * gradient.norm(dim=-1)).any()):
        return None
    return float(c.mean()) * n, n


def _row(stack: int, scale: float, n: int) -> dict[str, Any]:
    return {
        "check": "loss_scale",
        "stack": stack,
        "block": -1,
        "branch": "output",
        "observed": scale,
        # A sum over the tokens is as sound as their mean.
        "expected": float(n) if abs(scale - n) <= TOLERANCE * n else 1.0,
        "tolerance": TOLERANCE,
        "note": f"gradient of the logits over softmax minus one hot, summed over the {n} tokens that count",
    }
