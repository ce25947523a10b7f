"""Exact identities: one block that breaks one is an error, all of them a warning, a design nothing."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.diagnostics.finding import Finding

from .conftest import Made, Maker


def with_checks(made: Made, check: str, observed: list[float], branch: str = "mlp", **more: Any) -> Made:
    rows = [
        {
            "check": check,
            "stack": 0,
            "block": block,
            "branch": branch,
            "depth": 2 * block + 2,
            "observed": value,
            **more,
        }
        for block, value in enumerate(observed)
    ]
    made.tables["identities"] = pd.DataFrame(rows)
    return made


def found(made: Made, code: str) -> list[Finding]:
    return [finding for finding in diagnose(made.recording()) if finding.code == code]


@pytest.mark.parametrize(
    ("ratio", "code"), [(0.0, "gradient-detached"), (-1.0, "gradient-scaled"), (0.95, "gradient-scaled")]
)
def test_a_branch_that_does_not_conserve_its_gradient_is_an_error(made: Maker, ratio: float, code: str) -> None:
    findings = found(
        with_checks(made(), "gradient_conservation", [1, 1, ratio, 1, 1, 1], expected=1.0, tolerance=0.02), code
    )
    assert [(f.severity, f.block, f.component, f.evidence.observed) for f in findings] == [("error", 2, "mlp", ratio)]


def test_a_class_whose_backward_is_wrong_is_one_warning(made: Maker) -> None:
    recording = with_checks(made(), "gradient_conservation", [0.5] * 6, expected=1.0, tolerance=0.02)
    assert [(f.severity, f.block) for f in found(recording, "gradient-scaled")] == [("warning", None)]


@pytest.mark.parametrize(
    ("leaks", "blocks"), [([0, 0, 0.1, 0, 0, 0], [2]), ([0.1] * 6, []), ([0] * 6, []), ([0, 0.1, 0, 0.1, 0, 0.1], [])]
)
def test_a_leak_is_told_where_the_others_are_causal(made: Maker, leaks: list[float], blocks: list[int]) -> None:
    recording = with_checks(made(), "causality", leaks, "attention", tolerance=1e-5)
    assert [f.block for f in found(recording, "mask-leak")] == blocks


@pytest.mark.parametrize(
    ("scale", "expected", "severity"),
    [(1.0, 1.0, None), (128.0, 128.0, None), (1000.0, 1.0, "warning"), (1e-3, 1.0, "warning"), (-1.0, 1.0, "error")],
)
def test_a_scaled_loss_is_told(made: Maker, scale: float, expected: float, severity: str | None) -> None:
    recording = with_checks(made(), "loss_scale", [scale], "output", expected=expected, tolerance=0.01)
    assert [f.severity for f in found(recording, "loss-scale")] == ([] if severity is None else [severity])
