"""The skip path alone, against a model whose branches pass no gradient at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.check_up import examine
from torch import Tensor

POST = Architecture(n_blocks=3, width=16, n_heads=2, context=8, norm_placement="post", init="xavier")
TOKENS = torch.randint(256, (2, 8), generator=torch.Generator().manual_seed(0))


def measured(architecture: Architecture) -> dict[int, float]:
    """Return depth -> skip transmission, as a check-up tells it."""
    rows = examine(ReferenceTransformer(architecture, seed=0), TOKENS).table("identities")
    found = rows[rows["check"] == "skip_transmission"]
    return dict(zip(found["depth"], found["observed"], strict=True))


def with_branches_detached() -> list[float]:
    """Return the gain to every state, written out for the post-norm reference transformer, in float64."""
    model = ReferenceTransformer(POST, seed=0).double()
    x: Tensor = model.token_embedding(TOKENS) + model.position_embedding(torch.arange(TOKENS.shape[1]))
    states = [x]
    for block in model.blocks:
        x = block.attention_post(x + block.attention(x).detach())
        states.append(x)
        x = block.mlp_post(x + block.mlp(x).detach())
        states.append(x)
    logits = model.head(x)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    gradients = torch.autograd.grad(loss, states)
    return [float(gradient.norm() / gradients[-1].norm()) for gradient in gradients]


def test_transmission_is_that_of_a_model_whose_branches_pass_no_gradient() -> None:
    found = measured(POST)

    assert [found[depth] for depth in range(7)] == pytest.approx(with_branches_detached(), rel=1e-4)
    assert found[1] < 0.9


@pytest.mark.parametrize("placement", ["pre", "double", "reordered"])
def test_a_stream_without_norms_on_it_passes_everything_on(placement: str) -> None:
    found = measured(replace(POST, norm_placement=placement))

    assert found == dict.fromkeys(range(7), 1.0)
