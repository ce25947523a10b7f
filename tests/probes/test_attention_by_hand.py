"""Attention written by hand in unusual ways is measured, and other softmaxes are not taken for it."""

from __future__ import annotations

from typing import Any

import pytest
import rheoscope as rs
import torch
from attention_oracle import assert_rows, measured, reference
from oracles import LENGTH, VOCABULARY, ids
from torch import Tensor, nn
from torch.nn import functional


class ByHand(nn.Module):
    """An attention branch around a function that is given (batch, positions, width) three times, and an MLP."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.tokens, self.norm, self.qkv = nn.Embedding(VOCABULARY, 16), nn.LayerNorm(16), nn.Linear(16, 48)
        self.out, self.mlp, self.function = nn.Linear(16, 16), nn.Linear(16, 16), function

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        x = x + self.out(self.function(*self.qkv(self.norm(x)).chunk(3, -1)))
        return x + self.mlp(self.norm(x))


def heads_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (torch.cat(t.chunk(2, -1), 0) for t in (q, k, v))
    return torch.cat((torch.bmm(torch.bmm(q, k.mT).softmax(-1), v)).chunk(2, 0), -1)


def heads_apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    pairs = zip(q.chunk(2, -1), k.chunk(2, -1), v.chunk(2, -1), strict=True)
    return torch.cat([(a @ b.mT).softmax(-1) @ c for a, b, c in pairs], -1)


def single_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bqk,bkd->bqd", torch.einsum("bqd,bkd->bqk", q, k).softmax(dim=2), v)


def in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.baddbmm(torch.zeros(len(q), LENGTH, LENGTH), q, k.mT)
    return functional.dropout(functional.softmax(scores, -1, dtype=torch.float32).to(v.dtype), 0.1) @ v


@pytest.mark.parametrize(
    ("function", "heads", "calls"),
    [(heads_first, [-1], [0]), (heads_apart, [0, 0], [0, 1]), (single_head, [0], [0]), (in_place, [0], [0])],
)
def test_heads_are_numbered_only_where_the_call_tells_them_apart(function: Any, heads: Any, calls: Any) -> None:
    rows = measured(ByHand(function), {"ids": ids()})

    assert [row["head"] for row in rows] == heads
    assert [row["call"] for row in rows] == calls


class Sinking(nn.Module):
    """An attention whose softmax has a learned logit beside the keys, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.sink = ByHand(self.attend), nn.Parameter(torch.randn(1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.cat([q @ k.mT, self.sink.expand(len(q), LENGTH, 1)], -1)
        return scores.softmax(-1)[..., :-1] @ v

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids)


def test_a_learned_sink_beside_the_keys_counts_as_one() -> None:
    model = Sinking()
    q, k, _ = model.inner.qkv(model.inner.norm(model.inner.tokens(ids()))).chunk(3, -1)
    logits = torch.cat([q @ k.mT, model.sink.expand(3, LENGTH, 1)], -1)

    assert_rows(measured(model, {"ids": ids()}), reference(logits.unsqueeze(1), None))


def test_all_heads_together_are_measured_where_they_are_not_told_apart() -> None:
    model = ByHand(heads_first)
    q, k, _ = model.qkv(model.norm(model.tokens(ids()))).chunk(3, -1)
    logits = torch.cat(q.chunk(2, -1)) @ torch.cat(k.chunk(2, -1)).mT

    assert_rows(measured(model, {"ids": ids()}), reference(logits.unsqueeze(1), None))


class NoAttention(nn.Module):
    """Softmaxes that are no attention: a router's, and one over the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm, self.mlp = nn.Embedding(VOCABULARY, 16), nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        gate = (self.norm(x) @ self.mlp.weight.T).softmax(-1)
        x = x + self.mlp(gate * self.norm(x))
        return (x @ self.tokens.weight.T).softmax(-1) @ self.tokens.weight


def test_other_softmaxes_are_not_taken_for_attention() -> None:
    assert measured(NoAttention(), {"ids": ids()}, rs.Anatomy()) == []
