"""Causality branch by branch: a mask that is missing in one block is found there, whatever leaks before it."""

from __future__ import annotations

import pytest
import torch
from oracles import NanoGPT
from rheoscope.probes.discovery import discover
from rheoscope.probes.together import seen_in
from rheoscope.probes.untouched import untouched
from rheoscope.probes.visibility import TOLERANCE, visibility, visible_points
from torch import Tensor, nn


class Unmasked(nn.Module):
    """Adds the mean over all positions."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 0.1 * x.mean(1, keepdim=True)


def leaks(model: nn.Module, ids: Tensor) -> set[tuple[int, str]]:
    anatomy = discover(model, ids)
    with untouched(model, training=False):
        rows = visibility(model, ids, anatomy, seen_in(model, ids, visible_points(anatomy)))
    rows = [row for row in rows if row["check"] == "causality"]
    assert len(rows) == len(anatomy.branches)
    return {(row["block"], row["branch"]) for row in rows if row["observed"] > TOLERANCE}


@pytest.mark.parametrize("kind", ["pre", "post"])
@pytest.mark.parametrize("where", [(0, "attention"), (1, "mlp")])
def test_only_the_branch_that_sees_later_positions_is_told(kind: str, where: tuple[int, str]) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 61, (2, 8))
    model = NanoGPT(kind)
    assert leaks(model, ids) == set()
    block = model.blocks[where[0]]
    setattr(block, where[1], Unmasked(getattr(block, where[1])))
    assert leaks(model, ids) == {where}


def test_a_leak_below_the_tolerance_is_told_from_rounding_by_a_larger_change() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 61, (2, 8))
    model = NanoGPT("post")  # its branches read the stream itself

    class Faint(Unmasked):
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + 6e-6 * x.mean(1, keepdim=True)

    model.blocks[1].attention = Faint(model.blocks[1].attention)
    assert leaks(model, ids) == {(1, "attention")}


class EncoderBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.mlp_norm(x))


def test_an_mlp_of_an_encoder_that_reads_the_stream_without_a_norm_leaks_nothing() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 61, (2, 8))
    model = nn.Sequential(
        nn.Embedding(61, 32), *(EncoderBlock(32) for _ in range(5)), nn.LayerNorm(32), nn.Linear(32, 61)
    )
    model[4].mlp_norm = nn.Identity()
    assert {branch for _, branch in leaks(model, ids)} == {"attention"}
