"""The first operation that makes a value that is not finite is named, forward or backward, and no victim of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import NanoGPT
from rheoscope.probes.check_up import default_loss, examine
from rheoscope.probes.origin import first_nonfinite
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IDS = torch.randint(0, 61, (2, 8), generator=torch.Generator().manual_seed(0))


class _Poisoned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / torch.zeros_like(gradient)


class After(nn.Module):
    """Runs ``then`` on what ``inner`` returns."""

    def __init__(self, inner: nn.Module, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.then = inner, then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.inner(x))


def ill(then: Callable[[Tensor], Tensor], where: str = "mlp") -> NanoGPT:
    torch.manual_seed(0)
    model = NanoGPT("pre")
    setattr(model.blocks[1], where, After(getattr(model.blocks[1], where), then))
    return model


def found(model: nn.Module) -> tuple[str, str, str] | None:
    def run() -> Tensor:
        loss = default_loss(model(IDS), IDS)
        loss.backward()
        return loss

    origin = first_nonfinite(model, run)
    return None if origin is None else (origin.direction, origin.module_path, origin.operation)


@pytest.mark.parametrize(
    ("then", "operation"),
    [
        (lambda x: x + (x.abs() * 0).log(), "log"),
        (lambda x: x + 1 / (x * 0), "reciprocal"),
        (lambda x: (x * 0) / (x * 0), "div"),
        (lambda x: (x + 1000).exp() - x, "exp"),
        (lambda x: (x.abs() + 1).pow(200.0) - x, "pow"),
        (lambda x: (x.half() + 60000).mul(2.0).float(), "mul"),
        (lambda x: (x - 1e4).sqrt(), "sqrt"),
        (lambda x: x * x.masked_fill(x < math.inf, -math.inf).softmax(-1), "_softmax"),
    ],
)
def test_the_forward_operation_is_named(then: Callable[[Tensor], Tensor], operation: str) -> None:
    direction, path, named = found(ill(then)) or ("", "", "")
    assert (direction, path) == ("forward", "blocks.1.mlp")
    assert named == operation


@pytest.mark.parametrize(
    ("then", "operation"),
    [
        (lambda x: x + (x * 0).abs().sqrt(), "div"),
        (lambda x: _Poisoned.apply(x), "div"),
        (lambda x: x + (x * 0).norm(dim=-1, keepdim=True).pow(0.5), "pow"),
    ],
)
def test_the_backward_operation_is_named_with_the_module_it_belongs_to(
    then: Callable[[Tensor], Tensor], operation: str
) -> None:
    direction, path, named = found(ill(then)) or ("", "", "")
    assert (direction, path) == ("backward", "blocks.1.mlp")
    assert named == operation or named in ("mul", "div")


def test_checkpointing_names_the_same_place() -> None:
    torch.manual_seed(0)
    model = NanoGPT("pre")
    inner = After(model.blocks[1].mlp, lambda x: x + (x * 0).abs().sqrt())
    model.blocks[1].mlp = After(nn.Identity(), lambda x: checkpoint(inner, x, use_reentrant=False))
    direction, path, _ = found(model) or ("", "", "")
    assert (direction, path) == ("backward", "blocks.1.mlp")


def test_a_weight_that_was_ill_before_is_named() -> None:
    torch.manual_seed(0)
    model = NanoGPT("pre")
    with torch.no_grad():
        model.blocks[0].mlp[2].weight[3, 3] = math.nan
    assert found(model) == ("given", "blocks.0.mlp.2.weight", "")


def test_masks_of_infinity_and_sound_models_are_no_fault() -> None:
    torch.manual_seed(0)
    assert found(NanoGPT("pre")) is None
    assert found(ill(lambda x: x + x.masked_fill(x > 0, -math.inf).softmax(-1).nan_to_num())) is None


def test_examine_names_it_with_its_block() -> None:
    fine = examine(NanoGPT("pre"), IDS).table("identities")
    rows = examine(ill(lambda x: x + 0 * (x * 0).abs().sqrt()), IDS).table("identities")
    row = rows[rows["check"] == "nonfinite_origin"].iloc[0]
    assert (row["block"], row["branch"], row["module_path"]) == (1, "mlp", "blocks.1.mlp")
    assert "on the way back" in row["note"]
    assert "nonfinite_origin" not in set(fine["check"])
