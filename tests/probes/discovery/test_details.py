"""What behaviour tells beyond the stream: heads, hidden layers, positions, causality, ties, dropout."""

from __future__ import annotations

import torch
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.discovery import discover
from small_models.mechanics import FunctionalDropout, MixtureOfExperts
from small_models.parts import HEADS, LENGTH, WIDTH, Attention, Model, batch, seeded
from small_models.placements import Capped, Post, Pre, RmsPre
from small_models.streams import EncoderDecoder, HyperConnected, Reversible
from torch import Tensor, nn


class _Unplaced(Model):
    """No positions at all."""

    def embed(self, ids: Tensor) -> Tensor:
        return self.tokens(ids)


class _Sinusoidal(Model):
    def embed(self, ids: Tensor) -> Tensor:
        angles = torch.arange(ids.shape[1])[:, None] * torch.logspace(0, -3, WIDTH)
        return self.tokens(ids) + angles.sin()


class _Placed(Attention):
    """Rotary (rotate=True) or ALiBi positions, written out."""

    def __init__(self, rotate: bool) -> None:
        super().__init__()
        self.rotate = rotate

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        q, k, v = (self._split(part(x)) for part in (self.query, self.key, self.value))
        t = x.shape[1]
        places = torch.arange(t).float()
        if self.rotate:
            q, k = self._turned(q, places), self._turned(k, places)
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if not self.rotate:
            logits = logits - (places[:, None] - places).abs() * torch.tensor([0.5, 0.25])[:, None, None]
        logits = logits.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), float("-inf"))
        return self.out((logits.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))

    def _turned(self, x: Tensor, places: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        angles = places[:, None] * torch.logspace(0, -2, half)
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class _PlacedBlock(Pre):
    def __init__(self, rotate: bool) -> None:
        super().__init__()
        self.attention = _Placed(rotate)


def _found(model: nn.Module) -> Anatomy:
    return discover(seeded(lambda: model), batch())


def test_heads_shared_heads_qk_norm_and_soft_cap_are_read_off_the_dataflow() -> None:
    attention = _found(Model(Capped)).branches[0].attention

    assert attention is not None
    assert (attention.n_heads, attention.n_key_value_heads, attention.head_size) == (4, 2, 4)
    assert (attention.qk_norm, attention.soft_cap) == ("rmsnorm", 30.0)


def test_plain_attention_has_neither_norm_nor_cap() -> None:
    attention = _found(Model(Pre)).branches[0].attention

    assert attention is not None
    assert (attention.n_heads, attention.n_key_value_heads) == (HEADS, HEADS)
    assert (attention.qk_norm, attention.soft_cap) == ("none", None)


def test_gated_and_plain_hidden_layers_are_told_apart() -> None:
    gated, plain = (_found(Model(block)).branches[1].hidden for block in (RmsPre, Pre))

    assert gated is not None
    assert plain is not None
    assert (gated.width, gated.is_gated, gated.activation) == (24, True, "silu")
    assert (plain.width, plain.is_gated, plain.activation) == (64, False, "gelu")


def test_biases_are_named_for_each_projection() -> None:
    with_bias, without = (_found(Model(block)).branches[1].projections for block in (Pre, RmsPre))

    assert [item.bias for item in with_bias] == ["blocks.0.mlp.up.bias", "blocks.0.mlp.down.bias"]
    assert {item.bias for item in without} == {None}


def test_norm_kinds_are_decided_by_behaviour() -> None:
    assert _found(Model(Pre)).norm_kind == "layernorm"
    assert {branch.norm_kind for branch in _found(Model(RmsPre)).branches} == {"rmsnorm"}


def test_positions_are_told_by_what_they_do_to_equal_tokens() -> None:
    expected = {
        "learned": Model(Pre),
        "sinusoidal": _Sinusoidal(Pre),
        "none": _Unplaced(Pre),
        "rotary": _Unplaced(lambda: _PlacedBlock(rotate=True)),
        "alibi": _Unplaced(lambda: _PlacedBlock(rotate=False)),
    }

    found = {name: _found(model) for name, model in expected.items()}

    assert {name: anatomy.positions for name, anatomy in found.items()} == {name: name for name in expected}
    assert [found[name].is_shift_invariant for name in expected] == [False, False, True, True, True]


def test_causality_is_found_by_changing_the_last_token() -> None:
    class Both(Pre):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention(causal=False)

    assert _found(Model(Pre)).stacks[0].is_causal is True
    assert _found(Model(Both)).stacks[0].is_causal is False


def test_cross_attention_is_told_from_self_attention() -> None:
    kinds = [branch.kind for branch in _found(EncoderDecoder()).stacks[1].branches[:3]]

    assert kinds == ["attention", "cross_attention", "mlp"]


def test_experts_are_one_branch_that_chooses() -> None:
    branch = _found(Model(MixtureOfExperts)).branches[1]

    assert (branch.kind, branch.is_parallel) == ("moe", False)


def test_tied_embeddings_are_found_by_the_parameter_they_share() -> None:
    class Tied(Model):
        def __init__(self) -> None:
            super().__init__(Pre)
            self.head.weight = self.tokens.weight

    assert _found(Tied()).ties_embeddings is True
    assert _found(Model(Pre)).ties_embeddings is False


def test_dropout_that_hides_a_write_in_training_is_named() -> None:
    anatomy = _found(Model(FunctionalDropout))

    assert anatomy.dropout == (0.1,)
    assert {branch.write_dropout for branch in anatomy.branches} == {0.1}
    assert {branch.write for branch in anatomy.branches} == {None}


def test_parallel_streams_are_described() -> None:
    mixed, paired = _found(HyperConnected()), _found(Reversible(Pre))

    assert (mixed.stacks[0].n_streams, mixed.is_complete) == (4, False)
    assert "4 parallel streams" in mixed.stacks[0].mixing
    assert [stack.n_streams for stack in paired.stacks] == [2, 2]
    assert "reversible" in paired.notes[0]


def test_an_anatomy_survives_its_journey_through_json() -> None:
    anatomy = _found(Model(Post))

    assert Anatomy.from_json(anatomy.to_json()) == anatomy


def test_an_anatomy_written_before_the_details_is_still_read() -> None:
    value = _found(Model(Pre)).to_json()
    for name in ("notes", "positions", "ties_embeddings", "is_shift_invariant", "dropout"):
        del value[name]
    for branch in value["stacks"][0]["branches"]:
        for name in ("seen", "factors", "attention", "hidden", "projections", "write_dropout", "is_gated_skip"):
            del branch[name]

    assert Anatomy.from_json(value).n_branches == 6


def test_blocks_group_the_branches_of_one_module_call() -> None:
    assert [branch.block for branch in _found(Model(Pre)).branches] == [0, 0, 1, 1, 2, 2]
    assert batch().shape[1] == LENGTH
