"""The conditions that attribution runs under: what they make of a model, and that all of it is undone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attribution_cases import ids_of, shaken
from oracles import NanoGPT, gpt2
from rheoscope.probes.attribution import gradient_shares, usefulness
from rheoscope.probes.attribution.conditions import at_rest, loss_of
from rheoscope.probes.attribution.examples import examples
from rheoscope.probes.check_up import examine
from rheoscope.probes.errors import BatchError, ProbeError
from rheoscope.probes.recorder import attach
from torch import Tensor, nn


def test_inside_all_is_float32_and_wants_gradients_and_outside_nothing_changed() -> None:
    model = gpt2().bfloat16().train()
    model.transformer.wte.weight.requires_grad_(False)
    held = list(model.named_parameters())

    with at_rest(model):
        inside = dict(model.named_parameters())
        assert {p.dtype for p in inside.values()} == {torch.float32}
        assert all(p.requires_grad for p in inside.values())
        assert not model.training
        # What is tied stays tied.
        assert model.lm_head.weight is model.transformer.wte.weight

    assert [(n, id(p), p.dtype) for n, p in model.named_parameters()] == [(n, id(p), torch.bfloat16) for n, p in held]
    assert not model.transformer.wte.weight.requires_grad
    assert model.training


def test_it_is_undone_when_something_raises() -> None:
    model = gpt2().half()
    held = [id(p) for p in model.parameters()]

    with pytest.raises(RuntimeError, match="on purpose"), at_rest(model):
        raise RuntimeError("on purpose")

    assert [id(p) for p in model.parameters()] == held


def test_weights_that_need_no_copy_are_not_copied() -> None:
    model = gpt2()
    places = [p.data_ptr() for p in model.parameters()]

    with at_rest(model):
        assert [p.data_ptr() for p in model.parameters()] == places


def test_fused_attention_can_be_differentiated_twice_inside() -> None:
    query = torch.randn(1, 2, 4, 8, requires_grad=True)

    def norm() -> Tensor:
        out = nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
        (gradient,) = torch.autograd.grad(out.square().sum(), query, create_graph=True)
        return gradient.square().sum()

    with pytest.raises(RuntimeError, match="not implemented"):
        norm().backward()
    with at_rest(gpt2()):
        norm().backward()


def test_autocast_of_the_loop_does_not_reach_inside() -> None:
    model, ids = shaken(gpt2()), ids_of()
    plain = usefulness(model, {"input_ids": ids, "labels": ids})

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = usefulness(model, {"input_ids": ids, "labels": ids})

    assert inside.by_block("block_knock_out") == plain.by_block("block_knock_out")


def test_an_attached_probe_sees_nothing_of_it_and_training_stays_the_same(tmp_path: Path) -> None:
    ids = ids_of(2)
    batch = {"input_ids": ids, "labels": ids}

    def run(folder: Path, is_asking: bool) -> tuple[list[Tensor], int]:
        torch.manual_seed(0)
        model = gpt2(dropout=0.1).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        with attach(model, optimizer, every=1, folder=folder) as probe:
            for _ in range(3):
                loss = model(**batch).loss
                loss.backward()
                if is_asking:
                    usefulness(model, batch)
                    gradient_shares(model, batch)
                optimizer.step()
                optimizer.zero_grad()
                probe.step(loss)
        return [p.detach() for p in model.parameters()], probe.recording.n_rows("activations")

    asked, still = run(tmp_path / "a", True), run(tmp_path / "b", False)

    assert all(torch.equal(a, b) for a, b in zip(asked[0], still[0], strict=True))
    assert asked[1] == still[1]


def test_a_loss_for_every_example_or_token_is_averaged() -> None:
    model, ids = shaken(NanoGPT()), ids_of()

    def each(output: Tensor, _: object) -> Tensor:
        return nn.functional.cross_entropy(output[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")

    whole = gradient_shares(model, (ids,), 0)
    tokens = gradient_shares(model, (ids,), 0, loss_fn=each)

    assert tokens.by_block("gradient_norm") == pytest.approx(whole.by_block("gradient_norm"), rel=1e-4)


def test_what_is_no_loss_is_refused_in_a_sentence() -> None:
    with pytest.raises(BatchError, match="floating-point Tensor, got int"):
        loss_of((ids_of(),), lambda *_: 3)("output")


def test_weights_that_are_somewhere_else_are_refused_in_a_sentence() -> None:
    model = gpt2().to("meta")

    with pytest.raises(ProbeError, match="ordinary tensors of this process"), at_rest(model):
        pass


def test_examples_are_cut_from_keywords_and_positions_alike() -> None:
    model, ids = gpt2().eval(), ids_of()
    mask = torch.ones_like(ids)

    by_name = examples(model, {"input_ids": ids, "attention_mask": mask, "use_cache": False})
    by_place = examples(NanoGPT().eval(), (ids, ids))

    assert [each.keywords["input_ids"].tolist() for each in by_name] == [[row] for row in ids.tolist()]
    assert all(each.keywords["use_cache"] is False for each in by_name)
    assert [each.positional[1].tolist() for each in by_place] == [[row] for row in ids.tolist()]


def test_a_check_up_attributes_where_it_is_asked_to() -> None:
    model, ids = shaken(gpt2()), ids_of()
    batch = {"input_ids": ids, "labels": ids}

    plain, asked = examine(model, batch), examine(model, batch, attribution=True)

    assert plain.n_rows("attributions") == 0
    methods = set(asked.table("attributions")["method"])
    assert {"block_knock_out", "ledger", "cut_total", "gradient_share", "gain"} <= methods
    assert asked.n_rows("activations") == plain.n_rows("activations")


def test_a_check_up_says_what_could_not_be_attributed() -> None:
    from transformers import AlbertConfig, AlbertForMaskedLM

    config = AlbertConfig(
        vocab_size=61,
        embedding_size=16,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    ids = ids_of()

    recording = examine(AlbertForMaskedLM(config).eval(), {"input_ids": ids, "labels": ids}, attribution=True)

    told = " ".join(recording.manifest["not_measured"])
    assert "Not attributed (gradient shares): Expected a block with weights of its own" in told
    assert "The ledger by branch does not apply" in told
