"""Terms that a block adds at once: a wrong backward of one is measured, whatever the other does beside it."""

from __future__ import annotations

import pytest
import torch
from oracles import NanoGPT, Wrong
from rheoscope.probes.discovery import discover
from rheoscope.probes.terms import term_conservation
from rheoscope.probes.untouched import untouched
from torch import Tensor, nn

IDS = torch.randint(0, 61, (2, 8), generator=torch.Generator().manual_seed(0))


def ratios(model: nn.Module, ids: Tensor = IDS) -> dict[str, float]:
    anatomy = discover(model, ids)
    with untouched(model, training=False):
        rows = term_conservation(model, ids, anatomy)
    return {row["module_path"]: row["observed"] for row in rows}


@pytest.mark.parametrize("factor", [0.0, -1.0, 0.95, 1.05, 10.0])
@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_a_wrong_backward_of_one_term_is_measured_beside_a_larger_one(branch: str, factor: float) -> None:
    torch.manual_seed(1)
    model = NanoGPT("parallel")
    block = model.blocks[1]
    with torch.no_grad():
        getattr(block, branch)[2].weight.mul_(0.05) if branch == "mlp" else block.attention.out.weight.mul_(0.05)
    setattr(block, branch, Wrong(getattr(block, branch), factor, is_before=False))
    found = ratios(model)
    ill = {path: value for path, value in found.items() if value != 1.0}
    assert len(found) == 4
    assert len(ill) == 1
    path, value = ill.popitem()
    assert path.startswith(f"blocks.1.{branch}")
    assert value == pytest.approx(factor, abs=0.02 * max(1.0, abs(factor)))


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_where_every_add_has_one_term_nothing_is_asked(kind: str) -> None:
    torch.manual_seed(0)
    assert ratios(NanoGPT(kind)) == {}
