"""Integrate gradients over gates with captum, with as many points as completeness asks for.

Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks": along the straight path from all gates closed to all
open, the integral of each gate's gradient; the integrals add up to the difference of the ends. Gauss-Legendre points: where the
function is smooth the error falls exponentially with their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .cost import Meter

POINTS = (16, 32, 64)  # tried one after the other until the error is small enough
ENOUGH = 0.01  # of the total: above, more points are taken
LIMIT = 0.05  # of the total: above, no part may be named before another
SECONDS = 30.0  # what more points may cost


@dataclass(frozen=True)
class Integral:
    """What the gates' gradients integrate to.

    Attributes:
        values: shape (gates); float64.
        closed: the function with all gates closed.
        opened: the function with all gates open.
        n_points: of the integral.
    """

    values: Tensor
    closed: float
    opened: float
    n_points: int

    @property
    def total(self) -> float:
        """What opening all gates changes."""
        return self.opened - self.closed

    @property
    def error(self) -> float:
        """How far the values are from adding up to the total, over the total; infinite where nothing changes."""
        off = abs(float(self.values.sum()) - self.total)
        return off / abs(self.total) if self.total else math.inf

    @property
    def is_sound(self) -> bool:
        """Whether parts may be ranked."""
        return self.error <= LIMIT


def n_passes(n_points: int | None) -> int:
    """Return how many passes an integral takes at first: its points, and its two ends."""
    return (n_points or POINTS[0]) + 2


def integral(
    function: Callable[[Tensor], Tensor],
    n_gates: int,
    meter: Meter,
    *,
    n_points: int | None = None,
    device: torch.device | str = "cpu",
    seconds: float = SECONDS,
) -> Integral:
    """Return the integrated gradients of ``function``, a scalar of the gates, between all closed and all open.

    Args:
        function: takes gates of shape (gates).
        n_gates: their number.
        meter: is told of every pass; the first ``n_passes`` of them it expects already.
        n_points: of the integral; None to double them from 16 to 64 while the error is above 1 % and the time lasts.
        device: of the gates.
        seconds: what the points together may take.
    """
    from captum.attr import IntegratedGradients

    def rows(gates: Tensor) -> Tensor:
        # captum hands them over as a batch of one.
        return meter.run(lambda: function(gates[0])).reshape(1)

    ones = torch.ones(1, n_gates, device=device)
    with torch.no_grad():
        closed, opened = (float(rows(end)) for end in (torch.zeros_like(ones), ones))
    captum = IntegratedGradients(rows)
    for points in POINTS if n_points is None else (n_points,):
        if points > POINTS[0] and n_points is None:
            if meter.seconds + points * meter.slowest > seconds:
                break
            meter.expect(points)
        with torch.enable_grad():
            values = captum.attribute(ones, torch.zeros_like(ones), n_steps=points, internal_batch_size=1)
        found = Integral(values[0].detach().double().cpu(), closed, opened, points)
        if found.error <= ENOUGH or not math.isfinite(found.total):
            break
    return found
