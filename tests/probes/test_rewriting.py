"""Calls and tensors of a forward are replaced where they were traced, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from oracles import NanoGPT
from rheoscope.probes.anatomy import Point
from rheoscope.probes.discovery.dissect import discover
from rheoscope.probes.discovery.places import CallPlace, places
from rheoscope.probes.errors import LabError
from rheoscope.probes.rewriting import Rewriting
from torch import Tensor, nn

TOKENS = torch.randint(61, (2, 8), generator=torch.Generator().manual_seed(0))


class Adding(nn.Module):
    """Adds 1, 2 and 4 in its own forward and, between them, 8 and 16 in that of a child."""

    def __init__(self) -> None:
        super().__init__()
        self.child = Child()

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tensor(1.0)
        x = self.child(x)
        x = torch.add(x, torch.tensor(2.0))
        x = self.child(x)
        x += torch.tensor(4.0)
        return x


class Child(nn.Module):
    """Adds 8 at its first add, 16 at its second."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + torch.tensor(8.0)) + torch.tensor(16.0)


def left_out(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return the first operand."""
    return args[0]


@pytest.mark.parametrize(
    ("place", "missing"),
    [
        (CallPlace("", 0, "add", 0), 1.0),
        (CallPlace("", 0, "add", 1), 2.0),
        (CallPlace("", 0, "add", 2), 4.0),
        (CallPlace("child", 0, "add", 0), 8.0),
        (CallPlace("child", 1, "add", 1), 16.0),
    ],
)
def test_one_call_is_replaced_and_all_others_run(place: CallPlace, missing: float) -> None:
    model, rewriting = Adding(), Rewriting()
    rewriting.calls[place] = left_out
    rewriting.install(model)

    for _ in range(2):  # numbers are counted anew in every forward
        assert float(model(torch.tensor(0.0))) == 1 + 2 + 4 + 2 * (8 + 16) - missing


def test_a_tensor_is_changed_where_it_enters_or_leaves_one_call_of_a_module() -> None:
    model, rewriting = Adding(), Rewriting()
    rewriting.points[Point("child", "input", (0,), 1)] = lambda x: x + 100
    rewriting.points[Point("child", "output", (), 0)] = lambda x: x + 1000
    rewriting.install(model)

    assert float(model(torch.tensor(0.0))) == 55 + 1100


def test_what_an_action_calls_is_no_call_of_the_forward() -> None:
    model, rewriting = Adding(), Rewriting()
    rewriting.calls[CallPlace("", 0, "add", 0)] = lambda function, args, _: function(function(*args), torch.tensor(0.0))
    rewriting.calls[CallPlace("", 0, "add", 1)] = left_out
    rewriting.install(model)

    assert float(model(torch.tensor(0.0))) == 55 - 2


def test_a_forward_that_misses_a_place_raises() -> None:
    model, rewriting = Adding(), Rewriting()
    rewriting.calls[CallPlace("", 0, "add", 3)] = left_out
    rewriting.install(model)

    with pytest.raises(LabError, match="passes all 1 places that are to be changed, got 0"):
        model(torch.tensor(0.0))


def test_places_name_the_calls_that_give_the_sums() -> None:
    model = NanoGPT().eval()
    anatomy = discover(model, TOKENS)
    seen: list[Tensor] = []

    def see(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        seen.append(function(*args, **kwargs))
        return seen[-1]

    found = places(model, TOKENS, anatomy)
    rewriting = Rewriting()
    for place in found.branches:
        assert place.add is not None
        rewriting.calls[place.add.last] = see
    rewriting.install(model)
    states: list[Tensor] = []
    for block in model.blocks:
        block.norm_2.register_forward_pre_hook(lambda _, args: states.append(args[0]))
        block.register_forward_hook(lambda _, __, output: states.append(output))
    model(TOKENS)

    assert len(seen) == anatomy.n_branches == 4
    assert all(torch.equal(a, b) for a, b in zip(seen, states, strict=True))
