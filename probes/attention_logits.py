"""Compute the logits of one attention call again, from what the call was given, for a subset of its queries.

Axes: (batch, heads, queries, keys). The logits are those that enter the softmax: scaled, soft-capped, with additive
masks and position biases, in float32 or wider.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .attention_statistics import hidden_by_value

MOST_QUERIES = 64  # a head and sequence: their mean is within 12 % of a standard deviation of the mean of all


@dataclass(frozen=True)
class Logits:
    """What the softmax of one call saw.

    Attributes:
        values: shape (batch, heads, queries, keys), float32 or wider, owned by whoever receives it.
        hidden: true where a key is masked, broadcasts to the shape of ``values``; None hides none.
        n_queries: queries of the call, of which ``values`` holds a subset.
    """

    values: Tensor
    hidden: Tensor | None
    n_queries: int


def chosen_queries(n: int) -> slice:
    """Return which of ``n`` queries are measured: all up to 64, otherwise evenly spaced ones, the last among them."""
    step = -(-n // MOST_QUERIES)
    return slice((n - 1) % step if n else 0, n, step)


def wide(tensor: Tensor) -> Tensor:
    """Return ``tensor`` outside the autograd graph, in float32 or wider."""
    tensor = tensor.detach()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.to(torch.float32)


def of_dot_products(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Logits:
    """Return the logits of ``scaled_dot_product_attention``.

    Args:
        query: shape (batch, heads, queries, head size).
        key: shape (batch, heads or a divisor of them, keys, head size).
        mask: True where a key is seen, or a number to add; broadcasts to (batch, heads, queries, keys).
        is_causal: query i sees keys 0 to i, counted from the first of each.
        scale: of the logits; 1 / sqrt(head size) by default.
    """
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    chosen = chosen_queries(n_queries)
    values = _products(wide(query[..., chosen, :]), wide(key))
    values.mul_(default_scale(query) if scale is None else scale)
    hidden = None
    if is_causal:
        positions = torch.arange(n_queries, device=query.device)[chosen]
        hidden = torch.arange(n_keys, device=query.device) > positions.unsqueeze(-1)
    if mask is not None:
        rows = mask.detach()
        if rows.dim() >= 2 and rows.shape[-2] > 1:
            rows = rows[..., chosen, :]
        if rows.dtype == torch.bool:
            hidden = ~rows if hidden is None else hidden | ~rows
        else:
            values = values.add_(rows)
            too_low = hidden_by_value(values)
            hidden = too_low if hidden is None else hidden | too_low
    return Logits(values, hidden, n_queries)


def of_softmax(values: Tensor) -> Logits:
    """Return the logits that a softmax by hand is given, shape (batch, heads, queries, keys), masked by their size."""
    rows = values.detach()[..., chosen_queries(values.shape[-2]), :]
    copied = rows.to(rows.dtype if rows.dtype == torch.float64 else torch.float32, copy=True)
    return Logits(copied, hidden_by_value(copied), values.shape[-2])


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
    scores = _products(wide(query[..., chosen, :]), wide(key)).mul_(scale)
    places = [torch.arange(n, device=query.device) for n in (*scores.shape[:2], n_queries, key.shape[-2])]
    places[2] = places[2][chosen]
    if score_mod is not None:
        scores = _everywhere(score_mod, (0,), len(buffers[0]))(scores, *places, *buffers[0]).to(scores.dtype)
    hidden = None if mask_mod is None else ~_everywhere(mask_mod, (), len(buffers[1]))(*places, *buffers[1])
    if hidden is not None:
        hidden = hidden.expand(scores.shape)
    # A score_mod may mask too, by -inf.
    too_low = hidden_by_value(scores)
    return Logits(scores.clone(), too_low if hidden is None else hidden | too_low, n_queries)


def default_scale(query: Tensor) -> float:
    """Return 1 / sqrt(head size)."""
    return 1.0 / math.sqrt(query.shape[-1])


def _products(query: Tensor, key: Tensor) -> Tensor:
    """Return query @ key^T; each of fewer key heads serves as many neighbouring query heads."""
    if query.dtype != key.dtype:
        query, key = query.to(torch.float64), key.to(torch.float64)
    n_heads, n_shared = query.shape[1], key.shape[1]
    if n_shared in (n_heads, 1):
        return query @ key.transpose(-2, -1)
    batch, _, n, size = query.shape
    grouped = query.reshape(batch, n_shared, (n_heads // n_shared) * n, size)
    return (grouped @ key.transpose(-2, -1)).view(max(batch, key.shape[0]), n_heads, n, key.shape[-2])


def _everywhere(function: Callable[..., Tensor], first: tuple[int, ...], n_buffers: int) -> Callable[..., Tensor]:
    """Map a function of one score and its place over batch, heads, queries and keys."""
    mapped = function
    for axis in (3, 2, 1, 0):
        dims = tuple(0 if axis == place else None for place in range(4))
        mapped = torch.vmap(mapped, in_dims=(*first, *dims, *(None,) * n_buffers))
    return mapped
