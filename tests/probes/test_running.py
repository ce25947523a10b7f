"""A call belongs to the branch whose module is running, or to none."""

from __future__ import annotations

from typing import Any

import pytest
import rheoscope as rs
from attention_oracle import measured
from oracles import HEADS, VOCABULARY, WIDTH, ids
from rheoscope.probes.anatomy import Anatomy, Branch, Stack
from rheoscope.probes.running import ATTENTION_KINDS, Moment, holder, places
from torch import Tensor, nn
from torch.nn import functional


def attend(x: Tensor, qkv: nn.Linear) -> Tensor:
    q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in qkv(x).chunk(3, -1))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class Inline(nn.Module):
    """A block whose own forward holds both branches."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.qkv = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.out, self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(attend(self.one(x), self.qkv))
        return x + self.down(functional.gelu(self.up(self.two(x))))


class Decoder(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.tokens, self.blocks = nn.Embedding(VOCABULARY, WIDTH), nn.ModuleList(blocks)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return x @ self.tokens.weight.T


def shared() -> nn.Module:
    block = Inline()
    return Decoder(block, block, block)


class Flat(Decoder):
    """A model whose own forward holds all branches."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        for block in self.blocks:
            x = x + block.out(attend(block.one(x), block.qkv))
            x = x + block.down(functional.gelu(block.up(block.two(x))))
        return x


@pytest.mark.parametrize(
    ("make", "n"),
    [(lambda: Decoder(Inline(), Inline()), 2), (shared, 3)],
    ids=["a block's own forward", "one block thrice"],
)
def test_calls_are_placed_without_a_module_of_their_own(make: Any, n: int) -> None:
    rows = measured(make(), {"ids": ids()})

    assert [(row["block"], row["branch"], row["head"], row["call"]) for row in rows] == [
        (block, "attention", head, 0) for block in range(n) for head in range(HEADS)
    ]


def test_calls_in_the_models_own_forward_are_placed_by_the_branch_that_ends_next() -> None:
    rows = measured(Flat(Inline(), Inline()), {"ids": ids()})

    assert [row["block"] for row in rows] == [0, 0, 1, 1]


class Pooled(Flat):
    """Attends once more, before any block."""

    def forward(self, ids: Tensor) -> Tensor:
        attend(self.tokens(ids), self.blocks[0].qkv)
        return super().forward(ids)


def test_where_one_call_is_too_many_those_that_it_makes_uncertain_are_unknown() -> None:
    rows = measured(Pooled(Inline(), Inline()), {"ids": ids()})

    assert {row["block"] for row in rows} == {-1}


def test_the_encoder_layers_of_albert_are_told_apart_by_order() -> None:
    from transformers import AlbertConfig, AlbertForMaskedLM

    sizes = {"hidden_size": 16, "embedding_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    more = {"intermediate_size": 32, "vocab_size": VOCABULARY, "max_position_embeddings": 16}
    model = AlbertForMaskedLM(AlbertConfig(**sizes, **more, attention_probs_dropout_prob=0.0)).eval()

    rows = measured(model, {"input_ids": ids()})

    assert [row["block"] for row in rows] == [0, 0, 1, 1, 2, 2]


def branches(*kinds_and_paths: tuple[str, str]) -> Anatomy:
    found = [
        Branch(0, depth // 2, depth + 1, kind, "pre", "layernorm", module_path=path)
        for depth, (kind, path) in enumerate(kinds_and_paths)
    ]
    return Anatomy((Stack(0, tuple(found)),))


def depths(anatomy: Anatomy, moments: list[Moment]) -> list[int]:
    return [branch.depth if branch else -1 for branch, _ in places(anatomy, moments, ATTENTION_KINDS)]


def test_calls_outside_every_branch_are_told_by_order_only_if_their_number_fits() -> None:
    anatomy = branches(("attention", ""), ("mlp", ""), ("attention", ""), ("mlp", ""))

    assert depths(anatomy, [Moment("", 0)] * 2) == [1, 3]
    assert depths(anatomy, [Moment("", 0)] * 3) == [-1, -1, -1]


def test_a_call_beside_the_branches_is_no_branchs() -> None:
    anatomy = branches(("attention", "a.0"), ("mlp", "m.0"), ("attention", "a.1"), ("mlp", "m.1"))

    assert depths(anatomy, [Moment("a.0", 0), Moment("", 0), Moment("a.1", 0)]) == [1, -1, 3]


def test_several_calls_of_one_branch_are_counted() -> None:
    anatomy = branches(("attention", "a.0"), ("mlp", "m.0"))
    moments = [Moment("a.0", 0)] * 3

    assert [call for _, call in places(anatomy, moments, ATTENTION_KINDS)] == [0, 1, 2]


def test_the_holder_is_the_module_around_a_branchs_own_parameters() -> None:
    anatomy = rs.discover(Decoder(Inline(), Inline()), {"ids": ids()})

    assert [holder(anatomy, branch) for branch in anatomy.branches] == ["blocks.0", "blocks.0", "blocks.1", "blocks.1"]
