"""Parameters that move too far or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import NanoGPT
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.diagnostics.tables import Tables
from rheoscope.diagnostics.updates import untrained, update_ratio
from rheoscope.probes.recorder import attach

LATE = (0, 10, 20)


def test_updates_of_a_thousandth_are_described(made: Any) -> None:
    (finding,) = update_ratio(Tables(made(steps=LATE, update=lambda block: 1e-3).recording()))

    assert (finding.severity, finding.evidence.observed) == ("info", pytest.approx(1e-3))


def test_one_block_that_moves_thirty_times_as_far_as_its_siblings_is_named(made: Any) -> None:
    (finding,) = update_ratio(Tables(made(steps=LATE, update=lambda block: 3e-2 if block == 4 else 1e-3).recording()))

    assert (finding.severity, finding.block) == ("warning", 4)
    assert "30 times the median block's" in finding.sentence


def test_a_block_that_moves_ten_times_as_far_is_no_warning(made: Any) -> None:
    (finding,) = update_ratio(Tables(made(steps=LATE, update=lambda block: 1e-2 if block == 4 else 1e-3).recording()))

    assert finding.severity == "info"


def test_a_learning_rate_that_is_too_high_everywhere_is_one_finding(made: Any) -> None:
    (finding,) = update_ratio(Tables(made(steps=LATE, update=lambda block: 0.3).recording()))

    assert (finding.severity, finding.block) == ("warning", None)
    assert "every block" in finding.sentence


def test_the_first_steps_are_not_judged(made: Any) -> None:
    assert update_ratio(Tables(made(steps=(0, 5), update=lambda block: 0.3).recording())) == []


def test_a_run_without_an_optimizer_has_no_update_finding(made: Any) -> None:
    assert update_ratio(Tables(made(steps=LATE).recording())) == []


def test_a_parameter_without_a_gradient_among_others_with_one_is_told(made: Any) -> None:
    recording = made(steps=LATE).set("parameters", "gradient_state", "none", block=2, branch="mlp")

    (finding,) = untrained(Tables(recording.recording()))

    assert (finding.block, finding.module_path) == (2, "blocks.0.2.mlp.weight")
    assert finding.severity == "warning"


def test_a_parameter_outside_the_blocks_may_be_unused(made: Any) -> None:
    recording = made(steps=LATE).set("parameters", "gradient_state", "none", block=2, branch="mlp")
    recording.set("parameters", "block", -1, block=2, branch="mlp")

    (finding,) = untrained(Tables(recording.recording()))

    assert finding.severity == "info"


def test_a_frozen_parameter_is_not_told(made: Any) -> None:
    recording = made(steps=LATE).set("parameters", "gradient_state", "frozen", block=2)

    assert untrained(Tables(recording.recording())) == []


def test_a_parameter_that_received_a_gradient_once_is_not_told(made: Any) -> None:
    recording = made(steps=LATE).set("parameters", "gradient_state", "none", block=2, step=0)

    assert untrained(Tables(recording.recording())) == []


def test_a_gradient_of_zero_is_a_gradient(made: Any) -> None:
    recording = made().set("parameters", "gradient_state", "zero", block=2)

    assert untrained(Tables(recording.recording())) == []


def test_a_run_without_backward_says_nothing_of_missing_gradients(made: Any) -> None:
    assert untrained(Tables(made(gradient=None).recording())) == []


@pytest.mark.parametrize(("is_frozen", "told"), [(False, [("not-updated", 0)]), (True, [])])
def test_a_first_block_with_gradients_that_no_optimizer_holds_is_told(
    tmp_path: Path, is_frozen: bool, told: list[tuple[str, int]]
) -> None:
    torch.manual_seed(0)
    model = NanoGPT("pre", n_blocks=5)
    model.blocks[0].requires_grad_(not is_frozen)
    held = [p for name, p in model.named_parameters() if not name.startswith("blocks.0.")]
    with attach(model, torch.optim.AdamW(held), every=1, folder=tmp_path / "run") as probe:
        for _ in range(3):
            loss = model(*torch.randint(61, (2, 2, 8)))
            model.zero_grad()
            loss.backward()
            probe.optimizer.step()  # type: ignore[union-attr]
            probe.step(loss)
    found = [(f.code, f.block) for f in diagnose(probe.recording) if f.code == "not-updated"]
    assert found == told
