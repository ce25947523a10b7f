"""Hidden layers, final norms and logits: found by dataflow, and measured as autograd has them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import NanoGPT, PostNormEncoder, batch_of, gpt2, loss_of
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.discovery import discover
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording
from rheoscope.probes.sites import layout
from torch import Tensor, nn

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IDS = torch.randint(3, 60, (3, 8), generator=torch.Generator().manual_seed(0))


def hugging_face(name: str, **sizes: Any) -> nn.Module:
    """Return one of Hugging Face's models with random weights."""
    import transformers

    model = getattr(transformers, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        made: nn.Module = model(model.config_class(**sizes))
    return made


def mean_square_root(tensor: Tensor) -> float:
    """Return the RMS in float64."""
    return float(tensor.detach().double().square().mean().sqrt())


def recorded(model: nn.Module, batch: dict[str, Tensor], folder: Path) -> Recording:
    """Record one step."""
    with attach(model, every=1, folder=folder, strict=True) as probe:
        loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        probe.step(loss)
    return probe.recording


def rms_of(recording: Recording, site: str, direction: str) -> list[float]:
    """Return the RMS of a site by depth."""
    rows = recording.table("activations")
    return rows[(rows["site"] == site) & (rows["direction"] == direction)].sort_values("depth")["rms"].tolist()


def expected(model: nn.Module, modules: list[nn.Module], batch: dict[str, Tensor]) -> tuple[list[float], list[float]]:
    """Return the RMS of what some modules give, and of the loss's gradient with respect to it, by autograd."""
    seen: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda *call: seen.append(call[2])) for module in modules]
    loss = loss_of(model, batch)
    for hook in hooks:
        hook.remove()
    return [mean_square_root(t) for t in seen], [mean_square_root(g) for g in torch.autograd.grad(loss, seen)]


CASES = {
    "written by hand": (NanoGPT, lambda m: ([b.mlp[1] for b in m.blocks], [m.norm], [m.head])),
    "post-norm": (PostNormEncoder, lambda m: ([], [], [m.head])),
    "GPT-2": (gpt2, lambda m: ([b.mlp.act for b in m.transformer.h], [m.transformer.ln_f], [m.lm_head])),
}


@pytest.mark.parametrize("name", CASES)
def test_hidden_layer_final_norm_and_logits_are_those_of_autograd(name: str, tmp_path: Path) -> None:
    make, named = CASES[name]
    model = make().train()
    batch = batch_of(model)

    recording = recorded(model, batch, tmp_path / "run")

    for site, modules in zip(("hidden", "final_norm", "logits"), named(model), strict=True):
        if modules:
            forward, backward = expected(model, modules, batch)
            assert rms_of(recording, site, "forward") == pytest.approx(forward, rel=1e-6)
            assert rms_of(recording, site, "backward") == pytest.approx(backward, rel=1e-5)
    if name == "post-norm":
        assert rms_of(recording, "final_norm", "forward") == []


def test_the_hidden_layer_is_seen_before_the_dropout_on_it(tmp_path: Path) -> None:
    class Dropped(NanoGPT):
        def __init__(self) -> None:
            super().__init__()
            for block in self.blocks:
                block.mlp.insert(2, nn.Dropout(0.5))

    model = Dropped().train()

    rows = recorded(model, batch_of(model), tmp_path / "run").table("activations")

    hidden = rows[(rows["site"] == "hidden") & (rows["direction"] == "forward")]
    assert hidden["module_path"].tolist() == ["blocks.0.mlp.1", "blocks.1.mlp.1"]
    assert (hidden["zero_share"] < 0.01).all()


def test_capped_logits_are_seen_as_the_model_returns_them(tmp_path: Path) -> None:
    sizes = SIZES | SPECIAL | {"num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 0.01}
    model = hugging_face("Gemma2ForCausalLM", **sizes).train()

    recording = recorded(model, {"input_ids": IDS, "labels": IDS}, tmp_path / "run")

    rows = recording.table("activations")
    logits = rows[rows["site"] == "logits"]
    with torch.no_grad():
        given = model(input_ids=IDS).logits
    assert logits["module_path"].tolist() == ["", ""]
    assert logits["direction"].tolist() == ["forward", "backward"]
    assert logits["absmax"].iloc[0] == pytest.approx(float(given.abs().max()), rel=1e-6)
    assert logits["n"].tolist() == [given.numel()] * 2


ZOO: dict[str, tuple[str, dict[str, Any], list[tuple[bool, bool, bool]]]] = {
    # type -> sizes; for each stack, whether hidden layers, final norm and logits are seen
    "GPT2LMHeadModel": ("ids", {"vocab_size": 61, "n_layer": 2, "n_head": 2, "n_embd": 16}, [(True, True, True)]),
    "LlamaForCausalLM": ("ids", SIZES | SPECIAL, [(True, True, True)]),
    "BertForMaskedLM": ("ids", SIZES, [(True, False, True)]),
    "BertModel": ("ids", SIZES, [(True, False, False)]),
    "T5ForConditionalGeneration": (
        "labels",
        {
            "vocab_size": 61,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 40,
            "num_layers": 2,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        },
        [(True, True, False), (True, True, True)],
    ),
    "Olmo2ForCausalLM": ("ids", SIZES | SPECIAL, [(True, True, True)]),
    "GPTNeoXForCausalLM": ("ids", SIZES | SPECIAL, [(True, True, True)]),
    "MixtralForCausalLM": (
        "ids",
        SIZES | SPECIAL | {"num_key_value_heads": 1, "num_local_experts": 4},
        [(False, True, True)],
    ),
    "ViTForImageClassification": (
        "pixels",
        {**SIZES, "vocab_size": None, "image_size": 16, "patch_size": 4, "num_labels": 5},
        [(True, True, True)],
    ),
}


def found_in(name: str) -> Anatomy:
    """Return the anatomy of one of the types above."""
    kind, sizes, _ = ZOO[name]
    model = hugging_face(name, **{key: value for key, value in sizes.items() if value is not None}).eval()
    batch = {"ids": {"input_ids": IDS}, "labels": {"input_ids": IDS, "labels": IDS}}.get(kind)
    return discover(model, {"pixel_values": torch.randn(2, 3, 16, 16)} if batch is None else batch)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.filterwarnings("ignore")
def test_points_are_found_in_models_of_the_zoo_and_survive_json(name: str) -> None:
    anatomy = found_in(name)

    found = []
    for stack in anatomy.stacks:
        assert stack.outlet is not None
        feed_forward = [b for b in stack.branches if b.kind in ("mlp", "moe", "parallel")]
        hidden = all(b.hidden is not None and b.hidden.point is not None for b in feed_forward)
        found.append((hidden, stack.outlet.norm is not None, stack.outlet.logits is not None))
    assert found == ZOO[name][2]
    assert Anatomy.from_json(json.loads(json.dumps(anatomy.to_json()))) == anatomy


@pytest.mark.filterwarnings("ignore")
def test_what_is_not_seen_is_said() -> None:
    mixture, headless = layout(found_in("MixtralForCausalLM")), layout(found_in("BertModel"))

    assert (
        "The hidden layer of 2 moe branches of stack 0, first in block 0, is not measured: each expert has one of its own."
        in mixture.not_measured
    )
    assert any(sentence.startswith("No logits are measured") for sentence in headless.not_measured)


def test_an_anatomy_from_before_these_sites_still_loads() -> None:
    model = NanoGPT()
    value = json.loads(json.dumps(discover(model, batch_of(model)).to_json()))
    for stack in value["stacks"]:
        del stack["outlet"]
        for branch in stack["branches"]:
            del branch["direct_norms"]
            if branch["hidden"] is not None:
                del branch["hidden"]["point"]

    anatomy = Anatomy.from_json(value)

    assert anatomy.stacks[0].outlet is None
    assert {site.site for site in layout(anatomy).sites} == {"state", "write", "branch_output", "branch_input"}
    assert any("this anatomy does not name them" in sentence for sentence in layout(anatomy).not_measured)


def test_norms_that_stand_right_between_two_recorded_tensors_are_told() -> None:
    pre, post = (discover(model, batch_of(model)) for model in (NanoGPT(), NanoGPT("post")))
    parallel = discover(NanoGPT("parallel"), batch_of(NanoGPT()))

    assert [branch.direct_norms for branch in pre.branches] == [("input",)] * 4
    assert [branch.direct_norms for branch in post.branches] == [("stream",)] * 4
    assert [branch.direct_norms for branch in parallel.branches] == [("input",)] * 2
