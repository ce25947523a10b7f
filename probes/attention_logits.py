"""Compute the logits of one attention call again, from what the call was given, for a subset of its queries.

Axes: (batch, heads, queries, keys). The logits are those that enter the softmax: scaled, soft-capped, with additive
masks and position biases, in float32 or wider.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .attention_statistics import HIDDEN, visible_by_value
from .scratch import Scratch

# Of a long sequence every fourth query is measured, at least 16 and at most 64 of a head: what is measured costs then a
# quarter of what the model spends on logits, or less, and a mean over 64 is known to an eighth of the spread of one.
FEWEST_QUERIES, MOST_QUERIES, QUERIES_APART = 16, 64, 4


@dataclass(frozen=True)
class Logits:
    """What the softmax of one call saw.

    Attributes:
        values: shape (batch, heads, queries, keys), float32 or wider, owned by whoever receives it; ``HIDDEN`` where a
            key is masked.
        visible: 0 where a key is masked and 1 elsewhere, broadcasts to the shape of ``values``; None shows all.
        n_queries: queries of the call, of which ``values`` holds a subset.
    """

    values: Tensor
    visible: Tensor | None
    n_queries: int


def chosen_queries(n: int) -> slice:
    """Return which of ``n`` queries are measured: all of a short sequence, else evenly spaced ones, the last included."""
    most = min(MOST_QUERIES, max(FEWEST_QUERIES, n // QUERIES_APART))
    step = -(-n // most)
    return slice((n - 1) % step if n else 0, n, step or 1)


def n_chosen(n: int) -> int:
    """Return how many of ``n`` queries are measured."""
    return len(range(*chosen_queries(n).indices(n)))


def of_dot_products(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    scratch: Scratch | None = None,
) -> Logits:
    """Return the logits of ``scaled_dot_product_attention``.

    Args:
        query: shape (batch, heads, queries, head size).
        key: shape (batch, heads or a divisor of them, keys, head size).
        mask: True where a key is seen, or a number to add; broadcasts to (batch, heads, queries, keys).
        is_causal: query i sees keys 0 to i, counted from the first of each.
        scale: of the logits; 1 / sqrt(head size) by default.
        scratch: where to work; tensors 1 to 3 are used, and 1 is what is returned.
    """
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    chosen = chosen_queries(n_queries)
    factor = default_scale(query) if scale is None else scale
    values = _products(query[..., chosen, :], key, factor, scratch or Scratch())
    visible = None
    if is_causal:
        visible, hiding = _causal(n_queries, n_keys, values.device, values.dtype)
        values.add_(hiding)
    if mask is not None:
        rows = mask.detach()
        if rows.dim() >= 2 and rows.shape[-2] > 1:
            rows = rows[..., chosen, :]
        if rows.dtype == torch.bool:
            seen = rows.to(values.dtype)
            values.add_((1.0 - seen).mul_(HIDDEN))
        else:
            values.add_(rows).clamp_min_(HIDDEN)
            seen = visible_by_value(values)
        visible = seen if visible is None else visible * seen
    return Logits(values, visible, n_queries)


def of_softmax(values: Tensor, scratch: Scratch | None = None) -> Logits:
    """Return the logits that a softmax by hand is given, masked by their size.

    Args:
        values: shape (batch, heads, queries, keys).
        scratch: where to work; tensor 1 is used, and returned.
    """
    rows = values[..., chosen_queries(values.shape[-2]), :]
    copied = (scratch or Scratch()).copy(1, rows).clamp_min_(HIDDEN)
    return Logits(copied, visible_by_value(copied), values.shape[-2])


def of_modified_scores(
    query: Tensor,
    key: Tensor,
    score_mod: Callable[..., Tensor] | None,
    mask_mod: Callable[..., Tensor] | None,
    scale: float,
    buffers: tuple[tuple[Any, ...], tuple[Any, ...]] = ((), ()),
) -> Logits:
    """Return the logits of ``flex_attention``: score_mod(q.k scale, b, h, i, j) where mask_mod(b, h, i, j).

    Args:
        query: shape (batch, heads, queries, head size).
        key: shape (batch, heads or a divisor of them, keys, head size).
        score_mod: changes one score; None leaves it.
        mask_mod: whether one query sees one key; None shows all.
        scale: of the scores.
        buffers: what the two functions are given after their own arguments.
    """
    n_queries = query.shape[-2]
    chosen = chosen_queries(n_queries)
    scores = _products(query[..., chosen, :], key, scale, Scratch())
    places = [torch.arange(n, device=query.device) for n in (*scores.shape[:2], n_queries, key.shape[-2])]
    places[2] = places[2][chosen]
    if score_mod is not None:
        scores = _everywhere(score_mod, (0,), len(buffers[0]))(scores, *places, *buffers[0]).to(scores.dtype)
    # A score_mod may mask too, by -inf.
    scores = scores.clamp_min(HIDDEN)
    visible = visible_by_value(scores)
    if mask_mod is not None:
        seen = _everywhere(mask_mod, (), len(buffers[1]))(*places, *buffers[1]).to(scores.dtype)
        visible = visible * seen
        scores.add_((1.0 - seen).mul_(HIDDEN))
    return Logits(scores, visible, n_queries)


def default_scale(query: Tensor) -> float:
    """Return 1 / sqrt(head size)."""
    return 1.0 / math.sqrt(query.shape[-1])


@functools.lru_cache(maxsize=4)
def _causal(n_queries: int, n_keys: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return, for the measured queries, 1 where a key is no later than the query, and what hides the others."""
    # Outside inference mode: what is kept must serve a training step too.
    with torch.inference_mode(False):
        positions = torch.arange(n_queries, device=device)[chosen_queries(n_queries)]
        visible = (torch.arange(n_keys, device=device) <= positions.unsqueeze(-1)).to(dtype)
        return visible, (1.0 - visible).mul_(HIDDEN)


def _products(query: Tensor, key: Tensor, scale: float, scratch: Scratch) -> Tensor:
    """Return query @ key^T scale, float32 or wider; each of fewer key heads serves as many neighbouring query heads."""
    queries, keys = scratch.copy(2, query).mul_(scale), scratch.copy(3, key)
    if queries.dtype != keys.dtype:
        queries, keys = queries.to(torch.float64), keys.to(torch.float64)
    n_heads, n_shared, n = queries.shape[1], keys.shape[1], queries.shape[2]
    shape = (max(len(queries), len(keys)), n_heads, n, keys.shape[2])
    if n_shared not in (n_heads, 1):
        queries = queries.view(len(queries), n_shared, (n_heads // n_shared) * n, queries.shape[3])
    out = scratch.empty(1, shape, queries)
    folded = out.view(shape[0], queries.shape[1], queries.shape[2], shape[3])
    torch.matmul(queries, keys.transpose(-2, -1), out=folded)
    return out


def _everywhere(function: Callable[..., Tensor], first: tuple[int, ...], n_buffers: int) -> Callable[..., Tensor]:
    """Map a function of one score and its place over batch, heads, queries and keys."""
    mapped = function
    for axis in (3, 2, 1, 0):
        dims = tuple(0 if axis == place else None for place in range(4))
        mapped = torch.vmap(mapped, in_dims=(*first, *dims, *(None,) * n_buffers))
    return mapped
