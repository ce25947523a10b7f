"""Usefulness of blocks: against hooks that zero a write, against captum's layer methods, and on blocks that do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attribution_cases import DESIGNS, TINY, ids_of, shaken
from oracles import VOCABULARY, NanoGPT, gpt2
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.attribution import usefulness
from rheoscope.probes.errors import ProbeError
from torch import Tensor, nn
from torch.nn import functional


def zeroed(model: nn.Module, modules: list[nn.Module], run: Callable[[], float]) -> float:
    """Return what ``run`` gives with the outputs of modules, or their first tensor, set to zero by hooks."""

    def zero(_: nn.Module, __: Any, output: Any) -> Any:
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    handles = [module.register_forward_hook(zero) for module in modules]
    try:
        return run()
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("design", DESIGNS, ids=lambda d: "-".join(map(str, d.values())))
def test_a_knock_out_equals_a_hook_that_zeroes_the_branch(design: dict[str, Any]) -> None:
    ids = ids_of()
    model = shaken(ReferenceTransformer(Architecture(**TINY | design), seed=0))

    def loss() -> float:
        with torch.no_grad():
            return float(model(ids, ids).loss)

    found = usefulness(model, (ids, ids))

    blocks = found.by_block("block_knock_out")
    for k, block in enumerate(model.blocks):
        # Under double and reordered norms the norm behind the branch gives what is added.
        parts = [
            getattr(block, f"{name}_out", None)
            if isinstance(getattr(block, f"{name}_out", None), nn.Module)
            and design.get("norm_placement") in ("double", "reordered")
            else getattr(block, name)
            for name in ("attention", "mlp")
        ]
        assert blocks[0, k] == pytest.approx(zeroed(model, parts, loss) - loss(), abs=1e-5)


def test_each_reading_equals_what_captum_says_of_the_layers() -> None:
    from captum.attr import LayerFeatureAblation, LayerGradientXActivation

    ids = ids_of()
    model = shaken(NanoGPT(n_blocks=2))
    layers = [part for block in model.blocks for part in (block.attention, block.mlp)]

    def loss(tokens: Tensor) -> Tensor:
        logits = model(tokens)[:, :-1]
        return functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)

    frame = usefulness(model, (ids,)).to_frame()

    slopes = LayerGradientXActivation(loss, layers).attribute(ids)
    for layer, slope, kind, block in zip(layers, slopes, ["attention", "mlp"] * 2, [0, 0, 1, 1], strict=True):
        row = frame[(frame["block"] == block) & (frame["branch"] == kind)].set_index("method")["value"]
        assert row["gradient_x_activation"] == pytest.approx(float(slope.detach().sum()) / len(ids), rel=1e-4)
        mask = torch.zeros(1, 8, 16, dtype=torch.long)
        cost = LayerFeatureAblation(loss, layer).attribute(ids, layer_mask=mask)
        # captum gives every element what the whole mask does.
        each = cost.flatten(1)[:, 0]
        assert row["knock_out"] == pytest.approx(-float(each.detach().mean()), rel=1e-3, abs=1e-6)


def test_a_block_that_became_the_identity_is_ranked_last() -> None:
    model, ids = shaken(gpt2(n_blocks=4)), ids_of(4)
    with torch.no_grad():
        for projection in (model.transformer.h[1].attn.c_proj, model.transformer.h[1].mlp.c_proj):
            projection.weight.zero_()
            projection.bias.zero_()

    found = usefulness(model, {"input_ids": ids, "labels": ids})

    assert found.ranking[-1] == (0, 1)
    assert found.by_block("block_knock_out")[0, 1] == pytest.approx(0.0, abs=1e-6)
    assert found.by_block("angular_distance")[0, 1] == pytest.approx(0.0, abs=1e-3)


def test_examples_are_asked_one_by_one_where_they_can_be_told_apart() -> None:
    model, ids = shaken(gpt2(n_blocks=2)), ids_of(4)

    rows = usefulness(model, {"input_ids": ids, "labels": ids}).to_frame().set_index("method")

    alone = [
        usefulness(model, {"input_ids": one, "labels": one}).by_block("block_knock_out")[0, 1] for one in ids.split(1)
    ]
    row = rows.loc["block_knock_out"].iloc[1]
    assert row["value"] == pytest.approx(float(torch.tensor(alone).mean()), rel=1e-3, abs=1e-6)
    assert row["standard_error"] == pytest.approx(float(torch.tensor(alone).std()) / 2, rel=1e-3, abs=1e-6)


def test_examples_that_know_of_each_other_are_asked_together() -> None:
    class Mixing(NanoGPT):
        def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
            logits = super().forward(ids)
            return logits - logits.mean(0, keepdim=True)

    ids = ids_of()

    found = usefulness(shaken(Mixing()), (ids,))

    assert found.to_frame()["standard_error"].isna().all()
    assert "not told apart" in str(found)


def test_writes_that_nothing_takes_out_are_refused_in_a_sentence() -> None:
    class Hidden(nn.Module):
        """A stream whose branch is written out in the forward, without a module that ends it."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)
            self.weights = nn.ParameterList(nn.Parameter(0.1 * torch.randn(16, 16)) for _ in range(3))

        def forward(self, ids: Tensor) -> Tensor:
            x = self.tokens(ids)
            for weight in self.weights:
                x = x + torch.tanh(x @ weight)
            return self.head(x)

    with pytest.raises(ProbeError, match="take out"):
        usefulness(Hidden(), (ids_of(),))
