"""Biases that drift, agree, or do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import rheoscope
import torch
from rheoscope.diagnostics.bias_terms import bias_drift, bias_gradients, redundant_biases, without_gradient
from rheoscope.diagnostics.coherence import bias_coherence
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer

STEPS = tuple(range(0, 400, 10))


def drifting(made: Any, size: Callable[[float], float], cosine: float = 0.999) -> Tables:
    """Return a run in which the bias of block 2 has the RMS that a function of progress gives; the others stay at 0.01."""
    recording = made(4, steps=STEPS)
    rows = recording.tables["parameters"]
    biases = rows.assign(
        role="bias",
        name=rows["name"].str.replace("weight", "bias"),
        direction_cosine=cosine,
        weight_rms=[
            size(step / STEPS[-1]) if block == 2 and branch == "mlp" else 0.01
            for step, block, branch in zip(rows["step"], rows["block"], rows["branch"], strict=True)
        ],
    )
    recording.tables["parameters"] = pd.concat([rows, biases], ignore_index=True)
    return Tables(recording.recording())


def test_a_bias_that_grows_one_way_is_remarked_on(made: Any) -> None:
    (finding,) = bias_drift(drifting(made, lambda t: 0.01 + 0.1 * t))

    assert (finding.code, finding.severity, finding.block) == ("bias-drift", "info", 2)
    assert finding.module_path == "blocks.0.2.mlp.bias"
    assert "1 of 8 biases" in finding.sentence
    assert finding.evidence.observed == pytest.approx(0.11 / (0.01 + 0.1 * 200 / 390), rel=1e-6)


def test_biases_that_turn_or_settle_do_not_drift(made: Any) -> None:
    assert bias_drift(drifting(made, lambda t: 0.01 + 0.1 * t, cosine=0.5)) == []
    assert bias_drift(drifting(made, lambda t: min(0.05, 0.01 + t))) == []


def check_up(tokens: torch.Tensor | None = None, **fields: Any) -> Tables:
    """Return the check-up of a reference transformer, on random tokens unless others are given."""
    model = ReferenceTransformer(Architecture(n_blocks=4, width=32, n_heads=2, context=16, **fields), seed=0)
    random = torch.randint(256, (4, 16), generator=torch.Generator().manual_seed(0))
    return Tables(rheoscope.examine(model, random if tokens is None else tokens))


def test_the_biases_of_keys_alone_receive_no_gradient() -> None:
    assert set(without_gradient(check_up())) == {f"blocks.{block}.attention.key.bias" for block in range(4)}
    (finding,) = redundant_biases(check_up())
    assert (finding.code, finding.severity) == ("redundant-bias", "info")


def test_a_model_without_biases_has_none_that_do_nothing() -> None:
    assert redundant_biases(check_up(biases=False)) == []


def test_the_mean_of_a_bias_before_a_layernorm_receives_no_gradient() -> None:
    architecture = Architecture(n_blocks=2, width=32, n_heads=2, context=16, norm_placement="reordered")
    model = ReferenceTransformer(architecture, seed=0).double()
    tokens = torch.randint(256, (4, 16), generator=torch.Generator().manual_seed(0))
    model(tokens, tokens).loss.backward()
    gradient = model.blocks[0].mlp.down.bias.grad  # type: ignore[union-attr]

    assert gradient is not None
    assert float(gradient.mean().abs()) < 1e-9 * float(gradient.abs().max())
    sentences = [finding.sentence for finding in redundant_biases(check_up(norm_placement="reordered"))]
    assert any("8 output biases stand right before a LayerNorm" in sentence for sentence in sentences)


def test_tokens_that_are_all_the_same_agree_on_every_bias() -> None:
    tables = check_up(torch.full((4, 16), 7))
    (finding,) = bias_gradients(tables)

    assert (finding.code, finding.severity) == ("bias-gradient-coherence", "info")
    # n tokens whose gradients are one direction have n times the energy that random ones would.
    assert finding.evidence.observed == pytest.approx(64, rel=0.2)


def test_tokens_at_random_are_not_mentioned() -> None:
    assert bias_coherence(check_up())["coherence"].max() < 4
    assert bias_gradients(check_up()) == []
