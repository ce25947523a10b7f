"""The closed forms, fed from recordings alone, against transformers measured at init by autograd."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rheoscope.diagnostics.expected import Prediction, Refusal, theory_of_recording
from rheoscope.diagnostics.freshness import before_step, started_fresh
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.check_up import examine
from rheoscope.probes.recording import Recording
from torch import Tensor, nn

LENGTH, BATCH, VOCABULARY, WIDTH = 32, 4, 1000, 256
BASE = Architecture(12, WIDTH, 4, vocabulary=VOCABULARY, context=LENGTH, norm_kind="rmsnorm", biases=False)
PLACEMENTS: dict[str, dict[str, Any]] = {
    "pre": {},
    "post": {"norm_placement": "post"},
    "double": {"norm_placement": "double"},
    # As OLMo 2 has it: without a norm on queries and keys its logits grow with depth, see test_theory.
    "reordered": {"norm_placement": "reordered", "qk_norm": True},
    "parallel": {"is_parallel": True},
}
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Measured:
    """RMS of the state behind every block and of the loss's gradient there, the embedding first; means over seeds."""

    rms: np.ndarray
    gradient: np.ndarray


def batch(seed: int) -> tuple[Tensor, Tensor]:
    tokens, targets = torch.randint(VOCABULARY, (2, BATCH, LENGTH), generator=torch.Generator().manual_seed(seed))
    return tokens, targets


def measured(architecture: Architecture) -> Measured:
    """Return what autograd gives at the states behind the blocks, without any of our probes."""
    found = []
    for seed in SEEDS:
        model, states = ReferenceTransformer(architecture, seed=seed), []

        def keep(x: Tensor, states: list[Tensor] = states) -> None:
            x.retain_grad()
            states.append(x)

        model.blocks[0].register_forward_pre_hook(lambda module, args, keep=keep: keep(args[0]))
        for block in model.blocks:
            block.register_forward_hook(lambda module, args, output, keep=keep: keep(output))
        loss = model(*batch(seed)).loss
        assert loss is not None
        loss.backward()
        found.append([[float(t.detach().square().mean()) for t in (x, x.grad)] for x in states if x.grad is not None])
    rms, gradient = np.sqrt(np.mean(found, axis=0)).T
    return Measured(rms, gradient)


def predicted(architecture: Architecture, seed: int = 0) -> Prediction:
    found = theory_of_recording(Tables(examine(ReferenceTransformer(architecture, seed=seed), batch(seed))))
    assert isinstance(found, Prediction), found
    return found


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_states_and_absolute_gradients_are_those_of_the_closed_form(placement: str, activation: str) -> None:
    architecture = replace(BASE, **PLACEMENTS[placement], activation=activation)

    theory, truth = predicted(architecture), measured(architecture)

    frame = theory.frame if architecture.is_parallel else theory.frame.iloc[::2]
    assert theory.is_absolute
    assert frame["rms"].to_numpy() == pytest.approx(truth.rms, rel=0.05)
    assert frame["gradient"].to_numpy() == pytest.approx(truth.gradient, rel=0.12)


@pytest.mark.parametrize(
    "choices",
    [
        {"norm_placement": "post", "depth_scaling": "deepnorm", "init": "xavier"},
        {"depth_scaling": "gpt2", "init": "xavier", "activation": "silu"},
        {"norm_placement": "double", "norm_kind": "layernorm", "biases": True, "width": 128, "init_std": 0.03},
        {"norm_placement": "reordered"},
    ],
    ids=["deepnorm", "gpt2", "layernorm with biases", "reordered without qk-norm"],
)
def test_other_designs_lie_within_the_stated_bands(choices: dict[str, Any]) -> None:
    architecture = replace(BASE, n_blocks=6, **choices)

    theory, truth = predicted(architecture), measured(architecture)

    frame = theory.frame.iloc[::2]
    assert np.abs(np.log(frame["rms"] / truth.rms)).max() < np.log(theory.rms_band)
    assert np.abs(np.log(frame["gradient"] / truth.gradient)).max() < np.log(theory.gradient_band)


def test_gradients_start_at_the_heads_weights() -> None:
    # Mean cross-entropy sends s_h / N RMS a coordinate to what the head reads; post-norm reads the last state itself.
    architecture = replace(BASE, n_blocks=2, norm_placement="post", init_std=0.05)

    last = predicted(architecture).frame["gradient"].iloc[-1]

    assert last == pytest.approx(0.05 / (BATCH * LENGTH), rel=0.01)


def test_larger_embeddings_give_flat_gradients() -> None:
    # Takase et al. 2023: embeddings 50 times as large bring the gradients of first and last state within a tenth.
    model = ReferenceTransformer(replace(BASE, n_blocks=4, activation="relu"), seed=0)
    with torch.no_grad():
        model.token_embedding.weight *= 50
        model.position_embedding.weight *= 50
    tables = Tables(examine(model, batch(0)))

    theory = theory_of_recording(tables)

    assert isinstance(theory, Prediction)
    gradients = tables.gradient_profile().sort_values("depth")["rms"]
    assert theory.frame["gradient"].to_numpy() == pytest.approx(gradients.to_numpy(), rel=0.04)
    assert gradients.iloc[0] / gradients.iloc[-1] < 1.1


class DividedNorm(nn.Module):
    """LayerNorm-scaling: a norm whose output is divided by the root of the block's number."""

    def __init__(self, norm: nn.Module, number: int) -> None:
        super().__init__()
        self.norm, self.factor = norm, number**-0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.norm(x)


def test_norms_divided_by_the_root_of_the_depth_grow_like_its_logarithm() -> None:
    model = ReferenceTransformer(replace(BASE, init="xavier", activation="relu", width=128), seed=0)
    for number, block in enumerate(model.blocks, start=1):
        block.attention_in = DividedNorm(block.attention_in, number)
        block.mlp_in = DividedNorm(block.mlp_in, number)
    tables = Tables(examine(model, batch(0)))

    theory = theory_of_recording(tables)

    assert isinstance(theory, Prediction), theory
    rms = tables.state_rms().sort_values("depth")["rms"]
    assert theory.frame["rms"].to_numpy() == pytest.approx(rms.to_numpy(), rel=0.06)
    assert rms.iloc[-1] < 2.2  # 3.2 without the division


@cache
def small(**choices: Any) -> Recording:
    return examine(ReferenceTransformer(replace(BASE, n_blocks=4, width=64, **choices), seed=0), batch(0))


def refusal(recording: Recording) -> str:
    found = theory_of_recording(Tables(recording))
    assert isinstance(found, Refusal), found
    return found.reason


def test_trained_weights_are_no_longer_independent() -> None:
    tables = {name: small().table(name) for name in ("activations", "attention", "tokens", "parameters")}
    tables["parameters"].loc[tables["parameters"]["role"] == "gain", "weight_rms"] = 0.9

    assert "trained" in refusal(Recording.from_tables({}, small().anatomy, tables))


def test_a_gain_that_its_first_update_moved_was_fresh_before() -> None:
    rows = small().table("parameters").assign(update_rms=1e-3)
    rows.loc[rows["role"] == "gain", "weight_rms"] = 1 - 1e-3

    assert started_fresh(rows)
    assert not started_fresh(rows.assign(update_rms=0.0))


def test_norms_tell_that_a_model_is_fresh_whose_biases_are_drawn_at_random() -> None:
    roles = ["gain", "norm_bias", "bias", "bias"] * 4
    rows = pd.DataFrame({"role": roles, "gradient_rms": 0.1, "update_rms": None})
    fresh = rows.assign(weight_rms=[1.0, 0.0, 0.05, 0.04] * 4)
    trained = rows.assign(weight_rms=[1.01, 0.01, 0.05, 0.04] * 4)

    assert started_fresh(fresh)
    assert not started_fresh(trained)
    assert not started_fresh(fresh.assign(gradient_rms=None))  # frozen: a trained model may have such


def test_weights_are_judged_as_they_were_before_a_first_update_that_is_large() -> None:
    rows = pd.DataFrame({"weight_rms": [0.05, 0.02, 0.5], "update_rms": [0.04, None, 0.4999], "n": [4096, 4096, 16]})

    before = before_step(rows)

    assert before.iloc[:2].tolist() == pytest.approx([0.03, 0.02])
    assert math.isnan(before.iloc[2])  # too few numbers to tell


def test_sharp_attention_is_refused() -> None:
    assert "attention is not near uniform" in refusal(small(init_std=0.4))


def test_without_attention_nothing_tells_that_it_is_uniform() -> None:
    tables = {name: small().table(name) for name in ("activations", "parameters", "tokens")}

    assert "attention was not recorded" in refusal(Recording.from_tables({}, small().anatomy, tables))


def test_attention_over_a_part_of_what_it_may_see_is_refused() -> None:
    tables = {name: small().table(name) for name in ("activations", "parameters", "tokens", "attention")}
    tables["attention"]["entropy"] -= 0.5  # as a window of half the tokens has it

    assert "attention is not even" in refusal(Recording.from_tables({}, small().anatomy, tables))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "moe"}, "of the kind moe"),
        ({"is_gated_skip": True}, "gated by the batch"),
        ({"placement": "unknown"}, "is unknown"),
        ({"parameters": ("blocks.0.mlp.mystery",)}, "a parameter of unknown effect, blocks.0.mlp.mystery"),
    ],
)
def test_a_branch_beyond_the_closed_forms_is_named(change: dict[str, Any], words: str) -> None:
    recording = small()
    stack = recording.anatomy.stacks[0]
    branches = (stack.branches[0], replace(stack.branches[1], **change), *stack.branches[2:])
    anatomy = replace(recording.anatomy, stacks=(replace(stack, branches=branches),))
    tables = {name: recording.table(name) for name in ("activations", "parameters", "tokens", "attention")}

    assert words in refusal(Recording.from_tables({}, anatomy, tables))


def test_an_activation_that_the_hidden_layer_contradicts_is_refused() -> None:
    recording = small()
    tables = {name: recording.table(name) for name in ("activations", "parameters", "tokens", "attention")}
    tables["activations"].loc[tables["activations"]["site"] == "hidden", "rms"] *= 2

    assert "the hidden layer of the MLP in block 0" in refusal(Recording.from_tables({}, recording.anatomy, tables))


def test_another_loss_leaves_states_predicted_and_gradients_not() -> None:
    model = ReferenceTransformer(replace(BASE, n_blocks=4, width=64), seed=0)

    found = theory_of_recording(Tables(examine(model, batch(0)[0], lambda output, _: output.logits.square().sum())))

    assert isinstance(found, Prediction)
    assert found.frame["gradient"].isna().all()
    assert found.frame["rms"].notna().all()
