"""Batches of the usual kinds call the model; others are refused in a sentence that shows no data."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from oracles import NanoGPT, ids
from rheoscope.probes.batches import Arguments, arguments, at, call, floating, tensors
from rheoscope.probes.errors import BatchError


@dataclass
class Output:
    """An output as models return them."""

    logits: torch.Tensor
    cache: object = None


NESTED = {"a": [torch.tensor(1), {"b": torch.tensor(2.0)}], 3: (None, Output(torch.tensor(3.0)))}


@pytest.mark.parametrize(
    "batch", [ids(), (ids(),), [ids()], {"ids": ids()}, Arguments((ids(),), {}), Arguments((), {"ids": ids()})]
)
def test_every_kind_of_batch_calls_the_model(batch: object) -> None:
    model = NanoGPT()

    assert torch.equal(call(model, batch), model(ids()))


def test_a_rejected_batch_names_shapes_and_the_models_error_but_no_values() -> None:
    with pytest.raises(BatchError, match=r"got \(Tensor\(2, 3\) int64 on cpu, targets=str\)") as caught:
        call(NanoGPT(), Arguments((torch.full((2, 3), 987_654),), {"targets": "secret"}))

    assert "IndexError" in str(caught.value)
    assert "987654" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, IndexError)


def test_tensors_are_found_and_found_again_by_position() -> None:
    found = dict(tensors(NESTED))

    assert list(found) == [("a", 0), ("a", 1, "b"), (3, 1, "logits")]
    assert all(at(NESTED, position) is tensor for position, tensor in found.items())
    assert floating(NESTED) is found["a", 1, "b"]


@pytest.mark.parametrize("position", [("z",), ("a", 9), ("a", "b"), (3, 1, "nothing"), ("a", 0, "x"), (3, 0)])
def test_a_position_that_holds_no_tensor_gives_none(position: tuple) -> None:
    assert at(NESTED, position) is None


def test_a_nest_without_end_ends() -> None:
    loop: list[object] = [torch.tensor(1.0)]
    loop.append(loop)

    assert len(list(tensors(loop))) == 6


def test_arguments_pass_as_they_are() -> None:
    assert arguments(Arguments((1,), {"a": 2})) == ((1,), {"a": 2})
