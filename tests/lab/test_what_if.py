"""What-if on models of other people's: the anatomy that was asked for, the model untouched, and no claim beyond its grounds."""

from __future__ import annotations

import copy
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rheoscope as rs
import torch
from oracles import NanoGPT
from rheoscope.lab.fresh import FROM_FACTORY, REDRAWN, redrawn
from rheoscope.lab.what_if import ABLATION, FROZEN, NOT_TRAINED, ONE_BATCH, what_if
from rheoscope.probes.discovery.dissect import discover
from rheoscope.probes.errors import LabError
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, Olmo2Config, Olmo2ForCausalLM

TOKENS = torch.randint(61, (2, 8), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": TOKENS, "labels": TOKENS}
QUICK: dict[str, Any] = {"n_steps": 12, "rates": (1e-3, 1e-2), "seeds": (0, 1)}


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """Return a small GPT-2 whose gains and biases are not those of an init."""
    torch.manual_seed(seed)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=61, n_positions=16, bos_token_id=0, eos_token_id=0)
    return spoiled(GPT2LMHeadModel(config))


def olmo2() -> Olmo2ForCausalLM:
    """Return a small OLMo 2."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 61}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return spoiled(Olmo2ForCausalLM(Olmo2Config(**sizes, **heads, pad_token_id=0, bos_token_id=0, eos_token_id=0)))


def spoiled(model: Any) -> Any:
    """Move every parameter."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


def losses(comparison: rs.Comparison) -> list[float]:
    """Return the losses on the weights given: as it is, and changed."""
    return [float(recording.table("steps")["loss"].iloc[0]) for recording in list(comparison.recordings.values())[:2]]


def gpt2_by_hand(model: GPT2LMHeadModel, kind: str, norm: Any = None) -> Tensor:
    """Return the loss of GPT-2's own parts put together as ``kind`` says."""
    body = model.transformer
    x = body.wte(TOKENS) + body.wpe(torch.arange(TOKENS.shape[1]))
    for block in body.h:
        for own, branch in ((block.ln_1, lambda h, b=block: b.attn(h)[0]), (block.ln_2, block.mlp)):
            n = own if norm is None else partial(norm, own)
            x = n(x + branch(x)) if kind == "post" else x + branch(n(x))
    x = x if kind == "post" else (body.ln_f(x) if norm is None else norm(body.ln_f, x))
    return functional.cross_entropy(model.lm_head(x)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())


def rms_of(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Return what an RMSNorm with the parameters of a LayerNorm gives."""
    return functional.rms_norm(x, (32,), norm.weight, norm.eps) + norm.bias


def test_gpt2_from_pre_to_post_has_the_loss_of_its_parts_put_together_so() -> None:
    comparison = what_if(gpt2(), BATCH, norm_placement="post", n_steps=0)

    before, after = losses(comparison)
    assert before == pytest.approx(float(gpt2_by_hand(gpt2(), "pre").detach()), abs=1e-6)
    assert after == pytest.approx(float(gpt2_by_hand(gpt2(), "post").detach()), abs=1e-6)
    assert [recording.anatomy.placement for recording in comparison.recordings.values()] == ["pre", "post"]


def test_gpt2_from_layernorm_to_rmsnorm_keeps_gains_and_biases() -> None:
    comparison = what_if(gpt2(), BATCH, norm_kind="rmsnorm", n_steps=0)

    expected = float(gpt2_by_hand(gpt2(), "pre", rms_of).detach())
    assert losses(comparison)[1] == pytest.approx(expected, abs=1e-6)
    assert [recording.anatomy.norm_kind for recording in comparison.recordings.values()] == ["layernorm", "rmsnorm"]


def test_gpt2_without_biases_is_gpt2_with_biases_of_zero() -> None:
    model = gpt2()
    comparison = what_if(model, BATCH, biases=False, n_steps=0)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        expected = float(model(**BATCH).loss)
    assert losses(comparison)[1] == pytest.approx(expected, abs=1e-6)
    assert FROZEN.format(8) in comparison.notes  # of its 8 projections: their modules ask for one


def test_olmo2_without_qk_norm_is_olmo2_with_identities_there() -> None:
    model = olmo2()
    comparison = what_if(model, BATCH, qk_norm=False, n_steps=0)

    for layer in model.model.layers:
        layer.self_attn.q_norm = layer.self_attn.k_norm = nn.Identity()
    expected = float(model(**BATCH).loss.detach())
    assert losses(comparison)[1] == pytest.approx(expected, abs=1e-6)
    kinds = [recording.anatomy.branches[0].attention.qk_norm for recording in comparison.recordings.values()]  # type: ignore[union-attr]
    assert kinds == ["rmsnorm", "none"]


def test_a_hand_written_model_is_asked_the_same() -> None:
    torch.manual_seed(0)
    model = NanoGPT()

    comparison = rs.what_if(model, (TOKENS, TOKENS), norm_placement="post", skip_scale=2.0, n_steps=0)

    changed = list(comparison.recordings.values())[1].anatomy
    assert changed.placement == "post"
    assert {branch.scale for branch in changed.branches} == {2.0}


def test_the_model_given_is_left_bit_identical() -> None:
    model = gpt2().train()
    model.transformer.h[1].eval()
    model.lm_head.weight.grad = gradient = torch.ones_like(model.lm_head.weight)
    hook = model.register_forward_hook(lambda *_: None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    flags = [module.training for module in model.modules()]
    children = [name for name, _ in model.named_modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    states = torch.get_rng_state(), random.getstate()

    what_if(model, BATCH, norm_placement="post", biases=False, **QUICK)

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert [module.training for module in model.modules()] == flags
    assert [name for name, _ in model.named_modules()] == children
    after = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    assert after == hooks
    assert model.lm_head.weight.grad is gradient
    assert bool((gradient == 1).all())
    assert model.transformer.wpe.weight.grad is None
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert torch._C._len_torch_function_stack() == 0
    hook.remove()


def test_both_are_retrained_and_the_notes_say_what_that_tells(tmp_path: Path) -> None:
    comparison = what_if(gpt2(), BATCH, norm_kind="rmsnorm", **QUICK)

    variants = ["as it is", "changed: RMSNorm"]
    groups = ["on the weights given", "retrained from fresh weights"]
    assert comparison.labels == [f"{variant}, {group}" for group in groups for variant in variants]
    assert [comparison.variant(label) for label in comparison.labels] == variants * 2
    assert [comparison.group(label) for label in comparison.labels] == [group for group in groups for _ in variants]
    assert list(comparison.at_init) == comparison.labels[2:]
    assert comparison.notes[0] == ABLATION
    assert {REDRAWN, ONE_BATCH} <= set(comparison.notes)
    found = [note for note in comparison.notes if note.startswith("Retrained, ")]
    assert [note.split(":")[0] for note in found] == ["Retrained, as it is", "Retrained, changed"]
    assert all("at its best learning rate" in note for note in found)
    for label in comparison.labels[2:]:
        recorded = comparison.recordings[label].table("steps")["loss"]
        assert len(recorded) == QUICK["n_steps"]
        assert recorded.iloc[-1] < recorded.iloc[0]
    page = rs.write_report(comparison, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "A claim about the architecture comes only from the retrained copies." in page


def test_without_training_nothing_is_claimed() -> None:
    comparison = what_if(NanoGPT(), (TOKENS, TOKENS), norm_placement="post", n_steps=0)

    assert comparison.notes == (ABLATION, NOT_TRAINED)
    assert len(comparison.labels) == 2


def test_as_it_is_retrained_is_the_plain_training_of_a_fresh_model() -> None:
    batches = [(tokens, tokens) for tokens in torch.randint(61, (3, 2, 8), generator=torch.Generator().manual_seed(4))]
    comparison = what_if(
        NanoGPT(),
        batches[0],
        norm_placement="post",
        n_steps=5,
        rates=(1e-2,),
        seeds=(7,),
        batches=batches,
        make=NanoGPT,
    )

    torch.manual_seed(7)
    model = NanoGPT()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, (0.9, 0.95), weight_decay=0.0)
    expected = []
    for step in range(5):
        loss = model(*batches[step % 3])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(float(loss.detach()))
    recorded = comparison.recordings["as it is, retrained from fresh weights"].table("steps")["loss"]
    assert list(recorded) == pytest.approx(expected, rel=1e-6)
    assert FROM_FACTORY in comparison.notes
    assert ONE_BATCH not in comparison.notes
    assert any("one seed does not tell it from chance" in note for note in comparison.notes)


def test_both_variants_begin_with_the_same_fresh_weights() -> None:
    comparison = what_if(NanoGPT(), (TOKENS, TOKENS), norm_kind="rmsnorm", **QUICK)

    one, other = (comparison.at_init[label].table("parameters") for label in comparison.labels[2:])
    merged = one.merge(other, on="parameter" if "parameter" in one else "name", suffixes=("", "_changed"))
    assert len(merged) == len(one) == len(other)
    assert merged["weight_rms"].tolist() == merged["weight_rms_changed"].tolist()


def test_a_run_that_diverges_is_a_result() -> None:
    comparison = what_if(NanoGPT(), (TOKENS, TOKENS), norm_placement="none", n_steps=30, rates=(1e-3, 1e30), seeds=(0,))

    assert any("1 of 2 rates diverged" in note for note in comparison.notes)


def test_fresh_weights_have_the_spread_of_the_given_ones_and_none_of_their_values() -> None:
    model = gpt2()
    anatomy = discover(model, BATCH)
    torch.manual_seed(0)

    fresh = redrawn(model, anatomy)

    given = dict(model.named_parameters())
    for name, parameter in fresh.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif ".ln_" in name:
            assert bool((parameter == 1).all())
        else:
            assert not torch.equal(parameter, given[name])
            spread = float(given[name].detach().std())
            assert float(parameter.detach().std()) == pytest.approx(spread, rel=0.1)
    assert fresh.lm_head.weight is fresh.transformer.wte.weight


def test_a_factory_of_another_model_is_refused() -> None:
    with pytest.raises(LabError, match=r"make\(\) to return a model like the one given"):
        what_if(NanoGPT(), (TOKENS, TOKENS), norm_placement="post", make=partial(NanoGPT, n_blocks=3), **QUICK)


@pytest.mark.parametrize("options", [{"rates": ()}, {"seeds": ()}, {"n_steps": -1}, {"rates": (-1.0,)}])
def test_training_that_cannot_be_is_refused_before_any_work(options: dict[str, Any]) -> None:
    with pytest.raises(LabError, match="Expected n_steps"):
        what_if(NanoGPT(), (TOKENS, TOKENS), norm_placement="post", **{**QUICK, **options})


def test_a_model_that_cannot_be_copied_is_refused_with_the_reason() -> None:
    model = NanoGPT()
    model.kept = model.head.weight * 2

    with pytest.raises(LabError, match=r"copy\.deepcopy"):
        what_if(model, (TOKENS, TOKENS), norm_placement="post", n_steps=0)


def test_a_changed_model_trains_on_after_it_was_copied() -> None:
    comparison = what_if(copy.deepcopy(gpt2()), BATCH, norm_placement="double", **QUICK)

    assert comparison.recordings[comparison.labels[3]].anatomy.placement == "double"
