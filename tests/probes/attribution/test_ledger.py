"""The ledger of the output: by hand where everything is linear, complete where it is not, and refused where it does not hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attribution_cases import DESIGNS, TINY, ids_of, shaken
from oracles import VOCABULARY, gpt2
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.attribution import output_ledger
from torch import Tensor, nn

SUMS = [design for design in DESIGNS if design.get("norm_placement") != "post"]


class Linear(nn.Module):
    """A stream of matrices: logits are linear in every write."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 16)
        self.branches = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x)


def test_a_linear_model_is_decomposed_as_by_hand() -> None:
    model, ids, other = Linear(), ids_of(), ids_of().flip(1)

    found = output_ledger(model, (ids,), (other,), loss_fn=lambda output, _: output[:, -1, 7].mean())

    expected, x, y = [], model.tokens(ids), model.tokens(other)
    direction = model.head.weight[7]
    expected.append(((x - y)[:, -1] @ direction).mean())
    for branch in model.branches:
        one, two = branch(x), branch(y)
        expected.append(((one - two)[:, -1] @ direction).mean())
        x, y = x + one, y + two
    rows = found.to_frame()
    values = rows[rows["method"] == "ledger"].sort_values("depth")["value"].tolist()
    assert values == pytest.approx(torch.stack(expected).tolist(), abs=1e-6)
    assert found.error is not None
    assert found.error < 1e-5


@pytest.mark.parametrize("design", SUMS, ids=lambda d: "-".join(map(str, d.values())))
def test_the_lines_add_up_to_the_change_of_the_loss_and_captum_finds_the_same(design: dict[str, Any]) -> None:
    ids, other = ids_of(), ids_of().flip(0, 1)
    model = shaken(ReferenceTransformer(Architecture(**TINY | design), seed=0))

    found = output_ledger(model, (ids, ids), (other, other))

    with torch.no_grad():
        seen: list[Tensor] = []
        handle = model.final_norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        loss = float(model(ids, ids).loss)
        model(other, other)
        handle.remove()
        logits = model.head(model.final_norm(seen[1]))
        baseline = float(nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()))
    rows = found.to_frame()
    assert found.total == pytest.approx(loss - baseline, rel=1e-4)
    assert rows[rows["method"] == "ledger"]["value"].sum() == pytest.approx(found.total, rel=0.01)
    cuts = rows[rows["method"] == "cut_total"]
    assert len(cuts) == 2
    assert cuts["value"].tolist() == pytest.approx([found.total] * 2, rel=0.01)
    kinds = {"attention", "mlp", "embedding"}
    assert set(rows["branch"]) - {"parallel"} == kinds


def test_by_default_the_baseline_is_a_stream_that_cannot_tell_tokens_apart() -> None:
    model, ids = shaken(gpt2(n_blocks=2)), ids_of()
    batch = {"input_ids": ids, "labels": ids}

    found = output_ledger(model, batch)

    def mean(_: nn.Module, __: Any, state: Tensor) -> Tensor:
        return state.mean((0, 1), keepdim=True).expand_as(state)

    with torch.no_grad():
        loss = float(model(**batch).loss)
        handle = model.transformer.drop.register_forward_hook(mean)
        baseline = float(model(**batch).loss)
        handle.remove()
    assert found.total == pytest.approx(loss - baseline, rel=1e-4)
    assert "their mean" in str(found)


@pytest.mark.parametrize("scaling", ["none", "deepnorm"])
def test_under_post_norm_it_is_said_not_to_apply_and_cuts_are_shown(scaling: str) -> None:
    ids = ids_of()
    model = shaken(ReferenceTransformer(Architecture(**TINY, norm_placement="post", depth_scaling=scaling), seed=0))

    found = output_ledger(model, (ids, ids))

    rows = found.to_frame()
    assert set(rows["method"]) == {"cut_total"}
    assert len(rows) == 3
    assert rows["value"].tolist() == pytest.approx([found.total] * 3, rel=0.01)
    assert not found.is_ranked
    assert "does not apply: norms stand on the stream" in str(found)


def test_a_loss_that_passes_the_last_state_by_is_said_not_to_be_decomposed() -> None:
    class Sideways(Linear):
        def forward(self, ids: Tensor) -> Tensor:
            x = first = self.tokens(ids)
            for branch in self.branches:
                x = x + branch(x)
            return self.head(x) + 3 * first.sum(-1, keepdim=True) * self.head.bias

    ids = ids_of()

    found = output_ledger(Sideways(), (ids,))

    assert not found.is_ranked
    assert "does not see the batch through the last state alone" in str(found)
