"""Measure how alike token representations are at each state, and how far each block turns them.

Axes: (batch, tokens, width). Alike tokens are rank collapse (Dong et al. 2021, arXiv:2103.03404); a block that turns
them by next to nothing is idle (Gromov et al. 2024, arXiv:2403.17887, equation 4: the angular distance).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .anatomy import Anatomy, Point
from .counted import Counted
from .device_rows import DeviceRows
from .kernels import by_c
from .plain import is_plain
from .scratch import Scratch
from .versions import version_of

# Columns of a row of sums: over sequences of two tokens or more, the sum of their mean cosines, and their number; over
# tokens, the sum of angular distances to the block before, and their number.
N_SUMS = 4


def inverse_sizes(state: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return 1 / |token|, shape (batch, tokens), and 0 for a token that is zero or does not count.

    Args:
        state: shape (batch, tokens, width).
        mask: true where a token counts, shape (batch, tokens); None counts all.
    """
    dtype = torch.float64 if state.dtype == torch.float64 else torch.float32
    size = torch.linalg.vector_norm(state.detach(), dim=-1, dtype=dtype)
    # A size that is not finite stays NaN.
    inverse = torch.where(size > 0, 1.0 / size, 0.0 * size)
    return inverse if mask is None else torch.where(mask, inverse, 0.0)


def cosine_sums(state: Tensor, inverse: Tensor) -> Tensor:
    """Return the sum over sequences of the mean cosine between two tokens, and the number of sequences, shape (2,).

    With unit vectors u of a sequence's n tokens: mean over pairs = (|sum u|^2 - n) / (n (n - 1)). A token that is zero
    has no direction and does not count.

    Args:
        state: shape (batch, tokens, width).
        inverse: its ``inverse_sizes``.
    """
    total = (inverse.unsqueeze(1) @ state.detach().to(inverse.dtype)).squeeze(1)
    n = (inverse != 0).sum(-1, dtype=inverse.dtype)
    mean = ((total * total).sum(-1) - n) / (n * (n - 1))
    known = torch.stack([torch.where(n >= 2, mean, 0.0), (n >= 2).to(mean.dtype)])
    return known.sum(-1, dtype=torch.float32 if state.device.type == "mps" else torch.float64)


def angle_sums(
    state: Tensor, inverse: Tensor, before: Tensor, inverse_before: Tensor, scratch: Scratch | None = None
) -> Tensor:
    """Return the sum over tokens of the angle to the state before, over pi, and the number of tokens, shape (2,).

    The angle is 2 asin(|u - v| / 2) with unit vectors u and v: unlike arccos it is exact where a block does little.

    Args:
        state: shape (batch, tokens, width).
        inverse: its ``inverse_sizes``.
        before: the same tokens one block earlier.
        inverse_before: its ``inverse_sizes``.
        scratch: where to work; tensors 0 and 1 are used.
    """
    scratch = scratch or Scratch()
    unit = scratch.copy(0, state).mul_(inverse.unsqueeze(-1))
    other = scratch.empty(1, before.shape, unit).copy_(before.detach()).mul_(inverse_before.unsqueeze(-1))
    half = torch.linalg.vector_norm(unit.sub_(other), dim=-1).div_(2).clamp_max_(1.0)
    is_known = (inverse != 0) & (inverse_before != 0)
    known = torch.stack([torch.where(is_known, half.asin_().mul_(2 / math.pi), 0.0), is_known.to(half.dtype)])
    dtype = torch.float32 if state.device.type == "mps" else torch.float64
    return known.sum((1, 2), dtype=dtype)


def token_sums(
    state: Tensor,
    mask: Tensor | None = None,
    before: tuple[Tensor, Tensor] | None = None,
    scratch: Scratch | None = None,
) -> tuple[Tensor, Tensor]:
    """Return ``cosine_sums`` and ``angle_sums`` in one row, shape (4,), and the inverse sizes, shape (batch, tokens).

    Dense float32 on the CPU is read once by the C kernel, anything else by torch's operations. The angle's two columns
    are NaN without a state before.

    Args:
        state: shape (batch, tokens, width).
        mask: true where a token counts, shape (batch, tokens); None counts all.
        before: the same tokens one block earlier, and their inverse sizes.
        scratch: where torch's operations work.
    """
    others = before or ()
    if by_c.is_float32(state, *others[:1]) and all(inverse.dtype == torch.float64 for inverse in others[1:]):
        return _read_once(state, mask, before)
    inverse = inverse_sizes(state, mask)
    cosines = cosine_sums(state, inverse)
    if before is None:
        angles = torch.full_like(cosines, math.nan)
    else:
        angles = angle_sums(state, inverse, before[0], before[1].to(inverse.dtype), scratch)
    return torch.cat([cosines, angles]), inverse


def _read_once(state: Tensor, mask: Tensor | None, before: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    found, inverse = torch.empty(N_SUMS, dtype=torch.float64), torch.empty(state.shape[:2], dtype=torch.float64)
    kept = None if mask is None else mask.to(state.device).contiguous()
    there = (0, 0) if before is None else (before[0].data_ptr(), before[1].data_ptr())
    mask_address = 0 if kept is None else kept.data_ptr()
    by_c.kernel.tokens(state.data_ptr(), *state.shape, mask_address, inverse.data_ptr(), *there, found.data_ptr())
    if before is None:
        found[2:] = math.nan
    return found, inverse


@dataclass(frozen=True)
class _State:
    """One state of the anatomy: its columns, and whether a block ends in it."""

    stack: int
    block: int
    branch: str
    depth: int
    is_end: bool


@dataclass(frozen=True)
class _Before:
    """The state of the block before, and its version when it was seen."""

    block: int
    state: Tensor
    inverse: Tensor
    version: int


class TokenTaps:
    """Fed with the states of a forward by ``see``; keeps the last block's state until the next block's has come."""

    def __init__(self, anatomy: Anatomy) -> None:
        """Find the state points."""
        self._states: dict[Point, _State] = {}
        for stack in anatomy.stacks:
            if stack.start is not None:
                self._states[stack.start] = _State(stack.index, -1, "embedding", 0, is_end=True)
            following = [branch.block for branch in stack.branches[1:]] + [-1]
            for branch, block in zip(stack.branches, following, strict=True):
                if branch.state is not None:
                    self._states.setdefault(
                        branch.state,
                        _State(stack.index, branch.block, branch.kind, branch.depth, is_end=block != branch.block),
                    )
        self._rows = DeviceRows(N_SUMS)
        self._seen: list[tuple[int, _State]] = []
        self._before: dict[int, _Before] = {}
        self._scratch = Scratch()
        self._is_overwritten = False
        self._mask: Tensor | None = None
        self._micro_step = 0

    @property
    def points(self) -> tuple[Point, ...]:
        """The points at which ``see`` wants the tensor."""
        return tuple(self._states)

    def begin(self, micro_step: int, mask: Tensor | None = None) -> None:
        """A forward begins.

        Args:
            micro_step: which forward of the step.
            mask: true or 1 where a token is no padding, shape (batch, tokens); None where all count. It is used for
                states of that shape only.
        """
        self._micro_step, self._mask = micro_step, None if mask is None else mask.detach().to(torch.bool)
        self._before.clear()

    def end(self, *, failed: bool = False) -> None:
        """The forward has ended: no state is kept any longer; one that failed is forgotten when it is read."""
        self._before.clear()
        self._mask = None
        if failed:
            self._seen = [(-1 if micro_step == self._micro_step else micro_step, s) for micro_step, s in self._seen]

    def see(self, point: Point, tensor: Tensor) -> None:
        """Measure the state at ``point``; nothing is copied to the host and no graph is kept."""
        state = self._states.get(point)
        if state is None or not is_plain(tensor) or not tensor.is_floating_point() or tensor.dim() < 2:
            return
        with torch.no_grad():
            values = _sequences(tensor.detach())
            mask = self._mask if self._mask is not None and self._mask.shape == values.shape[:2] else None
            before = self._taken(state, values) if state.is_end else None
            found, inverse = token_sums(values, mask, before, self._scratch)
            self._rows.add(found[None])
            if state.is_end:
                kept = values.clone() if self._is_overwritten else values
                self._before[state.stack] = _Before(state.block, kept, inverse, version_of(kept))
        self._seen.append((self._micro_step, state))

    def _taken(self, state: _State, values: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the state before and its inverse sizes; None where it is not known, or no longer as it was."""
        before = self._before.pop(state.stack, None)
        if before is None or before.block != state.block - 1 or before.state.shape != values.shape:
            return None
        if version_of(before.state) != before.version:
            # The stream is added to in place: from the next block on a copy is kept.
            self._is_overwritten = True
            return None
        return before.state.to(values.device), before.inverse.to(values.device)

    def counted(self) -> list[Counted]:
        """Return what was measured since the last call: this is the one copy to the host."""
        found, seen, self._seen = self._rows.take(), self._seen, []
        counted = []
        for (micro_step, state), numbers in zip(seen, found, strict=True):
            if micro_step >= 0:
                place = {name: getattr(state, name) for name in ("stack", "block", "branch", "depth")}
                counted.append(Counted("tokens", {"micro_step": micro_step, **place}, tuple(numbers[0].tolist())))
        return counted

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the tokens table since the last call."""
        return [row_of(each) for each in self.counted()]


def row_of(counted: Counted) -> dict[str, Any]:
    """Return one row of the tokens table."""
    cosines, n_sequences, angles, n_tokens = counted.sums
    return {**counted.place, "cosine": _mean(cosines, n_sequences), "angular_distance": _mean(angles, n_tokens)}


def _sequences(state: Tensor) -> Tensor:
    """Return (batch, tokens, width): one sequence without a batch axis, positions in rows and columns flattened."""
    return state.unsqueeze(0) if state.dim() == 2 else state.flatten(1, -2)


def _mean(total: float, n: float) -> float | None:
    return total / n if n > 0 and math.isfinite(total) else None
