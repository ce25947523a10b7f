"""The report of an experiment: what was measured beside what is published, in every form, harmless whatever the names."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from rheoscope.diagnostics.study import AGREES, DIFFERS, UNSETTLED, Study
from rheoscope.lab.experiment import Claim, at_least, at_most, curve, within
from rheoscope.lab.intervals import Interval, over_seeds
from rheoscope.reports.report import render, write_report

HOSTILE = "<script>alert(1)</script>\u202eevil"


def study(name: str = "pre-norm") -> Study:
    claims = [
        Claim("gain", Interval(1.0, 0.99, 1.01, 3), "1", "somebody 2020, figure 1", within(1.0, 0.05)),
        Claim("loss", Interval(3.0, 2.9, 3.1, 3), "at most 2", "somebody 2020", at_most(2.0)),
        Claim("speed", Interval(1.0, 0.5, 1.5, 2), "above 1", "somebody 2020", at_least(1.0)),
    ]
    rows = [(c.what, str(c.measured), c.published, c.source, c.verdict) for c in claims]
    points = [(1e-3, over_seeds([1.0, 1.2])), (1e-1, over_seeds([2.0, 2.1]))]
    return Study(
        "toy",
        f"Does {name} help?",
        "somebody 2020",
        pd.DataFrame(rows, columns=["what", "measured", "published", "source", "verdict"]),
        pd.DataFrame({"label": [name], "loss": ["1.1 (0.9 to 1.3, 2 seeds)"]}),
        curve("last loss against learning rate", name, points),
        (f"{name} was not tried with warm-up.",),
        (("size", "quick"),),
        is_quick=True,
    )


def test_an_interval_on_both_sides_of_the_range_settles_nothing() -> None:
    assert study().claims["verdict"].tolist() == [AGREES, DIFFERS, UNSETTLED]
    assert study().sentence == (
        "Of 3 figures measured beside published ones 1 agrees, 1 differs, 1 is not settled at this scale."
    )
    assert Claim("x", Interval(1.0, 1.0, 1.0, 1), "1", "", None).verdict == UNSETTLED
    assert Claim("x", over_seeds([]), "1", "", (0.0, 2.0)).verdict == UNSETTLED


def test_an_interval_is_students() -> None:
    found = over_seeds([1.0, 2.0, 3.0])

    assert (found.mean, found.n) == (2.0, 3)
    assert found.high - found.mean == pytest.approx(4.303 * 1.0 / 3**0.5)


@pytest.mark.parametrize("form", ["html", "json", "markdown", "text"])
def test_every_form_holds_the_figures_and_what_is_not_settled(form: str) -> None:
    text = render(study(), form=form)

    for words in ("Does pre-norm help?", "somebody 2020", "not settled at this scale", "1.1 (0.9 to 1.3, 2 seeds)"):
        assert words in text
    assert render(study(), form=form) == text


def test_the_page_is_one_file_that_runs_nothing_of_a_name(tmp_path: Path) -> None:
    page = write_report(study(HOSTILE), tmp_path / "study.html").read_text()

    assert "<script>alert(1)" not in page
    assert "\u202e" not in page
    assert "A quick run" in page
    assert 'data-blocks=""' in page  # nothing to choose: the controls stay hidden


def test_the_json_holds_the_numbers_behind_the_curves() -> None:
    value = json.loads(render(study(), form="json"))

    assert value["kind"] == "study"
    (chart,) = value["charts"]
    assert chart["table"]["columns"] == ["series", "x", "y", "low", "high"]
    assert [row[2] for row in chart["table"]["rows"]] == [pytest.approx(1.1), pytest.approx(2.05)]
