"""A team's own test suite fails where its model is ill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import rheoscope as rs
import torch
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer

TOKENS = torch.randint(256, (2, 8), generator=torch.Generator().manual_seed(0))


def model(factor: float = 1.0) -> torch.nn.Module:
    """A small transformer, the weights of one block ``factor`` times as large."""
    found = ReferenceTransformer(Architecture(n_blocks=6, width=16, n_heads=2, context=8), seed=0)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if ".3." in name and parameter.dim() == 2:
                parameter.mul_(factor)
    return found


def test_a_sound_model_passes_the_fixture(assert_stable: Callable[..., rs.Recording]) -> None:
    assert assert_stable(model(), TOKENS).anatomy.n_blocks == 6


def test_an_ill_model_fails_with_code_place_and_remedy_until_it_is_suppressed() -> None:
    with pytest.raises(AssertionError, match="weight-scale, stack 0, block 3") as failed:
        rs.assert_stable(model(30.0), TOKENS)
    codes = {finding.code for finding in rs.diagnose(rs.examine(model(30.0), TOKENS)) if finding.severity != "info"}

    assert "What to do:" in str(failed.value)
    known: list[dict[str, Any]] = [{"code": code, "reason": "a test"} for code in codes]
    rs.assert_stable(model(30.0), TOKENS, suppress=known)
