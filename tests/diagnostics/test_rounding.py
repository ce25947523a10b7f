"""Writes that are rounded away: the closed form against torch's own bfloat16, and the rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.diagnostics.rounding import rounded_shares, rounded_writes
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.check_up import examine

ULP = 2.0**-7  # of bfloat16 between 1 and 2


def lost_share(write_rms: float) -> float:
    """Return the energy that adding random writes to a bfloat16 stream between 1.1 and 1.9 loses, over that of the writes."""
    generator = torch.Generator().manual_seed(0)
    state = (1.1 + 0.8 * torch.rand(200_000, generator=generator)).bfloat16()
    write = (write_rms * torch.randn(200_000, generator=generator)).bfloat16()
    lost = (state + write).double() - (state.double() + write.double())
    return float(lost.square().sum() / write.double().square().sum())


@pytest.mark.parametrize("ulps", [0.58, 1.0, 2.9])
def test_rounding_takes_an_ulp_squared_over_twelve_times_the_write_squared(ulps: float) -> None:
    assert lost_share(ulps * ULP) == pytest.approx(1 / (12 * ulps**2), rel=0.05)


def test_half_is_lost_at_four_tenths_of_an_ulp_and_all_far_below_half_of_one() -> None:
    assert lost_share(0.4 * ULP) == pytest.approx(0.5, abs=0.02)
    assert lost_share(0.1 * ULP) == pytest.approx(1.0, abs=1e-6)
    assert math.isclose(1 / (12 * 0.41**2), 0.5, rel_tol=0.01)


def run(made: Any, share: Callable[[int], float], steps: tuple[int, ...] = (0, 10, 20)) -> Any:
    """Return the parts of a run in whose adds ``share(block)`` of a write's energy is lost."""
    recording = made(6, steps=steps)
    rows = recording.tables["activations"]
    rows["rounded_share"] = [
        share(block) if site == "write" else None for block, site in zip(rows["block"], rows["site"], strict=True)
    ]
    return recording


def test_losses_of_a_thousandth_are_not_mentioned(made: Any) -> None:
    assert rounded_writes(Tables(run(made, lambda block: 1e-3).recording())) == []


def test_one_block_that_loses_most_of_its_write_is_named(made: Any) -> None:
    (finding,) = rounded_writes(Tables(run(made, lambda block: 0.8 if block == 3 else 1e-3).recording()))

    assert (finding.code, finding.severity, finding.block) == ("rounded-writes", "warning", 3)


def test_writes_that_all_are_lost_are_a_warning_of_no_one_block(made: Any) -> None:
    (finding,) = rounded_writes(Tables(run(made, lambda block: 0.9).recording()))

    assert (finding.severity, finding.block) == ("warning", None)
    assert "12 of 12 branches lose more than half" in finding.sentence


def test_a_share_that_grows_with_depth_is_a_warning_from_a_quarter_on(made: Any) -> None:
    (below,) = rounded_writes(Tables(run(made, lambda block: 0.03 * (1 + block)).recording()))
    (beyond,) = rounded_writes(Tables(run(made, lambda block: 0.06 * (1 + block)).recording()))

    assert (below.severity, beyond.severity) == ("info", "warning")
    assert "grows with depth" in beyond.sentence


def test_what_was_lost_at_first_alone_is_a_remark(made: Any) -> None:
    recording = run(made, lambda block: 1e-3, steps=(0, 10, 20, 30))
    recording.set("activations", "rounded_share", 0.8, step=0, site="write")

    (finding,) = rounded_writes(Tables(recording.recording()))

    assert (finding.severity, finding.step) == ("info", 0)
    assert "less than a hundredth at the end" in finding.sentence


def test_a_float32_stream_has_no_such_column(made: Any) -> None:
    assert rounded_writes(Tables(made().recording())) == []


@pytest.mark.parametrize("is_parallel", [False, True])
def test_a_check_up_sees_what_rounding_takes_of_adds_of_several_terms_too(is_parallel: bool) -> None:
    shape = {"width": 32, "n_heads": 4, "mlp_width": 64, "vocabulary": 61, "context": 16}
    model = ReferenceTransformer(Architecture(n_blocks=5, is_parallel=is_parallel, **shape), seed=0).bfloat16()
    recording = examine(model, torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(0)))
    assert 0 < rounded_shares(Tables(recording))["rounded_share"].max() < 0.01
    with torch.no_grad():
        model.token_embedding.weight.mul_(1e5)
    told = diagnose(examine(model, torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(0))))
    assert ("rounded-writes", "warning") in [(f.code, f.severity) for f in told]
