"""Amplification against its closed form on a model of one linear branch, and against a slow way."""

from __future__ import annotations

import copy

import oracles
import pytest
import torch
from oracles import NanoGPT, batch_of
from rheoscope.probes.amplification import EPSILON, N_DRAWS, amplification
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.discovery import discover
from rheoscope.probes.untouched import untouched
from torch import Tensor, nn


class Linear(nn.Module):
    """x + W x, twice: the change of the last state under noise on W has a closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(64, 64)
        self.layers = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(2))
        self.end = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.end(x)


def observed(model: nn.Module, batch: Tensor, anatomy: Anatomy, seed: int = 0) -> dict[str, float]:
    with untouched(model, training=False):
        return {row["check"]: row["observed"] for row in amplification(model, batch, anatomy, seed=seed)}


def test_amplification_of_linear_branches_is_the_closed_form() -> None:
    model = Linear().eval()
    x = torch.randn(256, 8, 64)
    anatomy = discover(model, x)
    first, second = (layer.weight.detach() for layer in model.layers)
    start = model.inside(x).detach()
    middle = start + start @ first.T
    # Noise of variance s^2 on W changes W x by s^2 |x|^2 per channel; the second layer passes the first's change on.
    passed = torch.eye(64) + second
    size_1 = start.square().sum(-1).mean() * first.var() * passed.square().sum() / 64
    size_2 = middle.square().sum(-1).mean() * second.var()
    expected = float(size_1 + size_2)

    draws = [observed(model, x, anatomy, seed)["amplification"] for seed in range(4)]

    assert sum(draws) / 4 == pytest.approx(expected, rel=0.03)


def test_relative_amplification_divides_by_the_last_states_energy() -> None:
    model = NanoGPT().eval()
    batch = batch_of(model)
    (last,), _ = oracles.captured(model, [("norm", "in")], batch)

    found = observed(model, batch, discover(model, batch))

    assert found["relative_amplification"] == pytest.approx(
        found["amplification"] / float(last.detach().double().square().mean()), rel=1e-6
    )


def test_amplification_is_that_of_moving_the_weights_by_hand() -> None:
    model = NanoGPT("post").eval()
    batch = batch_of(model)
    generator = torch.Generator().manual_seed(0)
    place = [("blocks.1.norm_2", "out")]
    (still,), _ = oracles.captured(model, place, batch)
    total = 0.0
    for _ in range(N_DRAWS):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, weight in moved.named_parameters():
                if name.startswith("blocks.") and weight.dim() == 2:
                    weight += EPSILON * weight.std() * torch.randn(weight.shape, generator=generator)
        (state,), _ = oracles.captured(moved, place, batch)
        total += float((state - still).detach().double().square().mean()) / EPSILON**2 / N_DRAWS

    assert observed(model, batch, discover(model, batch))["amplification"] == pytest.approx(total, rel=1e-4)
