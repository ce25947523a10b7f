"""Sum up how alike tokens are within a state, and how far they turned since the block before: in torch, and in C.

Axes: (batch, tokens, width). Alike tokens are rank collapse (Dong et al. 2021, arXiv:2103.03404); a block that turns
them by next to nothing is idle (Gromov et al. 2024, arXiv:2403.17887, equation 4: the angular distance).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .kernels import by_c
from .scratch import Scratch

# Tokens of a forward that are looked at, and the sequences that they are taken from: so many tell a mean to a sixteenth of
# the spread of one, whatever the size of the batch.
MOST_TOKENS, MOST_SEQUENCES = 256, 16
# Columns of a row of sums: over sequences of two tokens or more, the sum of their mean cosines, and their number; over
# tokens, the sum of angular distances to the block before, and their number.
N_SUMS = 4


class Chosen(NamedTuple):
    """Which sequences and which of their tokens are looked at, and how many of each."""

    sequences: slice
    tokens: slice
    n_sequences: int
    n_tokens: int


@lru_cache(maxsize=64)
def chosen_tokens(n_sequences: int, n_tokens: int) -> Chosen:
    """Return what is looked at of so many sequences: evenly spaced ones and tokens, the last token included."""
    apart = -(-n_sequences // MOST_SEQUENCES) or 1
    sequences = slice(0, n_sequences, apart)
    n_chosen = len(range(0, n_sequences, apart))
    following = -(-n_tokens // (MOST_TOKENS // (n_chosen or 1))) or 1
    tokens = slice((n_tokens - 1) % following if n_tokens else 0, n_tokens, following)
    return Chosen(sequences, tokens, n_chosen, len(range(*tokens.indices(n_tokens))))


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


def sums_by_torch(
    state: Tensor,
    to: Tensor,
    mask: Tensor | None = None,
    before: tuple[Tensor, Tensor] | None = None,
    scratch: Scratch | None = None,
) -> Tensor:
    """Write ``cosine_sums`` and ``angle_sums`` to a row, shape (1, 4), and return the inverse sizes, shape (batch, tokens).

    The angle's two columns are NaN without a state before.

    Args:
        state: shape (batch, tokens, width).
        to: the row, on the device of ``state``.
        mask: true where a token counts, shape (batch, tokens); None counts all.
        before: the same tokens one block earlier, and their inverse sizes.
        scratch: where to work.
    """
    inverse = inverse_sizes(state, mask)
    to[0, :2] = cosine_sums(state, inverse)
    angles = None if before is None else angle_sums(state, inverse, before[0], before[1].to(inverse.dtype), scratch)
    to[0, 2:] = math.nan if angles is None else angles
    return inverse


def sums_by_kernel(
    state: Tensor, chosen: Chosen, to: int, mask: Tensor | None = None, before: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Do the same in C, for states that ``by_c.has_rows``, reading the chosen tokens once where they lie.

    Args:
        state: shape (batch, tokens, width).
        chosen: of all its tokens.
        to: address of the row.
        mask: true where a chosen token counts, shape (chosen sequences, chosen tokens); None counts all.
        before: the whole state one block earlier, and the inverse sizes of its chosen tokens, float64.
    """
    data, apart, following = _places(state, chosen)
    inverse = torch.empty((chosen.n_sequences, chosen.n_tokens), dtype=torch.float64)
    there = (0, 0, 0, 0)
    if before is not None:
        earlier, apart_before, following_before = _places(before[0], chosen)
        there = (earlier, before[1].data_ptr(), apart_before, following_before)
    kept = None if mask is None else mask.to(state.device).contiguous()
    shape = (chosen.n_sequences, chosen.n_tokens, state.shape[2])
    mask_address = 0 if kept is None else kept.data_ptr()
    by_c.kernel.tokens(data, *shape, apart, following, mask_address, inverse.data_ptr(), *there, to)
    return inverse


def _places(state: Tensor, chosen: Chosen) -> tuple[int, int, int]:
    """Return the address of the first chosen token, and how far apart sequences and tokens are."""
    apart, following, _ = state.stride()
    start = state.data_ptr() + state.element_size() * following * chosen.tokens.start
    return start, apart * chosen.sequences.step, following * chosen.tokens.step
