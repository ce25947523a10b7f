"""Branches that do not repeat themselves are told, and no other check takes their noise for a fault of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import NanoGPT
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.probes.check_up import examine
from torch import Tensor, nn
from torch.nn import functional

IDS = torch.randint(0, 61, (2, 8), generator=torch.Generator().manual_seed(0))


class Dropping(nn.Module):
    """Drops a share of what ``inner`` gives, whether it trains or not."""

    def __init__(self, inner: nn.Module, share: float) -> None:
        super().__init__()
        self.inner, self.share = inner, share

    def forward(self, *args: Any) -> Tensor:
        return functional.dropout(self.inner(*args), self.share, training=True)


@pytest.mark.parametrize("share", [0.5, 0.05])
@pytest.mark.parametrize("branch", ["attention", "mlp"])
@pytest.mark.parametrize("kind", ["pre", "post"])
def test_dropout_that_evaluation_leaves_on_is_told_as_such_and_as_nothing_else(
    kind: str, branch: str, share: float
) -> None:
    torch.manual_seed(0)
    model = NanoGPT(kind, n_blocks=6)
    setattr(model.blocks[3], branch, Dropping(getattr(model.blocks[3], branch), share))
    found = [finding for finding in diagnose(examine(model, IDS)) if finding.severity == "error"]
    assert [(finding.code, finding.block, finding.component) for finding in found] == [("not-repeatable", 3, branch)]


@pytest.mark.parametrize("kind", ["pre", "post", "parallel"])
def test_a_sound_branch_repeats_itself_to_the_bit(kind: str) -> None:
    torch.manual_seed(0)
    rows = examine(NanoGPT(kind, dropout=0.2), IDS).table("identities")
    observed = rows.loc[rows["check"] == "repeatability", "observed"]
    assert len(observed) >= 2
    assert (observed == 0).all()
