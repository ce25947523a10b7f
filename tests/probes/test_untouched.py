"""``untouched`` puts back what its block changed, also when it raises."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from oracles import NanoGPT
from rheoscope.probes.untouched import untouched
from torch import nn


class Counting(nn.Module):
    """Holds two buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(1.0))
        self.register_buffer("absent", None)


def test_buffers_that_are_written_or_replaced_come_back() -> None:
    model = Counting()
    count = model.count

    with untouched(model):
        count.add_(5)
        model.count = torch.tensor(9.0)
        model.absent = torch.tensor(1.0)

    assert model.count is count
    assert count == 1.0
    assert model.absent is None


def test_flags_come_back_module_by_module_after_an_exception() -> None:
    model = NanoGPT().train()
    model.blocks[1].eval()
    before = [module.training for module in model.modules()]

    def work() -> None:
        with untouched(model, training=False):
            assert not any(module.training for module in model.modules())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()

    assert [module.training for module in model.modules()] == before


def test_random_numbers_go_on_as_if_nothing_had_been_drawn() -> None:
    model = NanoGPT()
    states = [torch.get_rng_state(), random.getstate(), np.random.get_state()]
    expected = (torch.rand(3).tolist(), random.random(), np.random.rand())
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])

    with untouched(model):
        torch.manual_seed(77)
        random.seed(77)
        np.random.seed(77)

    assert (torch.rand(3).tolist(), random.random(), np.random.rand()) == expected


def test_gradients_are_the_same_objects_again() -> None:
    model = NanoGPT()
    model.head.weight.grad = gradient = torch.ones_like(model.head.weight)

    with untouched(model):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    assert model.head.weight.grad is gradient
    assert model.norm.weight.grad is None
