"""A run beside the recording of a good one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from rheoscope.diagnostics.baseline import against_baseline
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.diagnostics.finding import Finding
from rheoscope.diagnostics.tables import Tables
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.errors import RecordingError
from rheoscope.probes.recording import Recording

STEPS = tuple(range(0, 100, 10))


def run(made: Any, **choices: Any) -> Any:
    return made(4, **{"steps": STEPS, "update": lambda block: 1e-3, "bias": lambda depth: 0.2} | choices)


def held(one: Any, good: Any) -> list[Finding]:
    return against_baseline(Tables(one.recording()), Tables(good.recording()))


def test_a_run_beside_itself_and_beside_one_of_twice_its_values_is_sound(made: Any) -> None:
    doubled = run(made, state=lambda depth: 2 * (1 + depth) ** 0.5, gradient=lambda depth: 5e-4)

    assert held(run(made), run(made)) == []
    assert held(doubled, run(made)) == []


@pytest.mark.parametrize(
    ("code", "table", "column", "where"),
    [
        ("baseline-state", "activations", "rms", {"site": "state", "direction": "forward", "depth": 5}),
        ("baseline-gradient", "activations", "rms", {"site": "state", "direction": "backward", "depth": 5}),
        ("baseline-update", "parameters", "update_rms", {"block": 2, "branch": "attention"}),
        ("baseline-bias-share", "activations", "rms", {"site": "bias", "depth": 5}),
    ],
)
def test_what_leaves_the_band_is_named_with_place_and_step(
    made: Any, code: str, table: str, column: str, where: dict[str, Any]
) -> None:
    ill = run(made)
    rows = ill.tables[table]
    chosen = rows["step"] >= 50
    for name, wanted in where.items():
        chosen &= rows[name] == wanted
    rows.loc[chosen, column] *= 10

    (finding,) = held(ill, run(made))

    assert (finding.code, finding.severity, finding.block, finding.step) == (code, "warning", 2, 50)
    assert finding.evidence.observed > 3 * (finding.evidence.expected or 0)


def test_the_largest_logits_are_held_against_the_baselines(made: Any) -> None:
    def with_logits(size: float) -> Any:
        one = run(made)
        rows = [
            {"step": step, "micro_step": 0, "stack": 0, "block": 1, "branch": "attention", "depth": 3, "head": 0}
            | {"logit_max": size * (1 + step), "logit_std": 1.0, "entropy_ratio": 0.9, "sink_share": 0.1}
            for step in STEPS
        ]
        one.tables["attention"] = pd.DataFrame(rows)
        return one

    (finding,) = held(with_logits(10.0), with_logits(1.0))

    assert (finding.code, finding.block) == ("baseline-attention-logit", 1)
    assert held(with_logits(2.0), with_logits(1.0)) == []


def test_one_step_alone_is_a_spike_and_no_departure(made: Any) -> None:
    ill = run(made).set("activations", "rms", 100.0, site="state", direction="forward", step=50, depth=5)

    assert held(ill, run(made)) == []


def test_a_check_up_is_held_by_its_only_step(made: Any) -> None:
    ill = run(made, steps=(0,), state=lambda depth: 10.0)

    (finding,) = held(ill, run(made, steps=(0,), state=lambda depth: 1.0))

    assert (finding.code, finding.block) == ("baseline-state", None)
    assert "8 other places" in finding.sentence
    assert "10 times above" in finding.sentence


def test_values_far_below_are_told_too(made: Any) -> None:
    (finding,) = held(run(made, gradient=lambda depth: 1e-6), run(made))

    assert "1e+03 times below" in finding.sentence


def test_another_model_is_no_baseline(made: Any) -> None:
    with pytest.raises(
        RecordingError, match=r"Expected a baseline of the same model, got 8 blocks of 8 \(16 branches\)"
    ):
        held(run(made), made(8))
    wide = run(made)
    wide.anatomy = replace(wide.anatomy, stacks=(replace(wide.anatomy.stacks[0], width=16),))
    with pytest.raises(RecordingError, match="beside 4 blocks of 16"):
        held(wide, run(made))


def test_a_recording_without_a_stream_is_no_baseline(made: Any) -> None:
    with pytest.raises(RecordingError, match="both name a residual stream, got 8 and 0 branches"):
        diagnose(run(made).recording(), baseline=Recording.from_tables({}, Anatomy(), {}))


def test_diagnose_says_what_the_baseline_does_not_reach(made: Any) -> None:
    long = run(made, steps=tuple(range(0, 400, 10)))
    good = run(made, update=None)

    found = diagnose(long.recording(), baseline=good.recording())

    assert "Steps after 135 were not held against the baseline, which ends before." in found.not_judged
    assert any("update ratio was not held" in sentence for sentence in found.not_judged)
    assert not any(finding.code.startswith("baseline") for finding in found)
