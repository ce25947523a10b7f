"""What bf16 costs a branch: against the branch run alone by hand, and where something large is taken away again."""

from __future__ import annotations

import pytest
import torch
from oracles import NanoGPT
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.probes.bf16 import bf16_error, bf16_points
from rheoscope.probes.check_up import examine
from rheoscope.probes.discovery import discover
from rheoscope.probes.together import seen_in
from rheoscope.probes.untouched import untouched
from torch import Tensor, nn

IDS = torch.randint(0, 61, (2, 8), generator=torch.Generator().manual_seed(0))


class Offset(nn.Module):
    """Adds much and takes it away again: nothing in float32, nearly all that bf16 knows."""

    def __init__(self, inner: nn.Module, size: float) -> None:
        super().__init__()
        self.inner, self.size = inner, size

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner(x) + self.size) - self.size


def errors(model: nn.Module, check: str) -> dict[tuple[int, str], float]:
    anatomy = discover(model, IDS)
    with untouched(model, training=False):
        rows = bf16_error(model, IDS, anatomy, seen_in(model, IDS, bf16_points(anatomy)))
    return {(row["block"], row["branch"]): row["observed"] for row in rows if row["check"] == check}


@pytest.mark.parametrize("kind", ["pre", "parallel"])
def test_every_branch_errs_as_it_does_alone(kind: str) -> None:
    torch.manual_seed(0)
    model = NanoGPT(kind, n_blocks=3).eval()
    states: list[Tensor] = []
    handles = [
        block.register_forward_pre_hook(lambda _, args: states.append(args[0].clone())) for block in model.blocks
    ]
    with torch.no_grad():
        model(IDS)
    for handle in handles:
        handle.remove()
    found, of_sums = errors(model, "bf16_error"), errors(model, "bf16_state_error")
    for index, (block, x) in enumerate(zip(model.blocks, states, strict=True)):
        with torch.no_grad():
            exact = block.attention(block.norm_1(x))
            with torch.autocast("cpu", torch.bfloat16):
                rough = block.attention(block.norm_1(x))
            if kind == "parallel":
                exact = exact + block.mlp(block.norm_2(x))
                with torch.autocast("cpu", torch.bfloat16):
                    second = block.mlp(block.norm_2(x))
                rough = rough.double() + second.double()
        off = float((rough.double() - exact.double()).norm())
        name = "parallel" if kind == "parallel" else "attention"
        assert found[index, name] == pytest.approx(off / float(exact.double().norm()), rel=1e-3)
        assert of_sums[index, name] == pytest.approx(off / float((x + exact).double().norm()), rel=1e-3)


def test_a_branch_that_takes_away_what_it_added_is_told_with_a_remedy() -> None:
    torch.manual_seed(0)
    model = NanoGPT("pre", n_blocks=6)
    model.blocks[2].mlp = Offset(model.blocks[2].mlp, 30.0)
    found = [finding for finding in diagnose(examine(model, IDS)) if finding.code == "bf16-error"]
    assert [(finding.block, finding.component, finding.severity) for finding in found] == [(2, "mlp", "warning")]
    assert "float32" in found[0].remedy


def test_sound_blocks_and_a_model_in_double_precision_are_told_nothing() -> None:
    torch.manual_seed(0)
    model = NanoGPT("pre", n_blocks=6)
    assert max(errors(model, "bf16_error").values()) < 0.02
    assert errors(model.double(), "bf16_error") == {}


def test_weights_and_flags_are_as_they_were() -> None:
    torch.manual_seed(0)
    model = NanoGPT("pre")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    examine(model, IDS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.is_autocast_enabled("cpu")
