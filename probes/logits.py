"""Measure how the logits are normalised: log Z, the logarithm of the softmax's denominator, which nothing holds in place.

A z-loss pulls it to 0 (Chowdhery et al. 2022, arXiv:2204.02311, section 5; Wortsman et al. 2023, arXiv:2309.14322, section 3.2);
without one it may drift until logits lose their precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .anatomy import Anatomy, Point
from .counted import Counted
from .device_rows import DeviceRows
from .kernels import by_c
from .plain import is_plain

MOST_TOKENS = 256  # of a forward, evenly spread: an exponential of every element costs more than all other statistics
AT_ONCE = 2**20  # elements that are exponentiated together, which bounds the memory taken
N_SUMS = 3  # columns of a row: sum of log Z, sum of its squares, largest logit


def log_z_sums(logits: Tensor) -> Tensor:
    """Return the sum over tokens of log Z, of its square, and the largest logit, shape (3,), on the logits' device.

    log Z = log(sum over classes of exp(logit)), in float32, in float64 for float64.

    Args:
        logits: shape (tokens, classes).
    """
    if by_c.has_rows(logits):
        found = torch.empty(N_SUMS, dtype=torch.float64)
        by_c.kernel.log_z(logits.data_ptr(), *logits.shape, logits.stride(0), found.data_ptr())
        return found
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    n = max(1, AT_ONCE // max(1, logits.shape[-1]))
    parts = [torch.logsumexp(part.to(wide), -1) for part in torch.split(logits, n)]
    log_z = torch.cat(parts).to(torch.float32 if logits.device.type == "mps" else torch.float64)
    return torch.stack([log_z.sum(), log_z.square().sum(), logits.max().to(log_z.dtype)])


class LogitTaps:
    """Fed with the logits of a forward by ``see``."""

    def __init__(self, anatomy: Anatomy) -> None:
        """Find the points at which logits are seen."""
        outlets = [(stack.index, stack.outlet) for stack in anatomy.stacks if stack.outlet is not None]
        self._stacks = {outlet.logits: index for index, outlet in outlets if outlet.logits is not None}
        self._rows = DeviceRows(N_SUMS)
        self._seen: list[tuple[dict[str, Any], int, int]] = []
        self._micro_step, self._is_on = 0, False

    @property
    def points(self) -> tuple[Point, ...]:
        """The points at which ``see`` wants the tensor."""
        return tuple(self._stacks)

    def begin(self, micro_step: int) -> None:
        """A forward begins."""
        self._micro_step, self._is_on = micro_step, True

    def end(self, *, failed: bool = False) -> None:
        """The forward has ended; one that failed is forgotten when it is read."""
        self._is_on = False
        for place, _, _ in self._seen if failed else ():
            if place["micro_step"] == self._micro_step:
                place["micro_step"] = -1

    def see(self, point: Point, tensor: Tensor) -> None:
        """Measure the logits at ``point``; nothing is copied to the host and no graph is kept."""
        if not self._is_on or not is_plain(tensor) or not tensor.is_floating_point() or tensor.dim() < 2:
            return
        n_tokens = tensor.numel() // max(1, tensor.shape[-1])
        if not n_tokens:
            return
        with torch.no_grad():
            chosen = tensor.detach().reshape(n_tokens, -1)[:: -(-n_tokens // MOST_TOKENS)]
            self._rows.add(log_z_sums(chosen)[None])
        place = {"micro_step": self._micro_step, "stack": self._stacks[point]}
        self._seen.append((place, len(chosen), n_tokens))

    def counted(self) -> list[Counted]:
        """Return what was measured since the last call: this is the one copy to the host."""
        seen, self._seen = self._seen, []
        counted = []
        for (place, n, n_tokens), numbers in zip(seen, self._rows.take(), strict=True):
            total, squares, largest = numbers[0]
            if place["micro_step"] >= 0:
                counted.append(Counted("logits", place, (total, squares, n, n_tokens), (largest,)))
        return counted

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the logits table since the last call."""
        return [row_of(each) for each in self.counted()]


def row_of(counted: Counted) -> dict[str, Any]:
    """Return one row of the logits table."""
    total, squares, n, n_tokens = counted.sums
    return {
        **counted.place,
        "log_z": total / n,
        "log_z_rms": (squares / n) ** 0.5,
        "logit_max": counted.peaks[0],
        "n_tokens": int(n),
        "token_share": n / n_tokens,
    }
