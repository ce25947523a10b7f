"""Hidden layers caught in the dip of GELU: in real models, by a check-up."""

from __future__ import annotations

import pytest
import rheoscope
import torch
from rheoscope.diagnostics.activation_trap import activation_trap
from rheoscope.diagnostics.tables import Tables
from rheoscope.diagnostics.thresholds import ACTIVATION_DIPS, TRAPPED
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from torch.nn import functional


def check_up(*blocks: int, bias: float = -0.75, activation: str = "gelu") -> Tables:
    """Return the check-up of a fresh model; the first MLP biases of ``blocks`` are ``bias``."""
    model = ReferenceTransformer(
        Architecture(n_blocks=5, width=32, n_heads=2, context=16, activation=activation), seed=0
    )
    for block in blocks:
        torch.nn.init.constant_(model.blocks[block].mlp.up.bias, bias)  # type: ignore[union-attr, arg-type]
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    return Tables(rheoscope.examine(model, tokens))


@pytest.mark.parametrize(
    ("name", "function"), [("gelu", functional.gelu), ("silu", functional.silu), ("mish", functional.mish)]
)
def test_the_dips_are_those_of_torch_and_flat_near_their_bottom(name: str, function: object) -> None:
    x = torch.linspace(-6, 0, 200_001, dtype=torch.float64, requires_grad=True)
    y = function(x)  # type: ignore[operator]
    (slope,) = torch.autograd.grad(y.sum(), x)

    assert float(-y.detach().min()) == pytest.approx(ACTIVATION_DIPS[name], abs=1e-4 + 5e-4 * (name == "mish"))
    assert float(slope[y < -TRAPPED * ACTIVATION_DIPS[name]].abs().max()) < 0.26


def test_fresh_models_are_not_caught() -> None:
    assert activation_trap(check_up()) == []
    assert activation_trap(check_up(activation="silu")) == []


@pytest.mark.parametrize(("activation", "bias"), [("gelu", -0.75), ("silu", -1.28)])
def test_one_block_in_the_dip_is_a_warning(activation: str, bias: float) -> None:
    (finding,) = activation_trap(check_up(3, bias=bias, activation=activation))

    assert (finding.code, finding.severity, finding.block) == ("activation-trap", "warning", 3)


def test_all_blocks_in_the_dip_are_a_remark() -> None:
    (finding,) = activation_trap(check_up(0, 1, 2, 3, 4))

    assert (finding.severity, finding.block) == ("info", None)


def test_units_that_are_off_are_not_in_the_dip() -> None:
    assert activation_trap(check_up(3, bias=-6.0)) == []
    assert activation_trap(check_up(3, bias=-0.75, activation="relu")) == []
