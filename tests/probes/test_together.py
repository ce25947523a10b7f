"""Many states changed in one forward show the same sums as each changed in a forward of its own."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from oracles import NanoGPT, gpt2, llama
from rheoscope.probes.discovery import discover
from rheoscope.probes.interventions import seen_after
from rheoscope.probes.together import ends_of, groups_of, moved_in, seen_in
from torch import Tensor, nn

IDS = torch.randint(0, 61, (2, 8), generator=torch.Generator().manual_seed(0))


def as_it_is(value: Tensor, tensor: Tensor) -> Tensor:
    return value.reshape(tensor.shape)


@pytest.mark.parametrize(
    "make", [partial(NanoGPT, "pre", 4), partial(NanoGPT, "post", 4), partial(NanoGPT, "parallel", 4), gpt2, llama]
)
def test_each_sum_is_that_of_its_own_change_alone(make: type) -> None:
    torch.manual_seed(0)
    model: nn.Module = make().eval()
    adds = ends_of(discover(model, IDS))
    points = {point for _, before, added in adds for point in (before, added)}
    states = seen_in(model, IDS, points)
    moved = {k: states[before] + 0.1 * torch.randn_like(states[before]) for k, (_, before, _) in enumerate(adds)}
    groups = groups_of(adds)

    assert sorted(k for group in groups for k in group) == list(range(len(adds)))
    assert len(groups) <= 2
    for group in groups:
        together = moved_in(model, IDS, adds, group, states, moved)
        for k in group:
            _, before, added = adds[k]
            alone = seen_after(model, IDS, before, partial(as_it_is, moved[k]), added)
            assert alone is not None
            assert torch.allclose(together[k], alone, rtol=1e-5, atol=1e-6), (k, before, added)
            assert not torch.allclose(together[k], states[added], rtol=1e-3, atol=1e-4)
