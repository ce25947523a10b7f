"""The coordinate check tells what keeps its size from what grows with the width or the depth."""

from __future__ import annotations

import math

import pytest
import torch
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.coordinates import coordinate_check
from rheoscope.lab.power_law import power_law
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.errors import LabError
from torch import Tensor, nn

WIDTHS = (32, 64, 128)
BASE = {"n_heads": 4, "vocabulary": 61, "context": 8, "norm_kind": "rmsnorm", "biases": False, "positions": "none"}


def batch() -> Tensor:
    return torch.randint(61, (4, 8), generator=torch.Generator().manual_seed(0))


def made(width: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return a model whose embedding and MLPs follow the usual parametrization: variance 1 over the fan-in."""
    design = Architecture(2, width, init="lecun", **BASE)
    model = ReferenceTransformer(design, seed=int(torch.randint(1000, ())))
    with torch.no_grad():
        model.head.weight.mul_(0.0)
    return model, (batch()[:, :-1], batch()[:, 1:])


def mup(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return Adam with learning rates of hidden matrices over their fan-in (Yang et al. 2022, table 8), from width 32 on."""
    groups = []
    for name, parameter in model.named_parameters():
        is_hidden = parameter.dim() == 2 and "embedding" not in name
        fan_in = parameter.shape[1] / (128 if name.endswith("down.weight") else 32) if is_hidden else 1.0
        groups.append({"params": [parameter], "lr": lr / fan_in})
    return torch.optim.Adam(groups)


def test_under_the_usual_parametrization_logits_grow_with_the_width_and_under_mup_they_do_not() -> None:
    usual = coordinate_check(made, WIDTHS, n_steps=4, lr=1e-2)
    scaled = coordinate_check(made, WIDTHS, n_steps=4, lr=1e-2, make_optimizer=mup)

    def exponent(check: object, coordinate: str) -> float:
        frame = check.exponents  # type: ignore[attr-defined]
        return float(frame[(frame["step"] == 4) & (frame["coordinate"] == coordinate)]["exponent"].iloc[0])

    assert exponent(usual, "logits") > 0.5
    assert abs(exponent(scaled, "logits")) < 0.25
    assert not usual.is_kept
    # Before the first step the head is 0 and the sizes of the rest are those of the init.
    at_start = usual.exponents[usual.exponents["step"] == 0].set_index("coordinate")
    assert at_start.loc["state behind the last block", "verdict"] == "kept"


def test_the_stream_of_double_norm_grows_like_the_root_of_the_depth() -> None:
    def deep(n_blocks: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
        design = Architecture(n_blocks, 64, norm_placement="double", **BASE)
        return ReferenceTransformer(design, seed=int(torch.randint(1000, ()))), (batch()[:, :-1], batch()[:, 1:])

    check = coordinate_check(deep, (2, 4, 8), axis="depth", n_steps=1)

    start = check.exponents[check.exponents["step"] == 0].set_index("coordinate")
    assert start.loc["state behind the last block", "exponent"] == pytest.approx(0.5, abs=0.06)
    assert start.loc["state behind the last block", "verdict"] == "grows"
    assert start.loc["mlp write", "verdict"] == "kept"


def test_the_check_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)

    coordinate_check(made, WIDTHS, n_steps=1, seeds=(0,))

    assert torch.equal(torch.rand(1), expected)


def test_two_sizes_are_refused() -> None:
    with pytest.raises(LabError, match="at least three sizes"):
        coordinate_check(made, (32, 64))


def test_a_power_law_is_found_with_its_band() -> None:
    x = [1.0, 2.0, 4.0, 8.0, 16.0]
    law = power_law(x, [3 * a**0.7 * factor for a, factor in zip(x, (1.02, 0.99, 1.0, 1.01, 0.98), strict=True)])

    assert law is not None
    value, low, high = law.at(64.0)
    assert law.exponent == pytest.approx(0.7, abs=0.03)
    assert low < 3 * 64**0.7 < high < 2 * low
    assert value == pytest.approx(math.sqrt(low * high))
    assert power_law([1.0, 1.0], [2.0, 3.0]) is None
    two = power_law([1.0, 2.0], [1.0, 2.0])
    assert two is not None
    assert two.at(4.0)[1:] == (0.0, math.inf)
