"""Several recordings side by side."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from rheoscope.diagnostics.comparison import Comparison, compare
from rheoscope.probes.errors import DiagnosisError


def checks(**observed: float) -> pd.DataFrame:
    """Return an identities table of stack 0."""
    return pd.DataFrame([{"check": name, "stack": 0, "observed": value} for name, value in observed.items()])


def test_one_recording_is_no_comparison(made: Any) -> None:
    with pytest.raises(DiagnosisError, match=r"Expected at least two recordings.*got \['a'\]\. Use diagnose"):
        compare({"a": made().recording()})


def test_a_check_up_of_an_unknown_label_is_an_error(made: Any) -> None:
    both = {"a": made().recording(), "b": made().recording()}

    with pytest.raises(DiagnosisError, match=r"Expected at_init for labels among .*got \['c'\]\. Use the same labels"):
        compare(both, at_init={"c": made().recording()})


def test_the_summary_has_a_row_a_label_in_the_order_given(made: Any) -> None:
    comparison = compare({"b": made().recording(), "a": made().recording()})

    assert comparison.summary()["label"].to_list() == ["b", "a"]


def test_different_anatomies_stand_side_by_side(made: Any) -> None:
    pre, post = made(4), made(8, placement="post", skip_gain=0.9, bias=lambda depth: 0.5)

    summary = compare({"pre": pre.recording(), "post": post.recording()}).summary().set_index("label")

    assert summary["placement"].to_dict() == {"pre": "pre", "post": "post"}
    assert summary["n_blocks"].to_dict() == {"pre": 4, "post": 8}
    assert summary["skip_transmission"].to_dict() == pytest.approx({"pre": 1.0, "post": 0.9**15})
    assert summary["has_biases"].to_dict() == {"pre": False, "post": True}


def test_what_is_missing_is_missing_and_not_zero(made: Any) -> None:
    bare = made(gradient=None)
    bare.tables["steps"]["loss"] = None

    row = compare({"bare": bare.recording(), "full": made().recording()}).summary().iloc[0]

    names = ["loss_first", "loss_last", "skip_transmission", "gradient_ratio", "bias_share", "amplification"]
    assert row[names].isna().all()


def test_the_gradient_ratio_is_first_block_over_last_without_the_embedding(made: Any) -> None:
    ill = made(6, gradient=lambda depth: 50.0 if depth == 0 else 12.0 / depth)

    row = compare({"a": ill.recording(), "b": made().recording()}).summary().iloc[0]

    assert (row["gradient_ratio"], row["embedding_gradient_rms"]) == (pytest.approx(6.0), 50.0)


def test_the_bias_share_is_taken_at_both_ends_of_the_run(made: Any) -> None:
    run = made(steps=(0, 50), bias=lambda depth: 0.4).set("activations", "rms", 0.0, step=0, site="bias")

    row = compare({"a": run.recording(), "b": made().recording()}).summary().iloc[0]

    assert (row["bias_share_first"], row["bias_share"]) == (0.0, pytest.approx(0.16))


def test_the_check_up_at_init_speaks_for_the_start(made: Any) -> None:
    runs = {"a": made(skip_gain=0.1).recording(), "b": made().recording()}

    summary = compare(runs, at_init={"a": made(skip_gain=1.0).recording()}).summary()

    assert summary["skip_transmission"].to_list() == [1.0, 1.0]


def test_of_an_encoder_and_a_decoder_the_one_that_the_loss_reads_is_told(made: Any) -> None:
    double = made(6, n_stacks=2).set("gradient_paths", "skip_gain", 0.5, stack=1)

    row = compare({"a": double.recording(), "b": made().recording()}).summary().iloc[0]

    assert row["skip_transmission"] == pytest.approx(0.5**11)


def test_both_amplifications_are_told(made: Any) -> None:
    run = made()
    run.tables["identities"] = checks(amplification=8.0, relative_amplification=2.0)

    row = compare({"a": run.recording(), "b": made().recording()}).summary().iloc[0]

    assert (row["amplification"], row["relative_amplification"]) == (8.0, 2.0)


def test_growth_with_depth_is_the_exponent_of_the_power_law(made: Any) -> None:
    frame = pd.DataFrame(
        [
            {"group": "g", "label": label, "n_blocks": n, "relative_amplification": 3.0 * n**power}
            for label, power in (("post", 1.4), ("pre", 0.6))
            for n in (3, 6, 12, 24)
        ]
    )

    growth = Comparison({}, against_depth=frame).growth_with_depth().set_index("label")

    assert growth["amplification_exponent"].to_dict() == pytest.approx({"post": 1.4, "pre": 0.6})


def test_without_other_depths_there_is_no_growth(made: Any) -> None:
    assert len(compare({"a": made().recording(), "b": made().recording()}).growth_with_depth()) == 0


def test_a_recording_that_tells_too_little_for_a_closed_form_has_no_prediction(made: Any) -> None:
    assert compare({"a": made().recording(), "b": made().recording()}).predictions() == {}


def test_every_variant_is_judged(made: Any) -> None:
    sick = made(12, gradient=lambda depth: 10.0**depth)

    verdicts = {k: v.verdict for k, v in compare({"a": made().recording(), "b": sick.recording()}).diagnoses.items()}

    assert verdicts == {"a": "PASS", "b": "WARN"}


def test_group_and_variant_come_from_the_manifest_where_it_names_them(made: Any) -> None:
    named = made()
    named.manifest = {"group": "Xavier", "variant": "pre"}

    comparison = compare({"a": named.recording(), "b": made().recording()})

    assert [(comparison.group(label), comparison.variant(label)) for label in "ab"] == [("Xavier", "pre"), ("", "b")]
