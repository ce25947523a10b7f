"""Split the gradient at every add into what comes back along the skip and what comes back through the branch.

With G the gradient of state k-1 and s the part along the skip (the gradient of sum k times the skip's scale), the branch's part
is G - s. Their sizes follow from |G|^2 and |s|^2, which are measured anyway, and from the one product <G, s>.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .anatomy import Anatomy, Point
from .kernels import by_c, by_torch


class Paths:
    """Where each add's gradient leaves for the skip path, and where it arrives from there.

    Attributes:
        leaving: point of the sum -> (index of the branch, scale of the skip operand).
        arriving: point of the state before -> index of the branch.
        write_of: point of a write -> index of the branch that it is the write of.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        """Look up the two ends of every add."""
        self.leaving: dict[Point, tuple[int, float]] = {}
        self.arriving: dict[Point, int] = {}
        self.write_of: dict[Point, int] = {}
        for index, branch in enumerate(anatomy.branches):
            before = anatomy.stacks[branch.stack].start if branch.depth == 1 else anatomy.branches[index - 1].state
            source = branch.sum or branch.state
            if source is not None and before is not None:
                self.leaving[source] = (index, branch.scale)
                self.arriving[before] = index
                if branch.write is not None:
                    self.write_of[branch.write] = index


class PathSums:
    """The products <gradient of the state before, gradient of the sum> of one micro-batch, one a branch, on the device."""

    def __init__(self, n_branches: int, device: torch.device) -> None:
        """Allocate them; NaN stands for not measured."""
        with torch.inference_mode(False):
            self.products = torch.full(
                (max(1, n_branches),), torch.nan, dtype=by_torch.wide_dtype(device), device=device
            )
        self._address = self.products.data_ptr()
        self._held: dict[int, Tensor] = {}

    def leave(self, index: int, gradient: Tensor) -> None:
        """Keep the gradient of the sum until that of the state before comes."""
        # The engine never adds in place to a gradient that somebody holds.
        self._held[index] = gradient.detach()

    def arrive(self, index: int, gradient: Tensor) -> None:
        """Multiply the gradient of the state before with the one that went down its skip path."""
        skip = self._held.pop(index, None)
        if skip is None or skip.shape != gradient.shape:
            return
        if by_c.is_float32(skip, gradient):
            address = self._address + 8 * index
            by_c.kernel.dot(gradient.data_ptr(), skip.data_ptr(), gradient.numel(), address)
        else:
            wide = by_torch.wide_dtype(gradient.device)
            product = torch.dot(gradient.detach().reshape(-1).to(wide), skip.reshape(-1).to(gradient.device, wide))
            self.products[index] = product.to(self.products.device)

    def is_held(self, index: int, gradient: Tensor) -> bool:
        """Return whether ``gradient`` is the very tensor that is held for the skip path of this branch."""
        held = self._held.get(index)
        return held is not None and held.data_ptr() == gradient.data_ptr() and held.shape == gradient.shape

    def release(self) -> None:
        """Let the gradients go that never arrived."""
        self._held.clear()

    def clear(self) -> None:
        """Make every product unmeasured."""
        self._held.clear()
        self.products.fill_(torch.nan)
