"""Gradients that vanish or explode with depth, and the skip path."""

from __future__ import annotations

import math
from typing import Any

import pytest
from rheoscope.diagnostics.attenuation import gradient_slope, skip_path
from rheoscope.diagnostics.tables import Tables


def test_a_gradient_that_shrinks_a_thousandfold_on_its_way_down_is_named(made: Any) -> None:
    # Twelve blocks, ln RMS rises by 1 a block with depth: e^11 = 6e4 in all.
    (finding,) = gradient_slope(Tables(made(12, gradient=lambda depth: 1e-9 * math.exp(depth / 2)).recording()))

    assert (finding.code, finding.severity) == ("gradient-attenuation", "warning")


def test_a_gradient_that_grows_on_its_way_down_is_named_growth(made: Any) -> None:
    (finding,) = gradient_slope(Tables(made(12, gradient=lambda depth: math.exp(-depth / 2)).recording()))

    assert (finding.code, finding.severity) == ("gradient-growth", "warning")


def test_the_evidence_is_the_slope_of_the_logarithm_a_block(made: Any) -> None:
    (finding,) = gradient_slope(Tables(made(12, gradient=lambda depth: math.exp(0.35 * depth)).recording()))

    assert finding.evidence.observed == pytest.approx(0.7)


def test_the_sentence_gives_the_gradient_at_both_ends(made: Any) -> None:
    (finding,) = gradient_slope(Tables(made(6, gradient=lambda depth: 10.0 ** (depth - 12)).recording()))

    assert "from 1 RMS after block 5 to 1e-10 after block 0" in finding.sentence


def test_the_hyperbolic_profile_of_a_healthy_pre_norm_stack_is_no_warning(made: Any) -> None:
    # Gradient of a pre-norm state is in proportion to 1 / its RMS (closed form).
    (finding,) = gradient_slope(Tables(made(24, gradient=lambda depth: (1 + depth) ** -0.5).recording()))

    assert (finding.code, finding.severity) == ("gradient-flow", "info")


def test_a_steep_slope_over_few_blocks_is_no_warning(made: Any) -> None:
    # OLMo 2's placement over small embeddings: 0.55 a block over 6 blocks, 16-fold in all.
    (finding,) = gradient_slope(Tables(made(6, gradient=lambda depth: math.exp(-0.275 * depth)).recording()))

    assert finding.severity == "info"


def test_the_steepest_step_is_the_one_that_is_told(made: Any) -> None:
    recording = made(12, steps=(0, 10, 20)).set("activations", "rms", 1e-9, step=10, depth=2, direction="backward")

    (finding,) = gradient_slope(Tables(recording.recording()))

    assert finding.step == 10


def test_the_embeddings_own_gradient_is_not_part_of_the_trend(made: Any) -> None:
    recording = made(6, gradient=lambda depth: 50.0 if depth == 0 else 1.0)

    (finding,) = gradient_slope(Tables(recording.recording()))

    assert finding.evidence.observed == pytest.approx(0, abs=1e-12)


def test_three_blocks_have_no_trend(made: Any) -> None:
    assert gradient_slope(Tables(made(3).recording())) == []


def test_a_run_without_backward_has_no_gradient_finding(made: Any) -> None:
    assert gradient_slope(Tables(made(gradient=None).recording())) == []


def test_each_stack_is_judged_on_its_own(made: Any) -> None:
    findings = gradient_slope(Tables(made(n_stacks=2).recording()))

    assert [finding.component for finding in findings] == ["stack 0", "stack 1"]


def test_a_post_norm_model_is_told_to_move_its_norms_and_a_pre_norm_one_is_not(made: Any) -> None:
    def remedy(placement: str) -> str:
        ill = made(12, placement=placement, gradient=lambda depth: math.exp(depth / 2)).recording()
        return gradient_slope(Tables(ill))[0].remedy

    assert "pre-norm" in remedy("post")
    assert "pre-norm" not in remedy("pre")


def test_a_whole_skip_path_is_said_to_be_unchanged(made: Any) -> None:
    (finding,) = skip_path(Tables(made().recording()))

    assert finding.evidence.observed == 1.0
    assert "unchanged (pre-norm)" in finding.sentence


def test_a_damped_skip_path_is_told_but_not_judged(made: Any) -> None:
    # Six blocks: eleven adds lie between state 1 and the last.
    (finding,) = skip_path(Tables(made(6, placement="post", skip_gain=0.7).recording()))

    assert finding.evidence.observed == pytest.approx(0.7**11)
    assert finding.severity == "info"
    assert "damps the identity path" in finding.sentence


def test_a_damped_skip_path_comes_with_a_remedy(made: Any) -> None:
    (finding,) = skip_path(Tables(made(6, placement="post", skip_gain=0.7).recording()))

    assert "pre-norm" in finding.remedy


def test_no_transmission_is_told_where_a_gain_is_missing(made: Any) -> None:
    recording = made().set("gradient_paths", "skip_gain", None, depth=5)

    assert skip_path(Tables(recording.recording())) == []
