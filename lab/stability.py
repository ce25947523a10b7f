"""Tell up to which learning rate training is stable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

# A learning rate is stable where no seed loses this share of what the best one has learned.
STABLE_KEEPS = 0.5
LEARNS = 0.05  # share of the untrained loss by which the best must lie below it, or nothing was learned at any rate


def largest_stable(losses: Mapping[float, Sequence[float]], untrained: float) -> float | None:
    """Return the largest learning rate up to which all are stable, from the best one on: those below it are slow.

    Args:
        losses: learning rate -> last loss, one a seed; infinite where a run diverged.
        untrained: the loss before training, or that of chance.

    Returns:
        None where none learns anything.
    """
    means = {rate: math.fsum(values) / len(values) for rate, values in sorted(losses.items())}
    best = min(means, key=lambda rate: means[rate])
    if not means[best] <= (1 - LEARNS) * untrained:
        return None
    limit = means[best] + (1 - STABLE_KEEPS) * (untrained - means[best])
    stable = None
    for rate in (rate for rate in means if rate >= best):
        if max(losses[rate]) > limit:
            break
        stable = float(rate)
    return stable
