"""Gradient conservation: the planted factor is measured, and a sound model of any placement shows none."""

from __future__ import annotations

import pytest
import torch
from oracles import NanoGPT, Wrong
from rheoscope.probes.check_up import default_loss, examine
from rheoscope.probes.conservation import conservation
from rheoscope.probes.discovery import discover
from rheoscope.probes.untouched import untouched
from torch import Tensor, nn


def ratios(model: nn.Module, ids: Tensor) -> dict[tuple[int, str], float]:
    anatomy = discover(model, ids)
    with untouched(model, training=False):
        rows = conservation(model, ids, anatomy, lambda output: default_loss(output, ids))
    return {(row["block"], row["branch"]): row["observed"] for row in rows}


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 61, (2, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["pre", "post", "parallel"])
def test_every_add_of_a_sound_model_conserves_its_gradient(kind: str, ids: Tensor) -> None:
    torch.manual_seed(0)
    model = NanoGPT(kind)
    found = ratios(model, ids)
    assert len(found) == len(discover(model, ids).branches)
    assert set(found.values()) == {1.0}


@pytest.mark.parametrize("is_before", [True, False])
@pytest.mark.parametrize("factor", [0.0, -1.0, 0.1, 0.9, 10.0])
@pytest.mark.parametrize("branch", ["attention", "mlp"])
@pytest.mark.parametrize("kind", ["pre", "post"])
def test_a_wrong_backward_is_measured_where_it_is_and_nowhere_else(
    kind: str, branch: str, factor: float, is_before: bool, ids: Tensor
) -> None:
    torch.manual_seed(1)
    model = NanoGPT(kind)
    block = model.blocks[1]
    setattr(block, branch, Wrong(getattr(block, branch), factor, is_before))
    found = ratios(model, ids)
    assert found.pop((1, branch)) == pytest.approx(factor, abs=0.02 * max(1.0, abs(factor)))
    assert set(found.values()) == {1.0}


def test_a_skip_that_carries_no_gradient_is_found(ids: Tensor) -> None:
    class Cut(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return x.detach() + (self.inner(x) - x)

    torch.manual_seed(2)
    model = NanoGPT("parallel")
    model.blocks[1] = Cut(model.blocks[1])
    found = ratios(model, ids)
    assert any(abs(value - 1) > 0.1 for value in found.values())


def test_examine_records_it_and_leaves_no_hook(ids: Tensor) -> None:
    torch.manual_seed(3)
    model = NanoGPT("pre")
    rows = examine(model, ids).table("identities")
    rows = rows[rows["check"] == "gradient_conservation"]
    assert len(rows) == 4
    assert (rows["observed"] == 1.0).all()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_loss_too_coarse_for_the_step_is_asked_with_a_larger_one(ids: Tensor) -> None:
    torch.manual_seed(3)
    model = NanoGPT("pre")
    block = model.blocks[1]
    block.attention = Wrong(block.attention, 0.95, is_before=False)
    anatomy = discover(model, ids)
    with untouched(model, training=False):
        # A large constant beside the loss: what a small step moves is lost in rounding.
        rows = conservation(model, ids, anatomy, lambda output: default_loss(output, ids) + 40.0)
    found = {(row["block"], row["branch"]): row["observed"] for row in rows}
    assert found.get((1, "attention"), 0.95) == pytest.approx(0.95, abs=0.01)
