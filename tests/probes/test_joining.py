"""Vectors of ranks are read back as what one process would have counted: copies once, parts together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rheoscope.probes.columns import Numbers
from rheoscope.probes.counted import Counted
from rheoscope.probes.joining import Joining
from rheoscope.probes.kernels import CHANNEL, N_SUMS, WANTS_CHANNELS
from rheoscope.probes.parameter_numbers import GRADIENT, N_PARTS, PEAK
from rheoscope.probes.sample import Sample
from rheoscope.probes.statistics import ChannelSheet
from torch import Tensor

NO_SHARES = np.zeros(0)


def sample_of(tensor: Tensor, counted: list[Counted] | None = None) -> Sample:
    """Return the sample of a rank that saw one tensor, forward and backward."""
    sheet = ChannelSheet(2, torch.device("cpu"))
    sheet.measure(0, tensor, WANTS_CHANNELS)
    sheet.measure(1, tensor)
    channels = {row: sums.numpy() for row, sums in sheet.channels.items()}
    numbers = Numbers(5, 0, sheet.values.numpy(), np.full((0, 2), 0.0), np.full((0, 2), 0.0), channels)
    return Sample(5, [numbers], np.zeros(0), counted=counted or [])


def joined(samples: list[Sample], n_slots: int, slots: list[int]) -> Sample:
    """Let ranks with these samples join them, as the collectives do."""
    joinings = [Joining(NO_SHARES, NO_SHARES, (2, 0), n_slots) for _ in samples]
    lengths = {"micro 0": (1 + 2 * 8, 2 * 2)}
    for sample in samples:
        lengths |= {f"channels 0 {row}": (len(sums), 0) for row, sums in sample.numbers[0].channels.items()}
        lengths |= Joining.names(sample.counted)
    assert all(joining.agree([lengths]) for joining in joinings)
    vectors = [joining.vectors(sample, slot) for joining, sample, slot in zip(joinings, samples, slots, strict=True)]
    added, largest = np.sum([a for a, _ in vectors], axis=0), np.max([b for _, b in vectors], axis=0)
    assert added[0] == len(samples)
    return joinings[0].sample(5, added, largest, joinings[0].agreed)


def whole(tensor: Tensor) -> np.ndarray:
    """Return the ten sums of a tensor."""
    return sample_of(tensor).numbers[0].sums


@pytest.fixture
def tokens() -> Tensor:
    return 1.0 + torch.randn(6, 4, dtype=torch.float64)


def test_ranks_with_data_of_their_own_add_up(tokens: Tensor) -> None:
    found = joined([sample_of(tokens[:2]), sample_of(tokens[2:])], 1, [0, 0]).numbers[0].sums

    assert np.allclose(found, whole(tokens), rtol=1e-12)
    assert found[0, CHANNEL] == pytest.approx(float(tokens.mean(0).abs().max()))


def test_copies_count_once(tokens: Tensor) -> None:
    assert np.allclose(joined([sample_of(tokens)] * 2, 2, [0, 1]).numbers[0].sums, whole(tokens), rtol=1e-12)


def test_parts_of_the_channels_stand_side_by_side(tokens: Tensor) -> None:
    found = joined([sample_of(tokens[:, :2].clone()), sample_of(tokens[:, 2:].clone())], 2, [0, 1]).numbers[0].sums

    assert np.allclose(found, whole(tokens), rtol=1e-12)


def test_parts_that_a_norm_made_alike_are_told_from_copies() -> None:
    tokens = torch.nn.functional.layer_norm(torch.randn(6, 4, dtype=torch.float64), (4,), eps=0.0)

    found = joined([sample_of(tokens[:3]), sample_of(tokens[3:])], 2, [0, 1]).numbers[0].sums

    assert found[0, 0] == tokens.numel()
    assert np.allclose(found[1, :CHANNEL], whole(tokens)[1, :CHANNEL], rtol=1e-12, atol=1e-12)


def test_a_rank_that_saw_nothing_adds_nothing(tokens: Tensor) -> None:
    nothing = Sample(5, [Numbers(5, 0, np.zeros((2, N_SUMS)), np.zeros((0, 2)), np.zeros((0, 2)))], np.zeros(0))

    assert np.allclose(joined([sample_of(tokens), nothing], 1, [0, 0]).numbers[0].sums, whole(tokens), rtol=1e-12)


def test_heads_of_ranks_are_numbered_on(tokens: Tensor) -> None:
    def heads(first: float) -> list[Counted]:
        place = {"micro_step": 0, "stack": 0, "depth": 1, "call": 0, "is_bound": False}
        return [Counted("attention", place | {"head": h}, (first + h,) * 7, (first - h,)) for h in (0, 1)]

    found = joined([sample_of(tokens, heads(1.0)), sample_of(tokens, heads(10.0))], 2, [0, 1]).counted

    by_head = {each.place["head"]: (each.sums[0], each.peaks[0]) for each in found}
    assert by_head == {0: (1.0, 1.0), 1: (2.0, 0.0), 2: (10.0, 10.0), 3: (11.0, 9.0)}


def test_each_element_of_a_parameter_counts_once_and_unknown_stays_unknown() -> None:
    # The first parameter is on both ranks, the second cut into two parts, of the third a rank does not know its gradient.
    ranks = []
    for energy in (4.0, 5.0):
        sums = np.ones((3, N_PARTS))
        sums[:, GRADIENT], sums[:, PEAK] = [9.0, energy, energy if energy > 4.0 else math.nan], [3.0, energy, 1.0]
        ranks.append(Sample(5, parameters=sums, states=("some", "some" if energy > 4.0 else "none", None)))
    joinings = [Joining(np.array([0.5, 1.0, 1.0]), NO_SHARES, (0, 0), 1) for _ in ranks]
    assert all(joining.agree([{"parameters": (3 * (N_PARTS - 1), 6)}]) for joining in joinings)
    vectors = [joining.vectors(sample, 0) for joining, sample in zip(joinings, ranks, strict=True)]

    added, largest = np.sum([a for a, _ in vectors], axis=0), np.max([b for _, b in vectors], axis=0)
    found = joinings[0].sample(5, added, largest, joinings[0].agreed)

    assert found.parameters is not None
    assert found.parameters[:2, GRADIENT].tolist() == [9.0, 9.0]
    assert math.isnan(found.parameters[2, GRADIENT])
    assert found.parameters[:, PEAK].tolist() == [3.0, 5.0, 1.0]
    assert found.states == ("some", "some", None)


def test_layouts_that_contradict_each_other_are_refused() -> None:
    joining = Joining(NO_SHARES, NO_SHARES, (2, 0), 1)

    assert joining.agree([{"micro 0": (17, 4)}])
    assert not joining.agree([{"micro 0": (18, 4)}])
