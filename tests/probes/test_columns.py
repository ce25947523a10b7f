"""Columns made of many readings at once are those computed one row at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracles import NanoGPT, PostNormEncoder, batch_of
from rheoscope.probes.columns import ActivationColumns, Numbers
from rheoscope.probes.discovery import discover
from rheoscope.probes.kernels import COUNT, N_SUMS, SECOND
from rheoscope.probes.schema import STATISTICS
from rheoscope.probes.sites import layout
from rheoscope.probes.statistics import power_sums, statistics
from torch import nn

STEPS = ((0, 0), (0, 1), (3, 0))


def numbers_of(n_points: int, n_branches: int) -> list[Numbers]:
    """Return random readings, with points that were not seen and adds that were not measured."""
    found = []
    for step, micro_step in STEPS:
        sums = torch.stack([power_sums(torch.randn(6, 5), 3) for _ in range(2 * n_points)])
        sums[torch.rand(2 * n_points) < 0.2] = 0
        pairs = torch.stack([torch.rand(n_branches), torch.randn(n_branches)], 1).double()
        pairs[torch.rand(n_branches) < 0.3] = torch.nan
        energies = torch.rand(n_branches, 2).double()
        energies[0] = torch.nan
        found.append(Numbers(step, micro_step, sums.numpy(), pairs.numpy(), energies.numpy()))
    return found


@pytest.fixture(params=[NanoGPT, PostNormEncoder])
def model(request: pytest.FixtureRequest) -> nn.Module:
    """A pre-norm and a post-norm model."""
    return request.param()


def same(found: object, expected: float) -> bool:
    """Return whether a column's value, null for NaN, is the expected one."""
    return found is None if math.isnan(expected) else found == pytest.approx(expected, rel=1e-12)


def test_rows_of_activations_are_those_of_a_loop(model: nn.Module) -> None:
    anatomy = discover(model, batch_of(model))
    plan = layout(anatomy)
    n = len(plan.points)
    numbers = numbers_of(n, anatomy.n_branches)

    columns = ActivationColumns(anatomy, plan).of(numbers)

    index = {(b.stack, b.depth): i for i, b in enumerate(anatomy.branches)}
    row = 0
    lists = {
        name: values.to_pylist() if hasattr(values, "to_pylist") else list(values) for name, values in columns.items()
    }
    for each in numbers:
        for direction, offset in (("forward", 0), ("backward", n)):
            for site in plan.sites:
                sums = each.sums[offset + plan.points.index(site.point)]
                if sums[COUNT] == 0:
                    continue
                expected = {k: float(v[0]) for k, v in statistics(torch.from_numpy(sums)[None]).items()}
                place = (each.step, each.micro_step, direction, site.site, site.depth, site.block, site.branch)
                keys = ("step", "micro_step", "direction", "site", "depth", "block", "branch")
                assert tuple(lists[key][row] for key in keys) == place
                assert lists["n"][row] == sums[COUNT]
                assert all(same(lists[name][row], expected[name]) for name in STATISTICS)
                energies = each.energies[index[site.stack, site.depth]] if site.site == "write" else (math.nan, 1.0)
                share = energies[0] / energies[1] if direction == "forward" else math.nan
                assert same(lists["rounded_share"][row], share)
                row += 1
    assert row == len(lists["step"])


def test_rows_of_gradient_paths_are_those_of_a_loop(model: nn.Module) -> None:
    anatomy = discover(model, batch_of(model))
    plan = layout(anatomy)
    n = len(plan.points)
    numbers = numbers_of(n, anatomy.n_branches)

    columns = ActivationColumns(anatomy, plan).paths_of(numbers)

    lists = {
        name: values.to_pylist() if hasattr(values, "to_pylist") else list(values) for name, values in columns.items()
    }
    found = dict(
        zip(
            zip(lists["step"], lists["micro_step"], lists["depth"], strict=True),
            zip(lists["skip_gain"], lists["skip_rms"], lists["branch_rms"], lists["cosine"], strict=True),
            strict=True,
        )
    )
    n_rows = 0
    for each in numbers:
        for number, branch in enumerate(anatomy.branches):
            before = anatomy.stacks[0].start if branch.depth == 1 else anatomy.branches[number - 1].state
            at = each.sums[[n + plan.points.index(p) for p in (before, branch.sum or branch.state, branch.state)]]
            _, total, state = at[:, SECOND]
            seen = at[:, COUNT] > 0
            gain = math.nan
            if branch.sum is None:
                gain = 1.0  # nothing stands on the skip path, whatever was seen
            elif seen[1] and seen[2] and state > 0:
                gain = math.sqrt(total / state)
            energy, product = each.pairs[number]
            is_known = seen[0] and not math.isnan(product)
            skip_rms = math.sqrt(total / at[0, COUNT]) if is_known else math.nan
            branch_rms = math.sqrt(energy / at[0, COUNT]) if is_known else math.nan
            size = math.sqrt(total * energy)
            cosine = product / size if is_known and size > 0 else math.nan
            key = (each.step, each.micro_step, branch.depth)
            if math.isnan(gain) and not is_known:
                assert key not in found
                continue
            n_rows += 1
            assert all(map(same, found[key], (gain, skip_rms, branch_rms, cosine))), key
    assert n_rows == len(found)
    assert np.shape(numbers[0].sums)[1] == N_SUMS
