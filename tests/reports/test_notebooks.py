"""In a notebook a recording, a verdict and a comparison show themselves: short, without a script, every name as text."""

from html.parser import HTMLParser

import pytest
from rheoscope.diagnostics.comparison import Comparison, compare
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.probes.recording import Recording

HARMLESS = {"div", "p", "strong", "span", "ol", "li", "br", "table", "thead", "tbody", "tr", "th", "td"}


class Elements(HTMLParser):
    """Collects the elements and their attributes, and whether every element that opens closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def shown(hostile: Recording, not_finite: Recording, empty: Recording) -> dict[str, object]:
    """Everything that shows itself, hostile names and nothing at all included."""
    return {
        "hostile recording": hostile,
        "hostile verdict": diagnose(hostile),
        "ill verdict": diagnose(not_finite),
        "hostile comparison": compare({str(hostile.manifest["label"]): hostile, "other": not_finite}),
        "empty recording": empty,
        "empty verdict": diagnose(empty),
    }


def test_what_a_notebook_shows_is_short_and_harmless(shown: dict[str, object]) -> None:
    for name, value in shown.items():
        text = value._repr_html_()  # type: ignore[attr-defined]
        elements = Elements(text)
        assert elements.tags <= HARMLESS, name
        assert elements.attributes <= {"style", "scope"}, name
        assert elements.open == [], name
        assert len(text) < 20_000, name
        assert "\u202e" not in text, name
        assert "\x1b" not in text, name


def test_a_verdict_says_what_it_found_and_what_to_do(not_finite: Recording) -> None:
    diagnosis = diagnose(not_finite)

    text = diagnosis._repr_html_()

    assert "FAIL" in text
    assert f"What to do: {diagnosis.findings[0].remedy[:10]}" in text
    assert "not judged" in text


def test_a_recording_counts_its_rows(run: Recording) -> None:
    text = run._repr_html_()

    assert "rows of steps" in text
    assert f"{len(run.table('activations')):,}" in text
    assert "4 blocks" in text


def test_a_comparison_has_a_verdict_and_a_row_for_each_variant(comparison: Comparison) -> None:
    text = comparison._repr_html_()

    assert text.count("<tr>") == 1 + len(comparison.labels)
    assert sum(text.count(word) for word in (">PASS<", ">WARN<", ">FAIL<")) == len(comparison.labels)
