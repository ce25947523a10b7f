"""Known findings are set aside by code and place, with a reason, and never silently."""

from __future__ import annotations

from pathlib import Path

import pytest
from rheoscope.diagnostics.diagnosis import Diagnosis
from rheoscope.diagnostics.finding import Evidence, Finding
from rheoscope.diagnostics.suppression import gate, read_suppressions, suppressions
from rheoscope.probes.errors import DiagnosisError

EVIDENCE = Evidence("a", 2.0, 1.0, "siblings")


def finding(block: int | None = 3, stack: int | None = 0, component: str = "mlp", severity: str = "warning") -> Finding:
    return Finding("odd", severity, 1.0, block, component, "h.3.mlp", 0, "Odd.", EVIDENCE, "", stack=stack)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("place", "is_matched"),
    [
        ({}, True),
        ({"block": 3}, True),
        ({"block": 3, "stack": 0, "component": "mlp", "module": "h.3.mlp"}, True),
        ({"block": 2}, False),
        ({"stack": 1}, False),
        ({"component": "attention"}, False),
        ({"module": "h.2.mlp"}, False),
    ],
)
def test_a_suppression_matches_its_code_at_its_place_alone(place: dict[str, object], is_matched: bool) -> None:
    known = suppressions([{"code": "odd", "reason": "known", **place}])

    gated = gate(Diagnosis((finding(),)), known)

    assert len(gated.suppressed) == is_matched
    assert gated.fails("warning") is not is_matched
    assert gated.unmatched == (() if is_matched else known)


def test_the_verdict_is_that_of_what_is_left() -> None:
    diagnosis = Diagnosis((finding(severity="error"), finding(block=4)))

    gated = gate(diagnosis, suppressions([{"code": "odd", "block": 3, "reason": "known"}]))

    assert (diagnosis.verdict, gated.diagnosis.verdict) == ("FAIL", "WARN")
    assert [entry["reason"] for entry in gated.to_json()["suppressed"]] == ["known"]
    assert not gated.fails("error")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[suppress]]\ncode = "odd"', "Expected a reason"),
        ('[[suppress]]\ncode = "odd"\nreason = " "', "Expected a reason"),
        ('[[suppress]]\nreason = "known"', "Expected a code"),
        ('[[suppress]]\ncode = "odd"\nreason = "known"\nblok = 3', "got 'blok'"),
        ('[[suppress]]\ncode = "odd"\nreason = "known"\nblock = true', "got 'block'"),
        ('suppress = "odd"', "Expected entries"),
        ("[other]\na = 1", "and nothing else"),
        ("not toml", "Expected a TOML file"),
    ],
)
def test_an_entry_that_is_none_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "rheoscope.toml").write_text(text)

    with pytest.raises(DiagnosisError, match=words):
        read_suppressions(tmp_path / "rheoscope.toml")
