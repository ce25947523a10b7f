"""Directions of biases without a gradient, against autograd on the model itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rheoscope.diagnostics.redundant_biases import KEY, MEAN, STREAM_MEAN, redundant_biases
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.check_up import examine

TINY = Architecture(n_blocks=3, width=16, n_heads=2, context=12, vocabulary=61, init="xavier")
TOKENS = torch.randint(61, (2, 11), generator=torch.Generator().manual_seed(0))


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the gradients of a loss in float64, by parameter."""
    exact = model.double()
    exact.zero_grad()
    exact(TOKENS[:, :-1], TOKENS[:, 1:]).loss.backward()
    return {name: p.grad for name, p in exact.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("changes", "whys"),
    [
        ({"norm_placement": "pre"}, {KEY, STREAM_MEAN}),
        ({"norm_placement": "post"}, {KEY, MEAN}),
        ({"norm_placement": "double"}, {KEY, MEAN}),
        ({"norm_placement": "reordered"}, {KEY, MEAN}),
        ({"norm_placement": "pre", "norm_kind": "rmsnorm"}, {KEY}),
        ({"norm_placement": "post", "norm_kind": "rmsnorm"}, {KEY}),
        ({"norm_placement": "post", "qk_norm": True}, {MEAN}),
        ({"norm_placement": "pre", "biases": False}, set()),
    ],
)
def test_what_is_called_redundant_has_no_gradient_and_the_rest_has(changes: dict[str, object], whys: set[str]) -> None:
    model = ReferenceTransformer(replace(TINY, **changes), seed=0)  # type: ignore[arg-type]
    recording = examine(model, TOKENS, lambda output, batch: output.logits[:, :-1].logsumexp(-1).square().mean())

    found = redundant_biases(Tables(recording))

    assert set(found["why"]) == whys
    exact = gradients(model)
    for row in found.to_dict("records"):
        gradient = exact[row["bias"]]
        if row["why"] == KEY:
            assert float(gradient.abs().max()) < 1e-12
            assert row["redundant"] == row["size"] == gradient.numel()
            assert row["measured"] < 1e-4
        else:
            assert row["redundant"] == 1
            assert abs(float(gradient.mean())) < 1e-12
        assert row["why"] == KEY or float(gradient.abs().max()) > 1e-6
    named = set(found["bias"])
    ends = [name for name in exact if name.endswith(("output.bias", "down.bias")) and name not in named]
    assert all(abs(float(exact[name].mean())) > 1e-9 for name in ends)


def test_one_bias_of_queries_keys_and_values_holds_a_third_that_is_redundant() -> None:
    transformers = pytest.importorskip("transformers")
    size = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 61, "n_positions": 16}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**size, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    recording = examine(model, {"input_ids": TOKENS, "labels": TOKENS})

    found = redundant_biases(Tables(recording))

    fused = found[found["why"] == KEY]
    assert fused[["size", "redundant"]].to_numpy().tolist() == [[48, 16], [48, 16]]
    model.double().zero_grad()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    thirds = model.transformer.h[0].attn.c_attn.bias.grad.view(3, 16).abs().amax(1)
    assert [bool(value < 1e-12) for value in thirds] == [False, True, False]
