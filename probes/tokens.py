"""Measure how alike token representations are at each state, and how far each block turns them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .anatomy import Anatomy, Point
from .counted import Counted
from .device_rows import DeviceRows
from .kernels import by_c, by_torch
from .plain import is_plain
from .scratch import Scratch
from .token_sums import N_SUMS, Chosen, chosen_tokens, sums_by_kernel, sums_by_torch
from .versions import version_of


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
        self._masks: dict[int, Tensor] = {}
        self._micro_step = 0

    @property
    def points(self) -> tuple[Point, ...]:
        """The points at which ``see`` wants the tensor."""
        return tuple(self._states)

    def begin(self, micro_step: int, masks: Mapping[int, Tensor] | None = None) -> None:
        """A forward begins.

        Args:
            micro_step: which forward of the step.
            masks: by stack, true or 1 where a token is no padding, shape (batch, tokens), used for states of that shape
                only; all tokens of other stacks count.
        """
        self._micro_step = micro_step
        self._masks = {stack: mask.detach().to(torch.bool) for stack, mask in (masks or {}).items()}
        self._before.clear()

    def end(self, *, failed: bool = False) -> None:
        """The forward has ended: no state is kept any longer; one that failed is forgotten when it is read."""
        self._before.clear()
        self._masks = {}
        if failed:
            self._seen = [(-1 if micro_step == self._micro_step else micro_step, s) for micro_step, s in self._seen]

    def see(self, point: Point, tensor: Tensor) -> None:
        """Measure the state at ``point``; nothing is copied to the host."""
        state = self._states.get(point)
        if state is None or tensor.dim() < 2 or not tensor.is_floating_point() or not is_plain(tensor):
            return
        values, mask = _sequences(tensor), self._masks.get(state.stack)
        shape = values.shape
        chosen = chosen_tokens(shape[0], shape[1])
        mask = None if mask is None or mask.shape != shape[:2] else mask[chosen.sequences, chosen.tokens]
        before = self._taken(state, values) if state.is_end else None
        if by_c.has_rows(values) and (before is None or by_c.has_rows(before[0])):
            inverse = sums_by_kernel(values, chosen, self._rows.address(1), mask, before)
            self._seen.append((self._micro_step, state))
        else:
            inverse = self._by_torch(values, chosen, mask, before)
            self._seen.append((self._micro_step, state))
        if state.is_end:
            # Let go when the forward ends, before the graph that hangs on it would be freed.
            kept = values.detach().clone() if self._is_overwritten else values
            self._before[state.stack] = _Before(state.block, kept, inverse, version_of(kept))

    def _by_torch(
        self, values: Tensor, chosen: Chosen, mask: Tensor | None, before: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        some = (chosen.sequences, chosen.tokens)
        with torch.no_grad():
            row = torch.empty(1, N_SUMS, dtype=by_torch.wide_dtype(values.device), device=values.device)
            earlier = None if before is None else (before[0].detach()[some], before[1])
            inverse = sums_by_torch(values.detach()[some], row, mask, earlier, self._scratch)
            self._rows.add(row)
        return inverse

    def _taken(self, state: _State, values: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the state before and its inverse sizes; None where it is not known, or no longer as it was."""
        before = self._before.pop(state.stack, None)
        if before is None or before.block != state.block - 1 or before.state.shape != values.shape:
            return None
        if version_of(before.state) != before.version:
            # The stream is added to in place: from the next block on a copy is kept.
            self._is_overwritten = True
            return None
        if before.state.device != values.device:
            return before.state.to(values.device), before.inverse.to(values.device)
        return before.state, before.inverse

    def counted(self) -> list[Counted]:
        """Return what was measured since the last call: this is the one copy to the host."""
        found, seen, self._seen = self._rows.take(), self._seen, []
        counted = []
        for (micro_step, state), numbers in zip(seen, found, strict=True):
            if micro_step >= 0:
                place = {name: getattr(state, name) for name in ("stack", "block", "branch", "depth")}
                counted.append(Counted("tokens", {"micro_step": micro_step, **place}, tuple(numbers[0])))
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
    if state.dim() == 3:
        return state
    return state.detach().unsqueeze(0) if state.dim() == 2 else state.detach().flatten(1, -2)


def _mean(total: float, n: float) -> float | None:
    return total / n if n > 0 and math.isfinite(total) else None
