"""The page: one file, nothing from outside, the same bytes for the same recording, and a clear word when it cannot be."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from page_reading import figures
from rheoscope.diagnostics.comparison import Comparison
from rheoscope.diagnostics.diagnosis import Diagnosis
from rheoscope.probes.errors import ReportError
from rheoscope.probes.recording import Recording
from rheoscope.reports.report import render, write_report
from rheoscope.reports.script import digest


class Elements(HTMLParser):
    """Collects the elements of a page with their attributes, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        """Read the whole page."""
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}", {}))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script":
            self.scripts[-1] += data


@pytest.mark.parametrize("subject", ["run", "check_up", "comparison", "empty", "not_finite", "hostile"])
def test_page_refers_to_nothing_outside_itself(subject: str, request: pytest.FixtureRequest) -> None:
    text = render(request.getfixturevalue(subject))

    elements = Elements(text).found
    assert not [tag for tag, _ in elements if tag in {"link", "iframe", "img", "object", "embed", "base", "form"}]
    assert not [attrs for _, attrs in elements if "src" in attrs or any(name.startswith("on") for name in attrs)]
    assert all(str(attrs["href"]).startswith("#") for tag, attrs in elements if tag == "a")


def test_policy_comes_before_everything_that_could_run_and_allows_just_two_scripts(run: Recording) -> None:
    text = render(run)

    tags = Elements(text)
    names = [tag for tag, _ in tags.found]
    policy = next(attrs["content"] for _, attrs in tags.found if attrs.get("http-equiv") == "Content-Security-Policy")
    assert names.index("meta") < names.index("style") < names.index("script")
    assert str(policy).startswith("default-src 'none'; script-src 'sha256-")
    assert digest(tags.scripts[-1]) in str(policy)
    assert str(policy).count("sha256-") == 2


def test_the_same_recording_gives_the_same_bytes(run: Recording) -> None:
    assert render(run) == render(Recording.load(run.folder or ""))


def test_every_chart_of_a_run_is_drawn_and_has_its_numbers(run: Recording) -> None:
    text = render(run)

    assert {"gradient-by-depth", "skip-transmission", "state-by-depth", "bias-share", "update-ratio", "the-run"} <= set(
        figures(text)
    )
    absent = re.findall(r"Not shown: ([^<]*)", text)
    assert absent == [
        "No hidden value was exactly 0, as with a smooth activation.",
        "No branch of this model routes tokens to experts, as far as could be seen.",
        "A forecast needs 8 sampled steps; this recording has 3.",
    ]
    assert {"norm-inputs", "norm-gains", "mean-energy", "bias-coherence", "hidden-kurtosis", "log-z"} <= set(
        figures(text)
    )
    assert text.count("<summary>Numbers</summary>") >= 7


def test_drawn_numbers_are_those_of_the_recording(run: Recording) -> None:
    drawn = figures(render(run))["gradient-by-depth"]

    table = run.table("activations")
    states = table[(table["site"] == "state") & (table["direction"] == "backward") & (table["step"] == 0)]
    expected = states.sort_values("depth")["rms"].tolist()
    traces = drawn["data"]
    assert isinstance(traces, list)
    assert expected == pytest.approx(traces[0]["y"], rel=1e-12)


def test_a_check_up_says_why_there_is_no_run_to_draw(check_up: Recording) -> None:
    text = render(check_up)

    assert "A check-up is one step; there is no run to draw." in text
    assert "No optimizer step was recorded" in text


def test_an_empty_recording_gives_a_page_that_says_so(empty: Recording) -> None:
    text = render(empty)

    assert figures(text) == {}
    assert "No step was sampled" in text
    assert "no residual stream was found" in text


def test_values_that_are_not_finite_are_marked_and_fail(not_finite: Recording) -> None:
    text = render(not_finite)

    assert 'class="badge FAIL"' in text
    assert "not finite" in json.dumps(figures(text)["state-heatmap"])


def test_hostile_names_become_text(hostile: Recording) -> None:
    text = render(hostile)

    assert "<img" not in text
    assert "evil.example'>" not in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert len(text) < 4_000_000


def test_comparison_leads_with_skip_transmission(comparison: Comparison) -> None:
    text = render(comparison)

    order: list[str] = re.findall(r'<figure id="([a-z-]+)"', text)
    assert order[0] == "skip-transmission"
    told = [
        "gradient-shares",
        "state-rms",
        "gradient-rms",
        "gradient-grids",
        "amplification",
        "norm-inputs",
        "norm-gains",
    ]
    told += [
        "mean-energy",
        "bias-share",
        "bias-share-grids",
        "bias-coherence",
        "redundant-biases",
        "loss-by-learning-rate",
    ]
    places = [order.index(key) for key in [*told, "interaction", "findings-by-variant"]]
    assert places == sorted(places)
    assert "1 under pre-norm" in text


def test_comparison_draws_theory_over_the_measurement(comparison: Comparison) -> None:
    traces = figures(render(comparison))["state-rms"]["data"]

    assert isinstance(traces, list)
    assert any("closed form" in trace["name"] for trace in traces)


def test_a_fresh_models_report_draws_the_closed_form_beside_its_states(check_up: Recording) -> None:
    drawn = figures(render(check_up))

    for key in ("state-by-depth", "gradient-by-depth"):
        traces = drawn[key]["data"]
        assert isinstance(traces, list)
        assert "closed form at init" in [trace.get("name") for trace in traces]


def test_report_is_written_where_it_was_asked_for(run: Recording, page_path: Path) -> None:
    written = write_report(run, page_path)

    assert written == page_path.absolute()
    assert page_path.read_text(encoding="utf-8") == render(run)
    assert [path.name for path in page_path.parent.iterdir()] == [page_path.name]


def test_an_earlier_report_is_replaced(run: Recording, check_up: Recording, page_path: Path) -> None:
    write_report(run, page_path)

    write_report(check_up, page_path)

    assert "a check-up" in page_path.read_text(encoding="utf-8")


def test_a_file_that_is_no_report_is_left_alone(run: Recording, page_path: Path) -> None:
    page_path.write_text("my thesis")

    with pytest.raises(ReportError, match=r"Expected a new file or an earlier report.*Pass another path"):
        write_report(run, page_path)

    assert page_path.read_text() == "my thesis"


@pytest.mark.parametrize("name", ["missing/page.html", ""])
def test_a_path_that_cannot_be_written_is_a_clear_error(run: Recording, tmp_path: Path, name: str) -> None:
    with pytest.raises(ReportError, match=r"Expected .*, got "):
        write_report(run, tmp_path / name)


def test_a_link_to_another_file_is_replaced_and_not_followed(
    run: Recording, check_up: Recording, tmp_path: Path
) -> None:
    target, link = tmp_path / "report.html", tmp_path / "link.html"
    write_report(run, target)
    before = target.read_bytes()
    link.symlink_to(target)

    write_report(check_up, link)

    assert target.read_bytes() == before
    assert not link.is_symlink()


def test_what_is_no_recording_is_refused() -> None:
    with pytest.raises(ReportError, match=r"Expected a Recording or a Comparison, got str"):
        render("runs/a")  # type: ignore[arg-type]


def test_a_given_diagnosis_is_shown_as_it_is(run: Recording) -> None:
    text = render(run, Diagnosis((), ("Nothing was judged on purpose.",)))

    assert "Nothing was judged on purpose." in text
    assert 'class="badge PASS"' in text
