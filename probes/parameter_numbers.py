"""Hold what one optimizer step gave of every parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

N_PARTS = 10  # columns of a row of sums
# The last three: cosine of a bias with itself at the sampled step before; or, where the row holds a part of the bias, their
# product and the energies of both.
GRADIENT, PEAK, WEIGHT, UPDATE, RATIO, ROOT, BELOW, TURN, NOW, BEFORE = range(N_PARTS)
# States of a gradient in rising order: where ranks hold parts of a parameter, the highest is the whole's.
STATES: tuple[str | None, ...] = (None, "frozen", "none", "some")


@dataclass(frozen=True)
class ParameterNumbers:
    """What one step gave.

    Attributes:
        sums: shape (parameters, 10), on the device, NaN where not measured; used again by the next step.
        has_gradient: who has one.
        rows: parameter -> its row.
        states: of each gradient: some, none, frozen where none is required, None where it is not known.
        n_unknown: how many were cleared before they could be read.
    """

    sums: Tensor
    has_gradient: tuple[bool, ...]
    rows: Mapping[Tensor, int]
    states: tuple[str | None, ...]
    n_unknown: int = 0

    @property
    def are_gone(self) -> bool:
        """Whether gradients came and none could be read."""
        return self.n_unknown > 0 and not any(self.has_gradient)

    @property
    def gradient_norm(self) -> Tensor | None:
        """Norm of the whole gradient, on the device; None where no parameter has one, or a part is not known."""
        return None if self.n_unknown else self.norm_of(self.rows)

    def norm_of(self, parameters: Iterable[Tensor]) -> Tensor | None:
        """Return the norm of the gradient of some parameters, on the device; None where none of them has one."""
        rows = [row for p in parameters if (row := self.rows.get(p)) is not None and self.has_gradient[row]]
        if not rows:
            return None
        column = self.sums[:, GRADIENT]
        return (column if len(rows) == len(column) else column[rows]).sum().sqrt()
