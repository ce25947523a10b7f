"""In-place operations, full backward hooks, random numbers: the hooks of a monitor beside autograd."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from oracles import NanoGPT, batch_of, gradients, loss_of, rms
from torch import Tensor, nn

from robustness.loops import rows, same, train


def test_row_01_in_place_adds_run_as_without_a_probe(tmp_path: Path) -> None:
    linear = nn.Linear(4, 4)
    linear.register_full_backward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="is a view and is being modified inplace"):
        linear(torch.ones(2, 4)).add_(1)

    bare = NanoGPT("inplace")
    probed = copy.deepcopy(bare)
    loss_of(bare.train(), batch_of(bare)).backward()
    torch.optim.SGD(bare.parameters(), lr=0.1).step()
    probe = train(probed, tmp_path / "run", [torch.optim.SGD(probed.parameters(), lr=0.1)])

    assert same(bare, probed)
    assert rows(probe, "state", "forward")["depth"].tolist() == [0, 1, 2, 3, 4]


class InPlaceActivation(NanoGPT):
    """nanoGPT whose activation functions write over what they are given."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        for block in self.blocks:
            block.mlp[1] = nn.ReLU(inplace=inplace)


def test_row_02_gradients_are_those_of_the_value_that_is_recorded(tmp_path: Path) -> None:
    x = torch.ones(3, requires_grad=True)
    y = x * 1
    seen: list[Tensor] = []
    y.register_hook(seen.append)
    y.mul_(3).sum().backward()
    assert seen[0].tolist() == [3.0] * 3, "a naive hook sees the gradient of the value before mul_"

    places = [(f"blocks.{i}.mlp.2", "in") for i in range(2)]
    plain, inplace = InPlaceActivation(False), InPlaceActivation(True)
    inplace.load_state_dict(plain.state_dict())
    expected = [rms(gradient) for gradient in gradients(plain.train(), places, batch_of(plain))]

    probe = train(inplace, tmp_path / "run")

    hidden = rows(probe, "hidden", "backward")
    assert hidden["rms"].tolist() == pytest.approx(expected, rel=1e-6)
    assert (rows(probe, "hidden", "forward")["zero_share"] > 0.2).all(), "after the activation, not before it"


def test_row_32_twenty_steps_with_dropout_are_equal_bit_for_bit(tmp_path: Path) -> None:
    start = NanoGPT(dropout=0.2).train()

    def losses(model: nn.Module, folder: Path | None, *, naive: bool = False) -> list[float]:
        if naive:
            model.blocks[0].register_forward_hook(lambda *_: torch.randn(1) and None)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        torch.manual_seed(7)
        found: list[float] = []

        def one(step: int) -> None:
            loss = loss_of(model, batch_of(model, seed=step))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())

        if folder is None:
            for step in range(20):
                one(step)
        else:
            from rheoscope.probes.recorder import attach

            with attach(model, optimizer, every=1, folder=folder, strict=True) as probe:
                for step in range(20):
                    one(step)
                    probe.step(found[-1])
        return found

    models = [copy.deepcopy(start) for _ in range(3)]
    expected = losses(models[0], None)

    assert losses(models[1], None, naive=True) != expected, "a hook that draws a random number changes training"
    assert losses(models[2], tmp_path / "run") == expected
    assert same(models[0], models[2])
