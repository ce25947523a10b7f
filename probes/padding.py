"""Leave a batch's padding out of the sums of its activations and gradients, by the attention mask that the forward is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .anatomy import Anatomy
from .kernels import CHANNEL, COUNT, N_SUMS, ZEROS
from .kernels.by_torch import wide_dtype
from .plain import is_plain
from .statistics import Sheet

# The field's own keywords: (batch, token), 0 where a token is padding. The second is that of a stack that reads another one.
MASK, READERS_MASK = "attention_mask", "decoder_attention_mask"


def masks_of(anatomy: Anatomy, kwargs: Mapping[str, Any]) -> dict[int, Tensor]:
    """Return, by stack, the masks among a forward's keyword arguments; a stack whose tokens are not masked has none."""
    found = {}
    for stack in anatomy.stacks:
        is_reader = len(anatomy.stacks) > 1 and any(branch.kind == "cross_attention" for branch in stack.branches)
        mask = kwargs.get(READERS_MASK if is_reader else MASK)
        if isinstance(mask, Tensor) and mask.dim() == 2 and is_plain(mask):
            found[stack.index] = mask
    return found


class RealTokens:
    """The tokens of one forward that are no padding; the mask is in the host's memory, where they can be counted."""

    def __init__(self, mask: Tensor) -> None:
        """Find them; ``mask`` is 0 where a token is padding, shape (batch, tokens)."""
        self._batch, self._length = mask.shape
        self._kept: Tensor | None = None
        self._there: dict[torch.device, Tensor] = {}
        self._find(mask.detach().reshape(-1) != 0)

    def _find(self, is_real: Tensor) -> None:
        self._kept = is_real.nonzero().squeeze(1)

    @property
    def are_all(self) -> bool:
        """Whether it is known that there is no padding."""
        return self._kept is not None and len(self._kept) == self._batch * self._length

    def rows(self, tensor: Tensor) -> Tensor | None:
        """Return ``tensor`` with one leading axis for all tokens, detached; None where its axes are not theirs."""
        shape = tensor.shape
        if not is_plain(tensor):
            return None
        if len(shape) > 2 and shape[0] == self._batch and shape[1] == self._length:
            return tensor.detach().flatten(0, 1)
        return tensor.detach() if len(shape) > 1 and shape[0] == self._batch * self._length else None

    def only(self, rows: Tensor) -> Tensor:
        """Return the real tokens among ``rows``."""
        assert self._kept is not None
        device = rows.device
        if device not in self._there:
            self._there[device] = self._kept.to(device, non_blocking=True)
        return rows.index_select(0, self._there[device])

    def correct(self, row: Tensor, n_elements: int) -> None:
        """Take what ``only`` had to leave of the padding out of its sums; ``n_elements`` are those of a token."""


class RealTokensThere(RealTokens):
    """The same for a mask on another device, where the host must not wait for their number.

    Padding is moved behind the real tokens, so that few blocks of a kernel hold both, and zeroed: it then adds to the number
    of elements and of zeros alone.
    """

    def _find(self, is_real: Tensor) -> None:
        is_padding, self._order = (~is_real).to(torch.int32).sort(stable=True)
        self._is_real = is_padding == 0
        wide, n = wide_dtype(is_real.device), self._batch * self._length
        n_padding = is_padding.sum().to(wide)
        self._padding = torch.zeros(N_SUMS, dtype=wide, device=is_real.device)
        self._padding[COUNT] = self._padding[ZEROS] = n_padding
        self._factors = torch.ones_like(self._padding)
        self._factors[CHANNEL] = n / (n - n_padding).clamp_min(1)

    def rows(self, tensor: Tensor) -> Tensor | None:
        """Return ``tensor`` with one leading axis for all tokens; None also where the host would wait for the mask."""
        return None if tensor.is_cpu and not self._order.is_cpu else super().rows(tensor)

    def only(self, rows: Tensor) -> Tensor:
        """Return the real tokens among ``rows``, and after them zeros."""
        moved = rows.index_select(0, self._order.to(rows.device, non_blocking=True))
        is_real = self._is_real.to(rows.device, non_blocking=True).view(-1, *[1] * (rows.dim() - 1))
        return torch.where(is_real, moved, torch.zeros((), dtype=rows.dtype, device=rows.device))

    def correct(self, row: Tensor, n_elements: int) -> None:
        """Take the padding out of the number of elements and of zeros, and out of what the channels' sums were divided by."""
        factors, padding = (
            each.to(row.device, row.dtype, non_blocking=True) for each in (self._factors, self._padding)
        )
        row.mul_(factors).sub_(padding, alpha=n_elements)


def real_tokens(mask: Tensor) -> RealTokens:
    """Return the tokens that ``mask`` keeps, shape (batch, tokens)."""
    return RealTokens(mask) if mask.is_cpu else RealTokensThere(mask)


class Unpadded:
    """A sheet that is filled with the sums over real tokens; a tensor whose leading axes are not theirs counts whole."""

    def __init__(self, sheet: Sheet, tokens: Sequence[RealTokens | None]) -> None:
        """Fill ``sheet``; ``tokens`` are those of each of its rows, None where all are real."""
        self._sheet, self._tokens = sheet, tokens

    def measure(self, row: int, tensor: Tensor, flags: int = 0) -> None:
        """Fill ``row`` with the sums over the real tokens of ``tensor``."""
        tokens = self._tokens[row]
        rows = None if tokens is None else tokens.rows(tensor)
        if tokens is None or rows is None:
            self._sheet.measure(row, tensor, flags)
            return
        self._sheet.measure(row, tokens.only(rows), flags)
        tokens.correct(self._sheet.values[row], rows[0].numel())

    def measure_beside(self, row: int, tensor: Tensor, partner: Tensor, factor: float, pair: Tensor) -> None:
        """Fill ``row`` and ``pair`` likewise; ``partner`` has the shape of ``tensor``."""
        tokens = self._tokens[row]
        rows = None if tokens is None else tokens.rows(tensor)
        beside = None if tokens is None else tokens.rows(partner)
        if tokens is None or rows is None or beside is None:
            self._sheet.measure_beside(row, tensor, partner, factor, pair)
            return
        self._sheet.measure_beside(row, tokens.only(rows), tokens.only(beside), factor, pair)
        tokens.correct(self._sheet.values[row], rows[0].numel())

    def only(self, row: int, tensor: Tensor) -> Tensor:
        """Return the real tokens of ``tensor``, which is measured at ``row``, and perhaps zeros."""
        tokens = self._tokens[row]
        rows = None if tokens is None else tokens.rows(tensor)
        return tensor if tokens is None or rows is None else tokens.only(rows)


def meter(sheet: Sheet, stacks: Sequence[int], masks: Mapping[int, Tensor]) -> Sheet | Unpadded:
    """Return what fills ``sheet``: itself where no token is padding.

    Args:
        sheet: rows of points forward, then of the same backward.
        stacks: of each point, the stack that it belongs to.
        masks: by stack, as ``masks_of`` returns them.
    """
    known: dict[int, RealTokens] = {}
    for mask in masks.values():
        if id(mask) not in known:
            known[id(mask)] = real_tokens(mask)
    padded = {stack: known[id(mask)] for stack, mask in masks.items() if not known[id(mask)].are_all}
    return Unpadded(sheet, 2 * [padded.get(stack) for stack in stacks]) if padded else sheet
