"""Attention of the reference transformer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .architecture import Architecture
from .norms import norm
from .positions import bias_of_logits, rotary


class Attention(nn.Module):
    """Multi-head attention, input and output (batch, position, width)."""

    def __init__(self, architecture: Architecture, *, is_causal: bool = True, is_cross: bool = False) -> None:
        """Make the four projections, the norms of queries and keys, and the dropout after the last projection.

        Args:
            architecture: of the model.
            is_causal: whether later positions are hidden.
            is_cross: whether keys and values are made of another stack's states.
        """
        super().__init__()
        self.architecture, self.is_causal, self.is_cross = architecture, is_causal, is_cross
        width, size = architecture.width, architecture.size_of_head
        bias, shared = architecture.has_bias("attention"), architecture.n_shared_heads * size
        self.query = nn.Linear(width, architecture.n_heads * size, bias=bias)
        self.key, self.value = (nn.Linear(width, shared, bias=bias) for _ in range(2))
        self.output = nn.Linear(architecture.n_heads * size, width, bias=architecture.has_bias("output"))
        self.query_norm, self.key_norm = (
            norm(architecture, size) if architecture.qk_norm else nn.Identity() for _ in range(2)
        )
        self.dropout = nn.Dropout(architecture.dropout)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """Return what each position gathers: from those that it sees of ``x``, or of ``source``."""
        read = x if source is None else source
        q, k, v = self._heads(self.query(x)), self._heads(self.key(read)), self._heads(self.value(read))
        q, k = self.query_norm(q), self.key_norm(k)
        if self.architecture.positions == "rotary" and not self.is_cross:
            q, k = rotary(q), rotary(k)
        gathered = self._gathered(q, k, v).transpose(1, 2).flatten(2)
        y: Tensor = self.dropout(self.output(gathered))
        return y

    def _heads(self, x: Tensor) -> Tensor:
        size = self.architecture.size_of_head
        return x.view(*x.shape[:-1], x.shape[-1] // size, size).transpose(1, 2)

    def _gathered(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        design = self.architecture
        if design.n_shared_heads < design.n_heads:
            k, v = (each.repeat_interleave(design.n_heads // design.n_shared_heads, dim=1) for each in (k, v))
        has_bias = not self.is_cross and (design.positions == "alibi" or design.window > 0)
        if not has_bias and not design.attention_soft_cap:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal and not self.is_cross)
        bias = self._bias(q, k)
        if not design.attention_soft_cap:
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        logits = q @ k.mT / math.sqrt(q.shape[-1])
        capped = design.attention_soft_cap * torch.tanh(logits / design.attention_soft_cap)
        return (capped + bias).softmax(-1) @ v

    def _bias(self, q: Tensor, k: Tensor) -> Tensor:
        if self.is_cross:
            return q.new_zeros(q.shape[-2], k.shape[-2])
        bias = bias_of_logits(
            q.shape[-2],
            self.architecture.n_heads,
            alibi=self.architecture.positions == "alibi",
            window=self.architecture.window,
            is_causal=self.is_causal,
        )
        return bias.to(q)
