"""Idle blocks, and where the gradient comes down through branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from rheoscope.diagnostics.depth_use import gradient_shares, idle_blocks
from rheoscope.diagnostics.tables import Tables


def turning(made: Any, angle: Callable[[int], float], *, gain: float = 0.8) -> Tables:
    """Return a check-up whose blocks turn the states by ``angle(block)``, with gains of ``gain``."""
    recording = made(6)
    rows = recording.tables["parameters"]
    recording.tables["parameters"] = pd.concat(
        [rows, rows.assign(role="gain", name=rows["name"] + "g", weight_rms=gain)]
    )
    recording.tables["tokens"] = pd.DataFrame(
        {
            "step": 0, "micro_step": 0, "stack": 0, "block": b, "branch": "mlp", "depth": 2 * b + 2, "cosine": 0.1,
            "angular_distance": angle(b),
        }
        for b in range(6)
    )  # fmt: skip
    return Tables(recording.recording())


def test_a_block_that_hardly_turns_the_stream_is_idle(made: Any) -> None:
    (finding,) = idle_blocks(turning(made, lambda block: 0.002 if block == 4 else 0.1))

    assert (finding.code, finding.severity, finding.block) == ("idle-block", "info", 4)
    assert finding.evidence.observed == pytest.approx(0.002)


def test_blocks_that_all_turn_little_are_alike(made: Any) -> None:
    assert idle_blocks(turning(made, lambda block: 0.005)) == []


def test_a_fresh_model_is_not_judged(made: Any) -> None:
    assert idle_blocks(turning(made, lambda block: 0.002 if block == 4 else 0.1, gain=1.0)) == []


def paths(made: Any, branch: Callable[[int], float]) -> Tables:
    """Return a check-up whose gradient has RMS 1 along the skip and ``branch(block)`` through the branch."""
    recording = made(6)
    rows = recording.tables["gradient_paths"]
    rows["skip_rms"], rows["branch_rms"], rows["cosine"] = 1.0, [branch(block) for block in rows["block"]], 0.0
    return Tables(recording.recording())


def test_skips_that_carry_most_of_the_gradient_are_the_rule(made: Any) -> None:
    assert gradient_shares(paths(made, lambda block: 0.5)) == []


def test_a_branch_that_carries_more_than_the_skip_is_told_with_its_share_of_the_energy(made: Any) -> None:
    (finding,) = gradient_shares(paths(made, lambda block: 3.0 if block == 2 else 0.1))

    assert (finding.severity, finding.block, finding.evidence.observed) == ("info", 2, pytest.approx(0.9))


def test_the_first_block_reads_the_embedding(made: Any) -> None:
    assert gradient_shares(paths(made, lambda block: 9.0 if block == 0 else 0.1)) == []
