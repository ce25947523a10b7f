"""What the biases write into the stream. Outputs of hand-made recordings have RMS 1: the share is the bias RMS squared."""

from __future__ import annotations

from typing import Any

import pytest
from rheoscope.diagnostics.biases import bias_share
from rheoscope.diagnostics.tables import Tables


def test_biases_of_zero_are_said_not_to_contribute_yet(made: Any) -> None:
    (finding,) = bias_share(Tables(made(bias=lambda depth: 0.0).recording()))

    assert finding.sentence == "No output bias contributes yet: all of them are 0 at step 0."
    assert finding.block is None


def test_the_share_is_energy_over_energy(made: Any) -> None:
    (finding,) = bias_share(Tables(made(bias=lambda depth: 0.3 if depth == 7 else 0.1).recording()))

    assert finding.evidence.observed == pytest.approx(0.09)
    assert (finding.block, finding.component) == (3, "attention")


def test_one_branch_that_says_the_same_at_every_token_while_its_siblings_do_not_is_a_warning(made: Any) -> None:
    (finding,) = bias_share(Tables(made(bias=lambda depth: 0.9 if depth == 8 else 0.1).recording()))

    assert (finding.severity, finding.block, finding.component) == ("warning", 3, "mlp")


def test_a_large_share_that_all_siblings_have_is_design(made: Any) -> None:
    (finding,) = bias_share(Tables(made(bias=lambda depth: 0.9).recording()))

    assert finding.severity == "info"


def test_two_blocks_have_too_few_siblings_to_judge_by(made: Any) -> None:
    (finding,) = bias_share(Tables(made(2, bias=lambda depth: 0.9 if depth == 4 else 0.1).recording()))

    assert (finding.severity, finding.evidence.expected) == ("info", None)


def test_a_share_above_one_is_explained(made: Any) -> None:
    (finding,) = bias_share(Tables(made(bias=lambda depth: 1.5).recording()))

    assert "more than all, since the rest of the branch cancels a part of the bias" in finding.sentence


def test_growth_over_training_is_told(made: Any) -> None:
    recording = made(steps=(0, 50), bias=lambda depth: 0.4).set("activations", "rms", 0.1, step=0, site="bias")

    (finding,) = bias_share(Tables(recording.recording()))

    assert "at step 0 the largest was 0.01" in finding.sentence


def test_a_model_without_biases_has_no_bias_finding(made: Any) -> None:
    assert bias_share(Tables(made().recording())) == []
