"""Numbers and names as a reader sees them."""

import math

import plotly.graph_objects as go
import pytest
from rheoscope.reports.theme import figure, number, plain, plot_text, settled


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (0.12345, "0.123"),
        (1234.5, "1.23e+03"),
        (8.1e-5, "8.1 × 10⁻⁵"),
        (-2.5e7, "-2.5 × 10⁷"),
        (math.inf, "infinite"),
        (math.nan, "not recorded"),
        (None, "not recorded"),
    ],
)
def test_numbers_read_well(value: float | None, expected: str) -> None:
    assert expected == number(value)


def test_names_lose_control_and_bidirectional_characters() -> None:
    assert plain("a\x1b]0;b\x07\u202ec\nd") == "a ]0;b  c d"


def test_long_names_are_cut() -> None:
    assert len(plain("n" * 10_000)) == 120


def test_plotly_draws_names_as_they_stand() -> None:
    assert plot_text("<b>&</b>") == "&lt;b&gt;&amp;&lt;/b&gt;"


def test_a_flat_line_gets_a_range_of_a_decade_around_it() -> None:
    drawn = figure(log_y=True).add_trace(go.Scatter(y=[1.0, 1.0]))

    low, high = settled(drawn).layout.yaxis.range

    assert high - low >= 1
    assert low < 0 < high
