"""What can be done where queries meet keys: norm both, bound the logits, take a bound away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .batches import tensors
from .interventions import put


@dataclass
class RewrittenAttention:
    """Norms queries and keys, head by head, and bounds the logits, in one call of attention.

    Attributes:
        query: which of the call's tensors holds the queries.
        key: which of them holds the keys.
        is_transposed: whether the keys' features are on the axis before the last.
        query_factor: what queries were multiplied by before, which a norm would take away.
        query_norm: None for none.
        key_norm: None for none.
        cap: logits become cap * tanh(logits / cap); 0 for none. Only in ``scaled_dot_product_attention``.
    """

    query: int
    key: int
    is_transposed: bool
    query_factor: float = 1.0
    query_norm: nn.Module | None = None
    key_norm: nn.Module | None = None
    cap: float = 0.0

    def __call__(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the call."""
        positions = [position for position, _ in tensors((tuple(args), kwargs))]
        operands: Any = (tuple(args), kwargs)
        if self.query_norm is not None:
            operands = put(operands, positions[self.query], self._query)
        if self.key_norm is not None:
            operands = put(operands, positions[self.key], self._key)
        attend = partial(capped_attention, cap=self.cap) if self.cap else function
        return attend(*operands[0], **operands[1])

    def _query(self, query: Tensor) -> Tensor:
        factor = self.query_factor
        normed: Tensor = self.query_norm(query if factor == 1 else query / factor)  # type: ignore[misc]
        return normed if factor == 1 else factor * normed

    def _key(self, key: Tensor) -> Tensor:
        normed: Tensor = self.key_norm(key.mT if self.is_transposed else key)  # type: ignore[misc]
        return normed.mT if self.is_transposed else normed


@dataclass
class Uncapped:
    """Returns what a tanh is given: what was divided by the bound is multiplied by it afterwards."""

    def __call__(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        """Return the call's first tensor."""
        return args[0] if args else kwargs["input"]


def capped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    cap: float,
) -> Tensor:
    """Return torch's ``scaled_dot_product_attention``, its logits bounded by ``cap`` before the mask.

    Args:
        query: shape (..., head, position, feature).
        key: shape (..., head, source position, feature).
        value: shape (..., head, source position, feature).
        attn_mask: added to the logits; a boolean one says which take part.
        dropout_p: probability with which a weight is dropped.
        is_causal: whether later positions are hidden.
        scale: of the logits; None for one over the root of the number of features.
        enable_gqa: whether several heads of queries share one of keys.
        cap: the bound.
    """
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3) for each in (key, value))
    logits = (1 / math.sqrt(query.shape[-1]) if scale is None else scale) * query @ key.mT
    logits = cap * torch.tanh(logits / cap)
    if is_causal:
        seen = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        logits = logits.masked_fill(~seen, -torch.inf)
    if attn_mask is not None:
        is_choice = attn_mask.dtype == torch.bool
        logits = logits.masked_fill(~attn_mask, -torch.inf) if is_choice else logits + attn_mask
    return functional.dropout(logits.softmax(-1), dropout_p) @ value
