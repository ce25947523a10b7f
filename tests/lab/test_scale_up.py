"""What small sizes say of a larger one, tried on the largest that was trained."""

from __future__ import annotations

import math

import pytest
import torch
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.scale_up import LIMITS, scale_up
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.errors import LabError
from torch import Tensor, nn

SIZES = [(16, 2), (24, 3), (32, 4), (48, 6)]


def made(width: int, depth: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return a model of double norms, whose stream grows by 2 in its mean square with every block, whatever the width."""
    design = Architecture(
        depth, width, 2, vocabulary=37, context=8, norm_placement="double", biases=False, positions="none"
    )
    tokens = torch.arange(2 * 9).view(2, 9) % 37
    return ReferenceTransformer(design, seed=int(torch.randint(1000, (), device="cpu"))), (
        tokens[:, :-1],
        tokens[:, 1:],
    )


def test_the_stream_of_the_target_is_foretold_with_a_band_and_a_backtest() -> None:
    told = scale_up(made, SIZES, (64, 8), rates=(1e-3, 1e-2), n_steps=6, seeds=(0,))

    assert told.measured["n_parameters"].is_monotonic_increasing
    assert told.predicted["quantity"].tolist() == list(LIMITS)
    state = told.predicted.set_index("quantity").loc["RMS of the last state"]
    assert state["low"] < state["target"] < state["high"]
    # About sqrt(2 x depth) at init; a few steps change it little.
    assert state["target"] == pytest.approx(4.0, rel=0.25)
    assert state["backtest"] == pytest.approx(1.0, rel=0.25)
    assert told.n_parameters > told.measured["n_parameters"].max()


def test_a_rate_at_which_training_fails_is_not_stable() -> None:
    told = scale_up(made, SIZES, (64, 8), rates=(1e-2, 1e4), n_steps=8, seeds=(0,))

    stable = told.measured["largest stable learning rate"]
    assert stable.tolist() == [1e-2] * 4
    assert math.isnan(told.predicted.set_index("quantity").loc["largest stable learning rate", "limit"])


def test_three_sizes_are_refused() -> None:
    with pytest.raises(LabError, match="at least four sizes"):
        scale_up(made, SIZES[:3], (64, 8))
