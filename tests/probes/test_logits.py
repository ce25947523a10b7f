"""Log Z of the logits, against float64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from oracles import NanoGPT, ids
from rheoscope.probes.logits import AT_ONCE, MOST_TOKENS, log_z_sums
from rheoscope.probes.recorder import attach
from torch import nn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_are_those_of_float64(dtype: torch.dtype) -> None:
    logits = (5 * torch.randn(40, AT_ONCE // 16)).to(dtype)  # several parts

    total, squares, largest = log_z_sums(logits).tolist()

    wide = logits.double()
    log_z = (wide - wide.max()).exp().sum(-1).log() + wide.max()
    assert total == pytest.approx(float(log_z.sum()), rel=1e-6)
    assert squares == pytest.approx(float(log_z.square().sum()), rel=1e-6)
    assert largest == float(wide.max())


def test_a_large_logit_does_not_overflow() -> None:
    assert log_z_sums(torch.full((2, 3), 1e30))[0] == pytest.approx(2e30)


@pytest.mark.parametrize("width", [1, 5, 16, 4096, 5001])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 80.0])
def test_rows_that_lie_apart_are_those_of_float64(width: int, scale: float) -> None:
    logits = (scale * torch.randn(30, width))[::4]

    total, squares, largest = log_z_sums(logits).tolist()

    log_z = logits.double().logsumexp(-1)
    assert total == pytest.approx(float(log_z.sum()), rel=1e-6, abs=1e-5)
    assert squares == pytest.approx(float(log_z.square().sum()), rel=1e-6, abs=1e-9)
    assert largest == float(logits.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_classes_masked_by_infinity_weigh_nothing_and_what_is_not_finite_shows(dtype: torch.dtype) -> None:
    logits = torch.randn(3, 40, dtype=dtype)
    logits[1, :7] = -math.inf
    expected = float(logits.double().logsumexp(-1).sum())

    assert float(log_z_sums(logits)[0]) == pytest.approx(expected, rel=1e-6)

    for bad in (math.nan, math.inf):
        logits[2, 3] = bad
        total, _, largest = log_z_sums(logits).tolist()
        assert not math.isfinite(total)
        assert not math.isfinite(largest)
    logits[2] = -math.inf
    assert float(log_z_sums(logits)[0]) == -math.inf


class Returning(nn.Module):
    """Returns logits and loss."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = NanoGPT()

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.inner(tokens)
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())


@pytest.mark.parametrize("n", [3, 70])
def test_a_run_records_log_z_of_every_micro_batch(n: int, tmp_path: Path) -> None:
    model = Returning().train()
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        for seed in (0, 1):
            model(ids(n, seed))[1].backward()
        with torch.no_grad():
            model.eval()
            model(ids(n, 2))  # is nobody's
            model.train()
        probe.step(1.0)

    rows = probe.recording.table("logits")

    assert rows["micro_step"].tolist() == [0, 1]
    for seed, row in zip((0, 1), rows.to_dict("records"), strict=True):
        flat = model(ids(n, seed))[0].detach().double().flatten(0, 1)
        stride = -(-len(flat) // MOST_TOKENS)
        log_z = flat[::stride].logsumexp(-1)
        assert row["n_tokens"] == len(log_z) <= MOST_TOKENS
        assert row["token_share"] == pytest.approx(len(log_z) / len(flat))
        assert row["log_z"] == pytest.approx(float(log_z.mean()), rel=1e-5)
        assert row["log_z_rms"] == pytest.approx(float(log_z.square().mean().sqrt()), rel=1e-5)
        assert row["logit_max"] == pytest.approx(float(flat[::stride].max()), rel=1e-6)
