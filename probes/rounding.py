"""Measure what is rounded away when a branch's write is added to a stream kept in 16 bits.

bfloat16 keeps 8 bits: a write 256 times smaller than the state is lost whole, with no value overflowing. In a float32 stream the
loss is below 1e-14 of the state's energy, and is not measured.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from .anatomy import Anatomy
from .kernels import by_torch
from .padding import Unpadded
from .sites import Layout
from .versions import version_of

SHORT = (torch.bfloat16, torch.float16)


class Rounding:
    """Per add, energy of the rounding error and of the write, on the device.

    Attributes:
        energies: shape (branches, 2); NaN stands for not measured.
        unpadded: tells the real tokens; None where all are.
    """

    def __init__(self, anatomy: Anatomy, layout: Layout, device: torch.device) -> None:
        """Look up which points are operands and which are sums."""
        rows = {point: row for row, point in enumerate(layout.points)}
        self._operands: set[int] = set()
        self._adds: dict[int, list[tuple[int, int, float, tuple[int, ...]]]] = defaultdict(list)
        for index, branch in enumerate(anatomy.branches):
            before = anatomy.stacks[branch.stack].start if branch.depth == 1 else anatomy.branches[index - 1].state
            terms = branch.terms or ((branch.write,) if branch.write is not None else ())
            total = branch.sum or branch.state
            if before is None or total is None or not terms or not {before, total, *terms} <= set(rows):
                continue
            written = tuple(rows[term] for term in terms)
            self._operands |= {rows[before], *written}
            self._adds[rows[total]].append((index, rows[before], branch.scale, written))
        with torch.inference_mode(False):
            n = anatomy.n_branches
            self.energies = torch.full((n, 2), torch.nan, dtype=by_torch.wide_dtype(device), device=device)
        self.unpadded: Unpadded | None = None
        self._seen: dict[int, tuple[Tensor, int]] = {}

    def see(self, row: int, tensor: Tensor) -> None:
        """Take note of an operand of 16 bits, or measure the add whose sum ``tensor`` is."""
        for index, skip, scale, terms in self._adds.get(row, ()):
            self._measure(index, row, tensor, skip, scale, terms)
        if row in self._operands:
            self._seen[row] = (tensor.detach(), version_of(tensor))

    def release(self) -> None:
        """Let the operands go."""
        self._seen.clear()

    def clear(self) -> None:
        """Make every add unmeasured."""
        self._seen.clear()
        self.energies.fill_(torch.nan)

    def _measure(
        self, index: int, row: int, total: Tensor, skip_row: int, scale: float, terms: tuple[int, ...]
    ) -> None:
        skip = self._whole(skip_row)
        written = [self._whole(row) for row in terms]
        self._seen.pop(skip_row, None)
        if (
            skip is None
            or any(term is None or term.shape != total.shape for term in written)
            or skip.shape != total.shape
        ):
            return
        write = torch.stack([term.float() for term in written if term is not None]).sum(0)
        lost = total.detach().float() - torch.add(write, skip.float(), alpha=scale)
        if self.unpadded is not None:
            lost, write = self.unpadded.only(row, lost), self.unpadded.only(row, write)
        wide = self.energies.dtype
        self.energies[index] = torch.stack([lost.square().sum(dtype=wide), write.square().sum(dtype=wide)])

    def _whole(self, row: int) -> Tensor | None:
        """Return an operand as it was when it was seen; None once something was written into it."""
        found = self._seen.get(row)
        return found[0] if found is not None and found[1] == version_of(found[0]) else None
