"""Forecasts of a recording's growing quantities, and silence where nothing grows toward a limit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.diagnostics.finding import Finding
from rheoscope.diagnostics.forecast import forecasts
from rheoscope.diagnostics.tables import Tables

STEPS = tuple(range(0, 400, 10))


def logits(growth: dict[int, float], start: float = 100.0) -> pd.DataFrame:
    """Return an attention table in whose block the largest logit grows e-fold every ``growth`` steps."""
    rows = [
        {
            "step": step,
            "stack": 0,
            "block": block,
            "branch": "attention",
            "depth": 2 * block + 1,
            "head": 0,
            "micro_step": 0,
        }
        | {"logit_max": start * math.exp(step / every), "logit_std": 1.0, "entropy_ratio": 0.9, "sink_share": 0.1}
        for step in STEPS
        for block, every in growth.items()
    ]
    return pd.DataFrame(rows)


def found_in(made: Any) -> list[Finding]:
    return forecasts(Tables(made.recording()))


def test_the_block_whose_logits_arrive_first_is_named_with_its_step(made: Any) -> None:
    run = made(4, steps=STEPS)
    run.tables["attention"] = logits({0: 1e9, 1: 150.0, 2: 100.0, 3: 200.0})

    (finding,) = found_in(run)

    # 100 e^(t / 100) = 1e4 at t = 100 ln 100 = 460.5, 70 steps after the last: soon.
    assert (finding.code, finding.severity, finding.block) == ("forecast-attention-logits", "info", 2)
    assert finding.evidence.observed == pytest.approx(460.5, rel=0.01)
    assert "grows exponentially" in finding.sentence
    assert "reaches 10,000 at step 46" in finding.sentence


def test_what_lies_far_ahead_is_a_remark(made: Any) -> None:
    run = made(4, steps=STEPS)
    run.tables["attention"] = logits({0: 200.0})

    (finding,) = found_in(run)

    assert finding.severity == "info"
    assert finding.evidence.observed == pytest.approx(200 * math.log(100), rel=0.01)


def test_states_are_followed_to_the_end_of_fp16_where_weights_are_fp16(made: Any) -> None:
    run = made(4, steps=STEPS)
    states = run.tables["activations"]
    chosen = (states["site"] == "state") & (states["depth"] == 8) & (states["direction"] == "forward")
    states.loc[chosen, "absmax"] = 500 * np.exp(states.loc[chosen, "step"] / 100)

    assert found_in(run) == []
    run.manifest = {"model": {"dtype": "float16"}}
    (finding,) = found_in(run)

    assert (finding.code, finding.block) == ("forecast-fp16-range", 3)
    assert finding.evidence.observed == pytest.approx(100 * math.log(65_504 / 500), rel=0.01)


@pytest.mark.parametrize("sign", [1, -1])
def test_log_z_is_followed_whichever_way_it_drifts(made: Any, sign: int) -> None:
    run = made(4, steps=STEPS)
    rows = {"step": STEPS, "micro_step": 0, "stack": 0, "logit_max": 1.0}
    run.tables["logits"] = pd.DataFrame(rows | {"log_z": sign * (5 + 0.12 * np.array(STEPS))})

    (finding,) = found_in(run)

    # 5 + .12 t = 64 at t = 491.7.
    assert finding.code == "forecast-log-z"
    assert finding.evidence.observed == pytest.approx(491.7, rel=0.01)


def test_gains_are_followed_down_as_well_as_up(made: Any) -> None:
    run = made(4, steps=STEPS)
    rows = run.tables["parameters"]
    name = str(rows["name"].iloc[0])
    rows.loc[rows["name"] == name, "role"] = "gain"
    rows.loc[rows["name"] == name, "weight_rms"] = np.exp(-np.array(STEPS) / 200)

    (finding,) = found_in(run)

    assert finding.code == "forecast-gain-drift"
    assert finding.evidence.observed == pytest.approx(200 * math.log(10), rel=0.02)


def test_bias_shares_are_followed_to_one_half(made: Any) -> None:
    run = made(4, steps=STEPS, bias=lambda depth: 0.01)
    rows = run.tables["activations"]
    chosen = (rows["site"] == "bias") & (rows["depth"] == 3)
    rows.loc[chosen, "rms"] = 0.1 * np.exp(rows.loc[chosen, "step"] / 250)

    (finding,) = found_in(run)

    # The share is the square: .01 e^(t / 125) = .5.
    assert (finding.code, finding.block) == ("forecast-bias-share", 1)
    assert finding.evidence.observed == pytest.approx(125 * math.log(50), rel=0.02)


def test_a_steady_run_and_a_short_one_foretell_nothing(made: Any) -> None:
    assert found_in(made(4, steps=STEPS, bias=lambda depth: 0.1)) == []
    assert found_in(made(4, steps=STEPS[:5])) == []


def test_a_forecast_is_part_of_the_diagnosis(made: Any) -> None:
    run = made(4, steps=STEPS)
    run.tables["attention"] = logits({0: 100.0})

    assert "forecast-attention-logits" in [finding.code for finding in diagnose(run.recording())]
