"""Hooks show each point once a forward, and stay behind when their model is copied or saved."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from oracles import NanoGPT, ids
from rheoscope.probes.anatomy import Point
from rheoscope.probes.errors import ProbeError
from rheoscope.probes.hooked import Hook, Hooked
from torch import Tensor, nn


class Caller(nn.Module):
    """Calls one module three times, by position and by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"all": [self.inner(x)["pair"][0], self.inner(x=x + 1)["pair"][0], self.inner(x + 2)]}


class Inner(nn.Module):
    """Returns tensors inside a tuple inside a dictionary."""

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"pair": (2 * x, "text"), "none": None}


def test_calls_positions_and_keywords_are_told_apart() -> None:
    model = Caller()
    points = [
        Point("inner", "input", (0,), 0),
        Point("inner", "input", ("x",), 1),
        Point("inner", "input", ("x",), 2),
        Point("inner", "output", ("pair", 0), 2),
        Point("inner", "output", ("pair", 1), 2),
        Point("inner", "output", ("none",), 0),
        Point("", "output", ("all", 0), 0),
    ]
    seen: dict[Point, float] = {}
    hooks = Hooked(model, points, lambda point: lambda tensor: seen.update({point: float(tensor)}))
    for _ in range(2):
        hooks.restart()
        model(torch.tensor(1.0))
    hooks.remove()
    model(torch.tensor(50.0))

    assert seen == {points[0]: 1.0, points[1]: 2.0, points[3]: 6.0, points[6]: 2.0}


def test_a_point_that_the_model_does_not_have_is_refused_and_nothing_is_hooked() -> None:
    model = NanoGPT()

    with pytest.raises(ProbeError, match=r"\('encoder.layers.9' is one\)"):
        Hooked(model, [Point("head", "input", (0,)), Point("encoder.layers.9", "input", (0,))], lambda *_: None)

    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_duplicate_of_a_hooked_model_runs_without_its_hooks(duplicate: object) -> None:
    model = NanoGPT()
    seen: list[Point] = []
    hooks = Hooked(model, [Point("head", "input", (0,))], lambda point: lambda tensor: seen.append(point))

    other = duplicate(model)
    result = other(ids())

    assert seen == []
    assert torch.equal(result, model(ids()))
    assert len(seen) == 1
    hooks.remove()


def test_a_hook_never_changes_what_passes() -> None:
    hook = Hook(lambda *args: "something")

    assert hook(1, 2) is None
    assert Hook()() is None
