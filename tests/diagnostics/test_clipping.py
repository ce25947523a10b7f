"""How often gradients were clipped, and whether clipping hides one that grows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from rheoscope.diagnostics.clipping import clipping
from rheoscope.diagnostics.tables import Tables

N = 300


def run(made: Any, norm: np.ndarray, limit: float = 1.0) -> Tables:
    """Return a run whose gradients of these norms were clipped at ``limit``."""
    recording = made(steps=(0,))
    coefficient = np.minimum(1.0, limit / norm)
    recording.tables["steps"] = pd.DataFrame(
        {"step": range(len(norm)), "unclipped_gradient_norm": norm, "clip_coefficient": coefficient}
    )
    return Tables(recording.recording())


def noise(n: int = N) -> np.ndarray:
    return np.exp(0.3 * np.random.default_rng(0).standard_normal(n))


def test_share_and_size_are_told(made: Any) -> None:
    norm = np.where(np.arange(N) % 4 == 0, 2.0, 0.5)

    (finding,) = clipping(run(made, norm))

    assert (finding.severity, finding.evidence.observed) == ("info", pytest.approx(0.25))
    assert "by 0.5 at the median one" in finding.sentence


def test_a_run_that_is_always_clipped_is_a_remark(made: Any) -> None:
    (finding,) = clipping(run(made, 50 * noise()))

    assert finding.severity == "info"
    assert "in the last half every step was" in finding.sentence


def test_a_norm_that_grows_behind_clipping_is_a_warning(made: Any) -> None:
    (finding,) = clipping(run(made, 50 * noise() * np.exp(np.arange(N) / 60)))

    assert finding.severity == "warning"
    assert finding.evidence.observed == pytest.approx(np.exp(150 / 60), rel=0.3)


def test_a_norm_that_grows_where_nothing_is_clipped_is_none_of_this_rule(made: Any) -> None:
    (finding,) = clipping(run(made, noise() * np.exp(np.arange(N) / 60), limit=1e9))

    assert (finding.severity, finding.evidence.observed) == ("info", 0.0)


def test_growth_in_the_first_steps_is_no_trend(made: Any) -> None:
    (finding,) = clipping(run(made, 50 * noise(40) * np.exp(np.arange(40) / 5)))

    assert finding.severity == "info"


def test_a_run_without_clipping_says_nothing(made: Any) -> None:
    assert clipping(Tables(made().recording())) == []
