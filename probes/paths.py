"""Split the gradient at every add into what comes back along the skip and what comes back through the branch.

With G the gradient of state k-1 and s the part along the skip (the gradient of sum k times the skip's scale), the branch's part
is b = G - s. Its energy and the product <s, b> are taken from the tensors themselves: as differences of |G|^2 and |s|^2 they
would be lost to rounding where a branch is small beside its skip path.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .anatomy import Anatomy, Point
from .kernels import by_torch
from .padding import Unpadded
from .statistics import Sheet


class Paths:
    """Where each add's gradient leaves for the skip path, and where it arrives from there.

    Attributes:
        n_branches: how many there are.
        leaving: point of the sum -> (index of the branch, scale of the skip operand).
        arriving: point of the state before -> index of the branch.
        write_of: point of a write -> index of the branch that it is the write of.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        """Look up the two ends of every add."""
        self.n_branches = anatomy.n_branches
        self.leaving: dict[Point, tuple[int, float]] = {}
        self.arriving: dict[Point, int] = {}
        self.write_of: dict[Point, int] = {}
        for index, branch in enumerate(anatomy.branches):
            before, source = anatomy.before(index), branch.added
            if source is not None and before is not None:
                self.leaving[source] = (index, branch.scale)
                self.arriving[before] = index
                if branch.write is not None:
                    self.write_of[branch.write] = index


class PathSums:
    """Of one micro-batch and every branch, on the device: energy of the branch's part, and its product with the skip's.

    Attributes:
        pairs: shape (branches, 2); NaN stands for not measured.
    """

    def __init__(self, paths: Paths, device: torch.device) -> None:
        """Allocate them."""
        self._scales = dict(paths.leaving.values())
        with torch.inference_mode(False):
            n = paths.n_branches
            self.pairs = torch.full((n, 2), torch.nan, dtype=by_torch.wide_dtype(device), device=device)
        self._held: dict[int, Tensor] = {}

    def leave(self, index: int, gradient: Tensor) -> None:
        """Keep the gradient of the sum until that of the state before comes."""
        # The engine never adds in place to a gradient that somebody holds.
        self._held[index] = gradient.detach()

    def arrive(self, index: int, gradient: Tensor, meter: Sheet | Unpadded, row: int) -> None:
        """Measure the gradient of the state before into ``row``, and split it by the one that went down its skip path."""
        skip = self._held.pop(index, None)
        if skip is None or skip.shape != gradient.shape:
            meter.measure(row, gradient)
            return
        meter.measure_beside(row, gradient, skip, self._scales[index], self.pairs[index])

    def is_held(self, index: int, gradient: Tensor) -> bool:
        """Return whether ``gradient`` is the very tensor that is held for the skip path of this branch."""
        held = self._held.get(index)
        return held is not None and held.data_ptr() == gradient.data_ptr() and held.shape == gradient.shape

    def release(self) -> None:
        """Let the gradients go that never arrived."""
        self._held.clear()

    def clear(self) -> None:
        """Make every pair unmeasured."""
        self._held.clear()
        self.pairs.fill_(torch.nan)
