"""A chart of many steps keeps what stands out, and says what it left out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from rheoscope.diagnostics.tables import Tables
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.recording import Recording
from rheoscope.reports.figures.chart import MOST_POINTS, extremes, rounded, standing_out
from rheoscope.reports.figures.heatmap import MOST_CELLS, MOST_COLUMNS, MOST_ROWS, heatmap
from rheoscope.reports.figures.steps import loss_and_norms


@pytest.mark.parametrize("n", [1, 2, 5, 50, 51, 1_000, 12_345])
@pytest.mark.parametrize("most", [4, 5, 50, 51])
def test_extremes_are_bounded_ordered_and_hold_both_ends_and_both_peaks(n: int, most: int) -> None:
    values = np.random.default_rng(n).standard_normal(n)

    places = extremes(values, most)

    assert places == sorted(set(places))
    assert len(places) <= most
    assert {0, n - 1, int(values.argmin()), int(values.argmax())} <= set(places)


@pytest.mark.parametrize("n", [3, 4, 40, 41, 1_000, 9_999])
@pytest.mark.parametrize("most", [3, 4, 40])
def test_what_departs_most_of_every_stretch_is_kept(n: int, most: int) -> None:
    departures = np.random.default_rng(n).random(n)

    places = standing_out(departures, most)

    assert places == sorted(set(places))
    assert len(places) == min(n, most)
    assert {0, n - 1} <= set(places)
    if n > 2 and most > 2:
        assert 1 + int(departures[1:-1].argmax()) in places


def test_places_that_are_not_known_are_no_reason_to_fail() -> None:
    assert len(standing_out(np.full(100, np.nan), 10)) == 10
    assert extremes(np.full(100, np.nan), 10) == [0, 99]


def test_rounding_keeps_so_many_digits() -> None:
    assert rounded(123.456789, 4) == 123.5
    assert rounded(-1.23456789e-9) == -1.23457e-9
    assert rounded(0.0) == 0.0


def grid_frame(n_steps: int, n_depths: int) -> pd.DataFrame:
    steps, depths = np.repeat(np.arange(n_steps), n_depths), np.tile(np.arange(n_depths), n_steps)
    return pd.DataFrame(
        {"step": steps, "stack": 0, "depth": depths, "block": depths // 2, "branch": "mlp", "rms": 1.0 + depths / 10}
    )


def test_a_heatmap_of_many_steps_keeps_the_one_that_stands_out_and_says_so() -> None:
    frame = grid_frame(3_000, 5)
    frame.loc[(frame["step"] == 1_717) & (frame["depth"] == 3), "rms"] = 90.0
    frame.loc[(frame["step"] == 2_222) & (frame["depth"] == 2), "rms"] = np.inf

    drawn = heatmap(frame, "rms", "RMS")

    columns = list(drawn.data[0].x)
    assert len(columns) == MOST_COLUMNS
    assert {"0", "1717", "2222", "2999"} <= set(columns)
    assert f"{MOST_COLUMNS} of 3,000 drawn" in drawn.layout.xaxis.title.text
    assert 10 ** drawn.data[0].z[3][columns.index("1717")] == pytest.approx(90, rel=1e-3)
    assert drawn.data[1].x == ("2222",)


def test_a_tall_heatmap_has_fewer_columns() -> None:
    drawn = heatmap(grid_frame(300, 400), "rms", "RMS")

    assert len(drawn.data[0].y) == MOST_ROWS
    assert len(drawn.data[0].x) * MOST_ROWS <= MOST_CELLS
    assert f"{MOST_ROWS} of 400 places drawn" in drawn.layout.xaxis.title.text
    assert heatmap(grid_frame(30, 10), "rms", "RMS").layout.xaxis.title.text == "step"


def test_the_loss_of_a_long_run_keeps_its_spike_and_says_what_was_left_out() -> None:
    loss = np.full(50_000, 2.0)
    loss[31_415] = 99.0
    frame = pd.DataFrame({"step": range(50_000), "loss": loss, "lr": 1e-3})

    chart = loss_and_norms(Tables(Recording.from_tables({}, Anatomy(), {"steps": frame})))

    assert chart.figure is not None
    line = chart.figure.data[0]
    assert len(line.x) <= MOST_POINTS
    assert (31_415, 99.0) in zip(line.x, line.y, strict=True)
    assert "left out" in chart.reading
