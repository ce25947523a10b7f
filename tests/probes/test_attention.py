"""Attention is measured wherever it is computed, and nothing else is taken for it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import rheoscope as rs
import torch
from attention_oracle import NAMES, assert_rows, measured, recorded_interface, reference
from oracles import HEADS, LENGTH, VOCABULARY, NanoGPT, batch_of, gpt2, ids, llama
from rheoscope.probes.attention import unseen
from torch import Tensor, nn
from torch.nn import functional

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
}


def mistral() -> nn.Module:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=3))


def gemma2() -> nn.Module:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**SIZES, sliding_window=3, attn_logit_softcapping=2.0))


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": VOCABULARY}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, initializer_factor=2.0))


def bart() -> nn.Module:
    from transformers import BartConfig, BartForConditionalGeneration

    both = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 32))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 4}
    more = {"d_model": 16, "vocab_size": VOCABULARY, "pad_token_id": 1, "max_position_embeddings": 64}
    return BartForConditionalGeneration(BartConfig(**both, **heads, **more, init_std=0.4))


def padded(n: int = 3, left: int = 0, right: int = 0) -> dict[str, Tensor]:
    mask = torch.ones(n, LENGTH, dtype=torch.long)
    mask[1, :left] = 0
    mask[1, LENGTH - right :] = 0
    return {"input_ids": ids(n), "labels": ids(n), "attention_mask": mask}


DECODERS = {
    "GPT-2": gpt2,
    "Llama": llama,
    "sliding window": mistral,
    "soft-capped": gemma2,
}
CROSS = {"T5": t5, "BART": bart}


def check_against_interface(model: nn.Module, batch: dict[str, Any], kind: str) -> None:
    model.eval()
    model.set_attn_implementation(kind)
    rows = measured(model, batch)

    with recorded_interface() as seen:
        slow = copy.deepcopy(model).double()
        slow.set_attn_implementation("oracle")
        slow(**batch)
    modules = {module: path for path, module in slow.named_modules()}
    anatomy = rs.discover(model, batch)
    paths = {(branch.stack, branch.depth): branch.module_path for branch in anatomy.branches}
    for module, logits, hidden in seen:
        mine = [row for row in rows if paths.get((row["stack"], row["depth"])) == modules[module]]
        assert [row["head"] for row in mine] == list(range(logits.shape[1]))
        assert_rows(mine, reference(logits, hidden))
    assert len(rows) == sum(logits.shape[1] for _, logits, _ in seen)


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("name", DECODERS)
def test_heads_of_a_decoder_are_those_of_a_float64_reference(name: str, kind: str) -> None:
    if (name, kind) == ("soft-capped", "sdpa"):
        pytest.skip("Hugging Face refuses it")
    check_against_interface(DECODERS[name](), {"input_ids": ids(), "labels": ids()}, kind)


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CROSS)
def test_cross_attention_between_different_lengths_is_measured(name: str, kind: str) -> None:
    check_against_interface(CROSS[name](), {"input_ids": ids(), "labels": ids()[:, :5].contiguous()}, kind)


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("sides", [{"left": 3}, {"right": 3}], ids=str)
def test_padded_keys_and_queries_that_see_none_do_not_count(kind: str, sides: dict[str, int]) -> None:
    check_against_interface(mistral(), padded(**sides), kind)


def test_bfloat16_is_measured_in_float32() -> None:
    model = llama().to(torch.bfloat16)
    seen: list[tuple[Tensor, Tensor]] = []
    plain = functional.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append((query, key))
        return plain(query, key, *args, **kwargs)

    anatomy = rs.discover(model, batch_of(model))
    with pytest.MonkeyPatch.context() as patch:
        rows = measured(model, batch_of(model), anatomy)
        patch.setattr(functional, "scaled_dot_product_attention", spy)
        model(**batch_of(model))

    hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    expected = [head for q, k in seen for head in reference(q.double() @ k.double().mT / 8**0.5, hidden)]
    assert_rows(rows, expected)


def test_autocast_does_not_coarsen_the_measurement() -> None:
    model = gpt2()
    plain = measured(model, batch_of(model))

    with torch.autocast("cpu", torch.bfloat16):
        rows = measured(model, batch_of(model), rs.discover(model, batch_of(model)))

    # The queries and keys are bfloat16's; what is computed from them is not rounded again.
    assert [row["entropy"] for row in rows] == pytest.approx([row["entropy"] for row in plain], rel=1e-4)


def nanogpt_logits(model: NanoGPT) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        q, k, _ = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2).double() for t in output.chunk(3, -1))
        found.append(q @ k.mT / q.shape[-1] ** 0.5)

    handles = [block.attention.qkv.register_forward_hook(keep) for block in model.blocks]
    model(**batch_of(model))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("kind", ["pre", "parallel"])
def test_a_softmax_by_hand_is_measured(kind: str) -> None:
    model = NanoGPT(kind)
    hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    expected = [head for logits in nanogpt_logits(model) for head in reference(logits, hidden)]

    rows = measured(model, batch_of(model))

    assert_rows(rows, expected)
    assert [(row["block"], row["head"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]


class Torch(nn.Module):
    """An attention branch and an MLP, the first by torch's own attention."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.tokens, self.norm, self.mlp = nn.Embedding(VOCABULARY, 16), nn.LayerNorm(16), nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True, dropout=0.2)
        self.need_weights = need_weights

    def forward(self, ids: Tensor, padding: Tensor | None = None) -> Tensor:
        x = self.tokens(ids)
        normed = self.norm(x)
        mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        more = {"attn_mask": mask, "key_padding_mask": padding, "need_weights": self.need_weights}
        x = x + self.attention(normed, normed, normed, **more)[0]
        return x + self.mlp(self.norm(x))


@pytest.mark.parametrize("need_weights", [True, False])
def test_torchs_own_attention_is_measured_head_by_head(need_weights: bool) -> None:
    model = Torch(need_weights)
    padding = torch.zeros(3, LENGTH, dtype=torch.bool)
    padding[1, 5:] = True
    normed = model.norm(model.tokens(ids()))
    projected = functional.linear(normed, model.attention.in_proj_weight, model.attention.in_proj_bias).double()
    q, k, _ = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in projected.chunk(3, -1))
    hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1) | padding[:, None, None]

    rows = measured(model, {"ids": ids(), "padding": padding})

    assert_rows(rows, reference(q @ k.mT / 2.0, hidden))
    assert [row["head"] for row in rows] == [0, 1, 2, 3]
    assert {(row["stack"], row["block"], row["depth"]) for row in rows} == {(0, 0, 1)}


def test_a_long_sequence_is_measured_from_evenly_spaced_queries_and_the_last() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=VOCABULARY, n_positions=200, initializer_range=0.5)
    model = GPT2LMHeadModel(config).eval()
    batch = {"input_ids": torch.randint(0, VOCABULARY, (2, 199))}
    rows = measured(model, batch)

    with recorded_interface() as seen:
        slow = copy.deepcopy(model).double()
        slow.set_attn_implementation("oracle")
        slow(**batch)

    (_, logits, hidden), *_ = seen
    chosen = torch.arange(198, -1, -5).flip(0)
    assert_rows(rows, reference(logits[:, :, chosen], hidden[:, :, chosen]))
    assert rows[0]["n_queries"] == 2 * len(chosen)
    assert rows[0]["query_share"] == len(chosen) / 199


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_without_exact_logits_a_bound_or_the_largest_alone_is_recorded(kind: str) -> None:
    model = llama()
    model.set_attn_implementation(kind)
    exact = measured(model, batch_of(model))

    rows = measured(model, batch_of(model), exact_logits=False)

    for row, wanted in zip(rows, exact, strict=True):
        assert [row[name] for name in NAMES[1:]] == [None] * 4
        if kind == "sdpa":
            assert row["logit_max"] is None
            assert row["logit_bound"] >= wanted["logit_max"]
        else:
            assert row["logit_max"] == pytest.approx(wanted["logit_max"])


def test_branches_whose_attention_no_call_shows_are_named() -> None:
    model = NanoGPT()
    anatomy = rs.discover(model, batch_of(model))
    rows = measured(model, batch_of(model), anatomy)

    sentence = unseen(anatomy, [row for row in rows if row["block"] == 0])

    assert unseen(anatomy, rows) is None
    assert sentence is not None
    assert sentence.startswith("Attention of 1 of 2 branches is not recorded (block 1 of stack 0 is the first)")
