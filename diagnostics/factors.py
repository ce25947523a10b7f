"""Tell the factor that the blocks of a class share exactly, and where none may be claimed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rheoscope.probes.anatomy import Branch

from .thresholds import FEWEST_LOGIT_SCALES, LEAST_SIBLINGS, SCALE_ALIKE, SCALE_APART


@dataclass(frozen=True)
class Shared:
    """A factor that at least three quarters of the blocks have: ``value``, in ``n_alike`` of ``n`` blocks."""

    value: float
    n_alike: int
    n: int

    def is_apart(self, value: float) -> bool:
        """Return whether a block has another factor."""
        return abs(value - self.value) > SCALE_APART * abs(self.value)


def shared(values: Sequence[float]) -> Shared | None:
    """Return the factor that the blocks share; None where each has its own (learned, or a schedule), or they are too few."""
    if len(values) <= LEAST_SIBLINGS:
        return None
    middle = median(values)
    n_alike = sum(abs(value - middle) <= SCALE_ALIKE * abs(middle) for value in values)
    return Shared(middle, n_alike, len(values)) if n_alike * 4 >= len(values) * 3 else None


def shared_logit_factor(check: str, branches: Sequence[Branch], values: Sequence[float]) -> Shared | None:
    """Return the factor of the attention logits that the branches of a class share, by one of its two measures.

    None under a soft cap, which bends the logits, so that their slope depends on how large they are; for ``logit_size`` where
    queries and keys are not normed, so that their size is no constant; and in few blocks, of which three may agree by chance.
    """
    seen = [branch.attention for branch in branches]
    is_bent = any(attention is not None and attention.soft_cap for attention in seen)
    is_normed = all(attention is not None and attention.qk_norm.endswith("norm") for attention in seen)
    if not seen or is_bent or (check == "logit_size" and not is_normed) or len(values) <= FEWEST_LOGIT_SCALES:
        return None
    return shared(values)
