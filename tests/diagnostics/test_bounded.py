"""What is found in a long run through bounded frames is what is found in all of its rows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rheoscope.diagnostics.bounded import outstanding
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.diagnostics.frames import groups
from rheoscope.diagnostics.tables import Tables
from rheoscope.probes import recording as recording_module
from rheoscope.probes import summaries
from rheoscope.probes.recording import Recording

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from recordings import Plan, write

Damage = Callable[[dict[str, pd.DataFrame]], None]
TABLES = ("steps", "activations", "gradient_paths", "parameters", "attention", "tokens", "events")
N_STEPS, EVERY = 3_000, 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """300 sampled steps of 6 blocks, short enough to be read whole."""
    return write(Plan(6, N_STEPS, every=EVERY, n_heads=2), tmp_path_factory.mktemp("long") / "run")


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes tables of more than 2,000 rows long from now on."""

    def lower() -> None:
        monkeypatch.setattr(recording_module, "MOST_ROWS", 2_000)
        monkeypatch.setattr(summaries, "MOST_ROWS", 2_000)

    return lower


def damaged(recording: Recording, damage: Damage) -> Recording:
    tables = {name: recording.table(name) for name in TABLES}
    damage(tables)
    return Recording.from_tables(recording.manifest, recording.anatomy, tables)


def rows(frame: pd.DataFrame, step: int, **where: object) -> pd.Series:
    mask = frame["step"] == step
    for column, value in where.items():
        mask &= frame[column] == value
    return mask


def sound(_: dict[str, pd.DataFrame]) -> None:
    """Leave the run as it is."""


def one_step_vanishes(tables: dict[str, pd.DataFrame]) -> None:
    frame = tables["activations"]
    mask = rows(frame, 1_230, site="state", direction="backward")
    frame.loc[mask, "rms"] *= np.exp(0.9 * frame.loc[mask, "block"].astype(float))


def one_step_grows(tables: dict[str, pd.DataFrame]) -> None:
    frame = tables["activations"]
    mask = rows(frame, 2_010, site="state", direction="backward")
    frame.loc[mask, "rms"] *= np.exp(-1.2 * frame.loc[mask, "block"].astype(float))


def activation_overflows_once(tables: dict[str, pd.DataFrame]) -> None:
    frame = tables["activations"]
    for site in ("write", "state"):
        mask = rows(frame, 1_770, site=site, direction="forward") & (frame["block"] >= 3)
        frame.loc[mask, ["nonfinite", "rms", "absmax"]] = [5.0, np.inf, np.inf]


def gradient_overflows_and_is_skipped(tables: dict[str, pd.DataFrame]) -> None:
    frame = tables["activations"]
    frame.loc[rows(frame, 640, direction="backward") & (frame["block"] <= 2), "nonfinite"] = 3.0
    updates = tables["parameters"]
    updates.loc[rows(updates, 640), "update_rms"] = np.nan


def weights_break_before(tables: dict[str, pd.DataFrame]) -> None:
    updates, frame = tables["parameters"], tables["activations"]
    updates.loc[rows(updates, 1_490, block=4), "weight_rms"] = np.nan
    frame.loc[rows(frame, 1_500, direction="forward") & (frame["block"] >= 4), "nonfinite"] = 7.0


def one_gradient_is_not_finite(tables: dict[str, pd.DataFrame]) -> None:
    updates = tables["parameters"]
    updates.loc[rows(updates, 2_220, name="h.2.mlp.in.weight"), "gradient_rms"] = np.nan


def loss_breaks_between_samples(tables: dict[str, pd.DataFrame]) -> None:
    tables["steps"].loc[tables["steps"]["step"] == 1_111, "loss"] = np.inf


def loss_breaks_at_a_sample(tables: dict[str, pd.DataFrame]) -> None:
    tables["steps"].loc[tables["steps"]["step"] == 1_110, "loss"] = np.inf


def a_parameter_is_reached_once(tables: dict[str, pd.DataFrame]) -> None:
    updates = tables["parameters"]
    for name, reached in (("h.1.mlp.in.bias", ()), ("h.2.mlp.in.bias", (1_840,))):
        mask = (updates["name"] == name) & ~updates["step"].isin(reached)
        updates.loc[mask, "gradient_state"] = "none"
        updates.loc[mask, ["gradient_rms", "update_rms"]] = np.nan


def one_block_moves_too_far(tables: dict[str, pd.DataFrame]) -> None:
    updates = tables["parameters"]
    updates.loc[updates["block"] == 3, "update_rms"] *= 300


DAMAGES = [
    sound,
    one_step_vanishes,
    one_step_grows,
    activation_overflows_once,
    gradient_overflows_and_is_skipped,
    weights_break_before,
    one_gradient_is_not_finite,
    loss_breaks_between_samples,
    loss_breaks_at_a_sample,
    a_parameter_is_reached_once,
    one_block_moves_too_far,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_rule_finds_in_a_long_run_what_it_finds_in_all_rows(
    damage: Damage, whole: Recording, limits: Callable[[], None]
) -> None:
    run = damaged(whole, damage)
    expected = {f.code: f for f in diagnose(run)}

    limits()
    found = {f.code: f for f in diagnose(run)}

    assert Tables(run).is_long
    assert len(Tables(run).activations) < 0.5 * run.n_rows("activations")
    assert found.keys() == expected.keys()
    for code, finding in found.items():
        same = expected[code]
        assert (finding.severity, finding.block, finding.module_path) == (same.severity, same.block, same.module_path)
        # A remark's noisiest step, and a median over steps, are those of the steps that were looked at.
        if code == "update-ratio":
            assert finding.evidence.observed == pytest.approx(same.evidence.observed, rel=0.05)
        elif finding.severity != "info" or code.startswith(("non", "no-")):
            assert (finding.step, finding.sentence) == (same.step, same.sentence)


def test_the_largest_activation_is_found_at_its_step(whole: Recording, limits: Callable[[], None]) -> None:
    def one_peak(tables: dict[str, pd.DataFrame]) -> None:
        frame = tables["activations"]
        frame.loc[rows(frame, 2_340, site="state", direction="forward", block=5), "absmax"] = 6e4

    run = damaged(whole, one_peak)
    run.manifest["model"] = {"dtype": "float16"}
    limits()

    (finding,) = [f for f in diagnose(run) if f.code == "fp16-range"]

    assert (finding.step, finding.block) == (2_340, 5)


def test_every_row_of_a_bounded_frame_was_recorded(whole: Recording, limits: Callable[[], None]) -> None:
    run = damaged(whole, one_step_vanishes)
    limits()

    frame = Tables(run).activations

    recorded = run.table("activations", steps=set(frame["step"]))
    keys = ["step", "depth", "site", "direction"]
    assert 1_230 in set(frame["step"])
    assert {0, N_STEPS - EVERY} <= set(frame["step"])
    assert not frame.duplicated(keys).any()
    left, right = (each.sort_values(keys, ignore_index=True) for each in (frame, recorded))
    pd.testing.assert_frame_equal(left, right)


def test_a_short_recording_is_read_whole_and_nothing_is_sought(whole: Recording) -> None:
    assert outstanding(whole) == frozenset()
    pd.testing.assert_frame_equal(Tables(whole).gradient_paths, whole.table("gradient_paths"))
    assert not any("long run" in sentence for sentence in diagnose(whole).not_judged)


def test_a_diagnosis_of_a_long_run_says_how_much_it_looked_at(whole: Recording, limits: Callable[[], None]) -> None:
    limits()

    assert diagnose(whole).not_judged[0].startswith("Of this long run")


def test_the_loss_keeps_its_extremes_in_a_run_of_very_many_steps(whole: Recording, limits: Callable[[], None]) -> None:
    def spikes(tables: dict[str, pd.DataFrame]) -> None:
        frame = tables["steps"]
        frame.loc[frame["step"].isin([777, 1_999]), "loss"] = [50.0, 0.001]

    run = damaged(whole, spikes)
    limits()

    tables = Tables(run)

    assert len(tables.steps) < N_STEPS
    assert tables.steps["loss"].max() == 50.0
    assert tables.steps["loss"].min() == 0.001
    assert len(tables.losses) == N_STEPS


def test_groups_come_in_order_with_whole_numbers() -> None:
    frame = pd.DataFrame({"step": [3, 1, 3, None, 1], "stack": [0, 1, 0, 0, 0], "value": range(5)})

    found = [(place, rows["value"].tolist()) for place, rows in groups(frame, "step", "stack")]

    assert found == [([1, 0], [4]), ([1, 1], [1]), ([3, 0], [0, 2])]
    assert [place for place, _ in groups(frame, "stack")] == [[0], [1]]
