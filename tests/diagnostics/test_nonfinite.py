"""The first place that is not finite is named, its victims are not."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.diagnostics.nonfinite import first_nonfinite
from rheoscope.diagnostics.tables import Tables


def spoil(made: Any, depth: int, site: str, direction: str = "forward", step: int = 0) -> None:
    """Make one site not finite, as the probe records it: a count, and no other statistic."""
    where = {"depth": depth, "site": site, "direction": direction, "step": step}
    made.set("activations", "nonfinite", 3.0, **where).set("activations", "rms", None, **where)


def test_a_finite_run_has_no_finding(made: Any) -> None:
    assert first_nonfinite(Tables(made(steps=(0, 1)).recording())) == []


def test_an_empty_recording_has_no_finding(made: Any) -> None:
    recording = made()
    recording.tables = {}

    assert first_nonfinite(Tables(recording.recording())) == []


def test_the_first_place_in_order_of_execution_is_named_and_its_victims_are_not(made: Any) -> None:
    recording = made()
    for depth, site in ((5, "branch_output"), (5, "write"), (5, "state"), (6, "branch_input"), (6, "state")):
        spoil(recording, depth, site)

    (finding,) = first_nonfinite(Tables(recording.recording()))

    assert (finding.block, finding.component, finding.severity) == (2, "attention", "error")
    assert "the branch output of the attention branch of block 2 (3 elements at step 0)" in finding.sentence


def test_the_embedding_is_named_by_its_own_name(made: Any) -> None:
    recording = made()
    spoil(recording, 0, "state")

    (finding,) = first_nonfinite(Tables(recording.recording()))

    assert finding.block is None
    assert "the embedding's output, state 0" in finding.sentence


def test_the_first_stack_comes_before_the_second(made: Any) -> None:
    recording = made(n_stacks=2)
    recording.set("activations", "nonfinite", 1.0, stack=1, depth=1, site="write")
    recording.set("activations", "nonfinite", 1.0, stack=0, depth=9, site="write")

    (finding,) = first_nonfinite(Tables(recording.recording()))

    assert finding.block == 4


def test_the_first_step_comes_before_a_shallower_place_of_a_later_one(made: Any) -> None:
    recording = made(steps=(0, 10))
    spoil(recording, 7, "write", step=0)
    spoil(recording, 0, "state", step=10)

    (finding,) = first_nonfinite(Tables(recording.recording()))

    assert (finding.step, finding.block) == (0, 3)


def test_the_forward_comes_before_the_backward_of_the_same_step(made: Any) -> None:
    recording = made()
    spoil(recording, 3, "write")
    spoil(recording, 12, "state", "backward")

    (finding,) = first_nonfinite(Tables(recording.recording()))

    assert "activation" in finding.sentence


def test_gradients_alone_are_named_from_the_last_state_down(made: Any) -> None:
    recording = made()
    for depth in (0, 1, 2, 3, 4):
        spoil(recording, depth, "state", "backward")

    (finding,) = first_nonfinite(Tables(recording.recording()))

    assert finding.block == 1
    assert finding.severity == "error"
    assert "All activations are finite" in finding.sentence


def test_a_gradient_scaler_that_skips_a_step_is_no_warning(made: Any) -> None:
    recording = made(steps=(0, 10), update=lambda block: 1e-3)
    spoil(recording, 12, "state", "backward", step=0)
    recording.tables["parameters"] = recording.tables["parameters"].query("step > 0")

    (finding,) = first_nonfinite(Tables(recording.recording()))

    assert finding.severity == "info"
    assert "gradient scaler" in finding.sentence


def test_gradients_that_are_finite_again_after_a_step_was_made_are_a_warning(made: Any) -> None:
    recording = made(steps=(0, 10), update=lambda block: 1e-3)
    spoil(recording, 12, "state", "backward", step=0)

    (finding,) = first_nonfinite(Tables(recording.recording()))

    assert finding.severity == "warning"


def test_weights_that_were_not_finite_before_the_step_are_the_cause(made: Any) -> None:
    recording = made(steps=(0, 10))
    spoil(recording, 0, "state", step=10)
    name = "blocks.0.4.mlp.weight"
    recording.set("parameters", "weight_rms", float("nan"), step=0, name=name)  # after step 0

    (finding,) = first_nonfinite(Tables(recording.recording()))

    assert (finding.code, finding.module_path) == ("nonfinite-weights", name)


def test_an_earlier_loss_that_was_not_finite_takes_the_blame_from_a_later_victim(made: Any) -> None:
    recording = made(steps=(0, 10))
    spoil(recording, 0, "state", step=10)
    recording.tables["steps"] = pd.DataFrame({"step": [0, 5, 10], "loss": [1.0, float("inf"), float("inf")]})

    (finding,) = first_nonfinite(Tables(recording.recording()))

    assert (finding.code, finding.step) == ("nonfinite-loss", 5)
    assert "was not sampled" in finding.sentence


def test_a_loss_that_alone_is_not_finite_arose_in_the_head_or_the_loss(made: Any) -> None:
    recording = made(losses=[float("inf")])

    (finding,) = first_nonfinite(Tables(recording.recording()))

    assert (finding.code, finding.severity) == ("nonfinite-loss", "error")
    assert "in the head or in the loss itself" in finding.sentence


def test_a_loss_that_was_never_given_is_not_taken_for_nan(made: Any) -> None:
    recording = made()
    recording.set("steps", "loss", None)

    assert first_nonfinite(Tables(recording.recording())) == []


def test_a_nan_loss_is_told_by_the_recorders_event(made: Any) -> None:
    recording = made()
    recording.tables["events"] = pd.DataFrame({"step": [0], "kind": ["nonfinite_loss"], "sentence": ["NaN"]})

    (finding,) = first_nonfinite(Tables(recording.recording()))

    assert finding.code == "nonfinite-loss"


def test_a_parameters_own_gradient_is_named_where_no_tap_saw_it(made: Any) -> None:
    recording = made().set("parameters", "gradient_rms", float("nan"), block=3, branch="mlp")

    (finding,) = first_nonfinite(Tables(recording.recording()))

    assert (finding.code, finding.module_path) == ("nonfinite-gradient", "blocks.0.3.mlp.weight")


@pytest.mark.parametrize("site", ["branch_input", "branch_output", "write", "state"])
def test_one_root_cause_is_one_error(made: Any, site: str) -> None:
    recording = made(steps=(0, 10), update=lambda block: 1e-3)
    spoil(recording, 5, site)
    for depth in range(6, 13):
        spoil(recording, depth, "state")
    for depth in range(13):
        spoil(recording, depth, "state", "backward")

    found = diagnose(recording.recording())

    assert [finding.code for finding in found if finding.severity != "info"] == ["nonfinite"]
    assert found.verdict == "FAIL"
