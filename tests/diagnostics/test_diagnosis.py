"""The verdict as a whole: its order, what it says it could not judge, and that it is a pure function."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rheoscope.diagnostics.diagnosis import Diagnosis, diagnose
from rheoscope.diagnostics.finding import SEVERITIES, Evidence, Finding

SICK = {"gradient": lambda depth: math.exp(depth), "state": lambda depth: math.exp(depth)}


def finding(severity: str, step: int = 0, block: int | None = 0) -> Finding:
    """Return a finding of which only rank matters."""
    return Finding("code", severity, 1.0, block, "", "", step, "Sentence.", Evidence("q", 1.0, None, "l"), "r")  # type: ignore[arg-type]


def test_a_healthy_run_passes(made: Any) -> None:
    healthy = made(12, steps=(0, 10, 20), bias=lambda depth: 0.05, update=lambda block: 1e-3)

    assert diagnose(healthy.recording()).verdict == "PASS"


def test_a_warning_makes_warn(made: Any) -> None:
    assert diagnose(made(12, **SICK).recording()).verdict == "WARN"


@pytest.mark.parametrize(
    ("severities", "verdict", "worst"),
    [
        ([], "PASS", None),
        (["info"], "PASS", "info"),
        (["info", "warning"], "WARN", "warning"),
        (["warning", "error", "info"], "FAIL", "error"),
    ],
)
def test_the_verdict_is_that_of_the_worst_finding(severities: list[str], verdict: str, worst: str | None) -> None:
    diagnosis = Diagnosis(tuple(finding(severity) for severity in severities))

    assert (diagnosis.verdict, diagnosis.worst) == (verdict, worst)


def test_errors_come_before_warnings_before_remarks(made: Any) -> None:
    recording = made(12, **SICK).set("activations", "nonfinite", 1.0, depth=24, site="state", direction="forward")

    ranks = [SEVERITIES.index(finding.severity) for finding in diagnose(recording.recording())]

    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] == SEVERITIES.index("error")


def test_the_same_recording_gives_the_same_diagnosis(made: Any) -> None:
    recording = made(12, **SICK).recording()

    assert diagnose(recording) == diagnose(recording)


def test_judging_leaves_the_recording_as_it_was(made: Any) -> None:
    recording = made(12, bias=lambda depth: 0.1, **SICK).recording()
    before = {name: recording.table(name) for name in ("activations", "gradient_paths", "parameters", "steps")}

    diagnose(recording)

    assert all(recording.table(name).equals(frame) for name, frame in before.items())


def test_json_holds_the_verdict_and_every_finding(made: Any) -> None:
    diagnosis = diagnose(made(12, **SICK).recording())

    value = json.loads(diagnosis.to_json())

    assert value["verdict"] == "WARN"
    assert [item["code"] for item in value["findings"]] == [finding.code for finding in diagnosis]


def test_json_of_a_value_that_is_not_finite_is_still_json() -> None:
    ill = Finding("c", "error", 1.0, None, "", "", 0, "S.", Evidence("loss", float("nan"), float("inf"), "l"), "r")

    value = json.loads(Diagnosis((ill,)).to_json())

    assert value["findings"][0]["evidence"] | {"quantity": "", "law": ""} == {
        "quantity": "",
        "observed": None,
        "expected": None,
        "law": "",
        "tolerance": None,
    }


def test_the_frame_has_a_row_a_finding(made: Any) -> None:
    diagnosis = diagnose(made().recording())

    assert diagnosis.to_frame()["sentence"].to_list() == [finding.sentence for finding in diagnosis]


def test_a_frame_without_findings_has_its_columns() -> None:
    assert "severity" in Diagnosis(()).to_frame().columns


def test_a_diagnosis_is_a_sequence() -> None:
    diagnosis = Diagnosis((finding("info", 1), finding("info", 2)))

    assert (len(diagnosis), diagnosis[1].step, [item.step for item in diagnosis[:1]]) == (2, 2, [1])


def test_an_empty_recording_passes_and_says_that_nothing_was_judged(made: Any) -> None:
    recording = made(0)
    recording.tables = {}

    diagnosis = diagnose(recording.recording())

    assert len(diagnosis) == 0
    assert "Activations and gradients were not judged: no step was sampled." in diagnosis.not_judged


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gradient": None}, "Gradient flow was not judged: no backward was recorded."),
        ({"n_blocks": 1}, "Trends over depth were not judged in stack 0: they need 4 blocks, it has 1 block."),
        ({}, "Updates were not judged: no optimizer step was recorded."),
        ({"update": lambda block: 1e-3}, "Updates were not judged: the first 10 steps belong to warm-up"),
        ({}, "Bias shares were not judged: no branch was found to end in a bias."),
        ({}, "Attention was not judged"),
    ],
)
def test_what_was_not_judged_is_said(made: Any, options: dict[str, Any], words: str) -> None:
    found = diagnose(made(**options).recording()).not_judged

    assert any(sentence.startswith(words) for sentence in found), found


def test_what_was_judged_is_not_said_to_be_missing(made: Any) -> None:
    full = made(steps=(0, 10), bias=lambda depth: 0.1, update=lambda block: 1e-3)

    found = diagnose(full.recording()).not_judged

    closed_form, attention, spikes = found
    assert "closed forms" in closed_form
    assert attention == "Attention was not judged: no attention call was seen, or it was not asked for."
    assert spikes == "Loss spikes were not judged: they stand out from 50 steps before them."


def test_a_stream_of_16_bits_whose_adds_no_hook_followed_is_said_not_to_be_judged(made: Any) -> None:
    short = made()
    short.manifest["model"] = {"dtype": "bfloat16"}

    sentence = "What rounding takes of each write was not judged: no add into a stream of 16 bits could be followed."
    assert sentence in diagnose(short.recording()).not_judged
    assert sentence not in diagnose(made().recording()).not_judged


def test_every_sentence_ends_like_one(made: Any) -> None:
    found = diagnose(made(12, n_stacks=2, steps=(0, 10), bias=lambda depth: 0.8, **SICK).recording())

    assert all(item.sentence.endswith(".") and item.remedy.endswith(".") for item in found)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n_blocks=st.integers(0, 6),
    n_stacks=st.integers(1, 2),
    size=st.floats(1e-30, 1e30),
    rate=st.floats(-3, 3),
    has_backward=st.booleans(),
    bias=st.one_of(st.none(), st.floats(0, 10)),
)
def test_no_recording_that_the_probe_could_write_stops_the_judge(
    made: Any, n_blocks: int, n_stacks: int, size: float, rate: float, has_backward: bool, bias: float | None
) -> None:
    recording = made(
        n_blocks,
        n_stacks=n_stacks,
        state=lambda depth: size * math.exp(rate * depth),
        gradient=(lambda depth: math.exp(-rate * depth) / size) if has_backward else None,
        bias=None if bias is None else lambda depth: float(bias),
    )

    assert json.loads(diagnose(recording.recording()).to_json())["verdict"] in ("PASS", "WARN", "FAIL")


def test_no_rule_fails_on_a_check_up_or_a_recording_made_by_hand(made: Any) -> None:
    import torch
    from oracles import NanoGPT
    from rheoscope.probes.check_up import examine

    torch.manual_seed(0)
    checked = [examine(NanoGPT(kind, n_blocks=4), torch.randint(0, 61, (2, 8))) for kind in ("pre", "post", "parallel")]
    for recording in (*checked, made(8, steps=(0, 10, 20)).recording()):
        assert not [sentence for sentence in diagnose(recording).not_judged if "failed on" in sentence]


def test_a_rule_that_fails_is_said_and_the_others_judge(made: Any, monkeypatch: Any) -> None:
    from rheoscope.diagnostics import diagnosis

    def broken(tables: Any) -> list[Any]:
        raise ZeroDivisionError("by hand")

    monkeypatch.setattr(diagnosis, "RULES", (broken, *diagnosis.RULES))
    found = diagnose(made(8).recording())
    assert (
        "Not judged by the rule broken: it failed on this recording (ZeroDivisionError: by hand)." in found.not_judged
    )
    assert len(found)
