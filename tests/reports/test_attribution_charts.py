"""The section Attribution: drawn where something was attributed, with the numbers and the words that belong to them."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from rheoscope.diagnostics.attributed import block_usefulness, is_predictive
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.diagnostics.finding import Evidence, Finding
from rheoscope.diagnostics.tables import Tables
from rheoscope.diagnostics.thresholds import INCOMPLETE, KNOCK_OUT_CERTAIN
from rheoscope.probes.recording import Recording
from rheoscope.reports.content import RunContent, content
from rheoscope.reports.figures.attribution import blame, ledger, shares, usefulness
from rheoscope.reports.figures.chart import Chart
from rheoscope.reports.report import render

KNOCK_OUTS = [0.5, 0.02, -0.3, 0.0]


def rows(gain: float = 2.0, error: float = 0.001) -> list[dict[str, object]]:
    """Return attributions of four blocks, made by hand."""
    found: list[dict[str, object]] = [
        {"method": "loss", "stack": 0, "block": -1, "branch": "", "value": 1.25},
        {"method": "gain", "stack": 0, "block": -1, "branch": "", "value": gain, "standard_error": 0.1},
    ]
    for block, value in enumerate(KNOCK_OUTS):
        place = {"stack": 0, "block": block}
        found.append({"method": "block_knock_out", **place, "value": value, "standard_error": 0.01})
        found.append({"method": "angular_distance", **place, "value": 0.1})
        for depth, branch in enumerate(("attention", "mlp"), start=2 * block + 1):
            at = {**place, "branch": branch, "depth": depth}
            found.append({"method": "gradient_x_activation", **at, "value": -0.1})
            found.append(
                {"method": "ledger", **at, "value": -0.1, "total": -0.8, "error": error, "note": "baseline: none"}
            )
            for step in (7, 9):
                moved = {"value": step * (block == 2), "total": 2.0 * step, "error": error}
                found.append({"method": "update", "step": step, **at, **moved})
        for sample, share in enumerate((0.7, 0.5, -0.2)):
            found.append(
                {"method": "gradient_share", **place, "sample": sample, "value": share, "error": 0.0, "total": 1.0}
            )
        found.append({"method": "gradient_norm", **place, "value": 1.0 + block})
    found.append({"method": "batch", "step": 9, "stack": 0, "block": -1, "value": 0.125})
    return found


@pytest.fixture
def attributed(check_up: Recording) -> Recording:
    return check_up.with_rows("attributions", rows())


def drawn(recording: Recording) -> dict[str, Chart]:
    tables, diagnosis = Tables(recording), diagnose(recording)
    return {chart.key: chart for chart in (draw(tables, diagnosis) for draw in (usefulness, ledger, blame, shares))}


def test_the_section_is_there_where_something_was_attributed_and_only_there(
    check_up: Recording, attributed: Recording
) -> None:
    plain, asked = content(check_up), content(attributed)

    assert isinstance(plain, RunContent)
    assert isinstance(asked, RunContent)
    assert "attribution" not in [section.key for section in plain.sections]
    (section,) = [section for section in asked.sections if section.key == "attribution"]
    assert all(chart.figure is not None for chart in section.charts)


def test_knock_outs_are_drawn_with_what_is_beyond_chance(attributed: Recording) -> None:
    chart = drawn(attributed)["block-usefulness"]

    assert list(chart.figure.data[0].y) == KNOCK_OUTS
    assert list(chart.figure.data[1].y) == [0.2] * 4
    assert "Without block 0 the loss of 1.25 changes most, by 0.5; without block 3 least, by 0" in chart.title
    assert "1 of 4 blocks raise it beyond 3 standard errors" in chart.title


def test_in_a_model_whose_predictions_know_nothing_no_block_is_of_use(check_up: Recording) -> None:
    recording = check_up.with_rows("attributions", rows(gain=0.1))
    tables = Tables(recording)

    assert not is_predictive(tables)
    assert not block_usefulness(tables)["is_useful"].any()
    assert "none is of use here" in drawn(recording)["block-usefulness"].title


def test_blocks_that_are_ill_are_told_from_the_others(attributed: Recording) -> None:
    ill = Finding("dead", "error", 1.0, 1, "mlp", "", 0, "dead", Evidence("x", 0.0, None, "law"), "revive it")
    remark = replace(ill, code="remark", severity="info", block=2)

    frame = block_usefulness(Tables(attributed), (remark, ill))

    assert frame["finding"].tolist() == ["", "dead", "", ""]


def test_the_largest_update_is_drawn_and_blames_the_block(attributed: Recording) -> None:
    chart = drawn(attributed)["update-blame"]

    assert "The update before step 9 changed the loss by 18" in chart.title
    assert "block 2: 18" in chart.title
    assert "0.125" in chart.reading
    assert "not causality" in chart.reading


def test_values_that_do_not_add_up_name_nobody(check_up: Recording) -> None:
    charts = drawn(check_up.with_rows("attributions", rows(error=0.2)))

    assert "no part is named: the values miss it by 20%" in charts["output-ledger"].title
    assert "no block is named: the values miss it by 20%" in charts["update-blame"].title


def test_samples_of_the_largest_gradient_are_named_by_their_index(attributed: Recording) -> None:
    chart = drawn(attributed)["gradient-shares"]

    assert "Of the gradient of block 3 70 % came from sample 0 of 3" in chart.title
    assert list(chart.figure.data[0].y) == [0.7, 0.5, -0.2]


def test_where_only_cuts_were_made_the_ledger_is_said_not_to_apply(check_up: Recording) -> None:
    cut = {"method": "cut_total", "stack": 0, "branch": "mlp", "depth": 2, "value": -0.8, "total": -0.8, "error": 0.0}
    cuts = [{**cut, "block": block} for block in (0, 3)]

    chart = drawn(check_up.with_rows("attributions", cuts))["output-ledger"]

    assert "does not apply here" in chart.title
    assert len(chart.table) == 2


def test_every_form_of_the_report_holds_it(attributed: Recording) -> None:
    assert all("Without block 0" in render(attributed, form=form) for form in ("html", "json", "markdown"))


def test_nothing_that_was_attributed_is_drawn_as_such(check_up: Recording) -> None:
    nothing = check_up.with_rows("attributions", [{"method": "loss", "value": 1.0}])

    assert all(chart.figure is None and chart.absent for chart in drawn(nothing).values())


def test_the_limits_are_those_that_attribution_goes_by() -> None:
    from rheoscope.probes.attribution.knock_out import CERTAIN
    from rheoscope.probes.attribution.path_integral import LIMIT

    assert (INCOMPLETE, KNOCK_OUT_CERTAIN) == (LIMIT, CERTAIN)


def test_a_recording_without_the_table_has_an_empty_one(check_up: Recording) -> None:
    assert isinstance(check_up.table("attributions"), pd.DataFrame)
    assert not len(block_usefulness(Tables(check_up)))
