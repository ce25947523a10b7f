"""The same content as JSON, Markdown and text: documented, harmless, and written by the one that owns the file."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from json_schema import violations
from rheoscope.diagnostics.comparison import Comparison
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.probes.errors import ReportError
from rheoscope.probes.recording import Recording
from rheoscope.reports import image
from rheoscope.reports.as_json import SCHEMA
from rheoscope.reports.as_markdown import escaped
from rheoscope.reports.report import FORMS, render, write_report

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "report_schema.json"
SUBJECTS = ["run", "check_up", "comparison", "empty", "not_finite", "hostile"]


def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("subject", SUBJECTS)
def test_json_is_what_the_schema_says(subject: str, request: pytest.FixtureRequest) -> None:
    text = render(request.getfixturevalue(subject), form="json")

    value = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert list(violations(value, schema(), schema())) == []


def test_the_schema_is_numbered_and_refuses_what_it_does_not_foresee(check_up: Recording) -> None:
    value = json.loads(render(check_up, form="json"))

    assert schema()["$defs"]["run"]["properties"]["schema"]["const"] == SCHEMA
    assert f"schema {SCHEMA}" in schema()["title"]
    assert list(violations({**value, "more": 1}, schema(), schema()))
    assert list(violations({**value, "verdict": "FINE"}, schema(), schema()))
    assert list(violations({name: item for name, item in value.items() if name != "findings"}, schema(), schema()))
    assert list(violations({**value, "findings": [{**value["findings"][0], "step": True}]}, schema(), schema()))


def test_json_holds_the_findings_and_the_numbers_of_the_recording(run: Recording) -> None:
    value = json.loads(render(run, form="json"))

    charts = {chart["key"]: chart for section in value["sections"] for chart in section["charts"]}
    table = charts["gradient-by-depth"]["table"]
    states = run.table("activations")
    states = states[(states["site"] == "state") & (states["direction"] == "backward") & (states["step"] == 0)]
    at = {name: index for index, name in enumerate(table["columns"])}
    drawn = {row[at["depth"]]: row[at["rms"]] for row in table["rows"] if row[at["step"]] == 0}
    assert drawn == pytest.approx(dict(zip(states["depth"], states["rms"], strict=True)), rel=1e-12)
    assert [finding["sentence"] for finding in value["findings"]] == [f.sentence for f in diagnose(run)]
    assert charts["expert-loads"]["absent"]


def test_an_infinite_number_is_a_word_and_a_missing_one_is_null(not_finite: Recording) -> None:
    value = json.loads(render(not_finite, form="json"))

    charts = {chart["key"]: chart["table"] for section in value["sections"] for chart in section["charts"]}
    states = charts["state-heatmap"] if charts["state-heatmap"]["rows"] else charts["state-by-depth"]
    assert {row[states["columns"].index("rms")] for row in states["rows"]} == {"+Infinity"}


def test_markdown_leads_with_the_verdict_and_holds_no_html(hostile: Recording) -> None:
    text = render(hostile, form="markdown")

    lines = text.splitlines()
    assert re.match(r"## (PASS|WARN|FAIL): ", lines[1])
    assert re.findall(r"<[^>]*>", text) == ["<!-- Written by Rheoscope -->"]
    assert "](" not in text
    assert "https://" not in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    assert all(len(line) < 5_000 for line in lines)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("a|b", r"a\|b"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("[x](javascript:y)", r"\[x\](javascript:y)"),
        ("![x](y)", r"!\[x\](y)"),
        ("h.0.attn_c*`k`~", r"h.0.attn\_c\*\`k\`\~"),
        ("@someone #12 www.x.y http://x", "@\u2060someone #\u206012 w\u2060ww.x.y http:\u2060//x"),
        (r"back\slash", r"back\\slash"),
    ],
)
def test_markdown_shows_names_as_they_are(given: str, written: str) -> None:
    assert escaped(given) == written


def test_markdown_of_a_comparison_has_one_row_a_variant(comparison: Comparison) -> None:
    text = render(comparison, form="markdown")

    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + min(12, len(comparison.labels))
    assert len({line.replace(r"\|", "").count("|") for line in rows}) == 1
    assert text.index("under pre-norm") < text.index("| variant")


@pytest.mark.parametrize("subject", SUBJECTS)
def test_text_has_no_control_characters_and_says_what_was_not_judged(
    subject: str, request: pytest.FixtureRequest
) -> None:
    text = render(request.getfixturevalue(subject), form="text")

    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
    assert text.startswith("Written by Rheoscope.\n")
    assert subject == "comparison" or "Not judged" in text


@pytest.mark.parametrize("form", [form for form in FORMS if form != "html"])
def test_every_form_is_the_same_bytes_again_and_replaces_an_earlier_one(
    form: str, run: Recording, check_up: Recording, tmp_path: Path
) -> None:
    path = tmp_path / "report"
    write_report(check_up, path, form=form)

    write_report(run, path, form=form)

    assert path.read_bytes().decode() == render(Recording.load(run.folder or ""), form=form)


@pytest.mark.parametrize(
    ("name", "start"), [("a.json", "{"), ("a.md", "<!--"), ("a.txt", "Written"), ("a.html", "<!d")]
)
def test_the_suffix_tells_the_form(name: str, start: str, check_up: Recording, tmp_path: Path) -> None:
    assert write_report(check_up, tmp_path / name).read_text(encoding="utf-8").startswith(start)


def test_a_form_that_is_none_is_a_clear_error(check_up: Recording) -> None:
    with pytest.raises(ReportError, match=r"Expected a form among .*got 'pdf'"):
        render(check_up, form="pdf")


@pytest.mark.parametrize(
    ("key", "name", "why"),
    [
        ("gradient-by-depth", "a.gif", r"end in \.svg, \.png or \.pdf"),
        ("no-such-chart", "a.svg", r"Expected the key of a chart, got 'no-such-chart'.*gradient-by-depth"),
        ("expert-loads", "a.svg", r"something to draw.*routes tokens"),
    ],
)
def test_a_picture_that_cannot_be_is_a_clear_error(
    key: str, name: str, why: str, check_up: Recording, tmp_path: Path
) -> None:
    with pytest.raises(ReportError, match=why):
        image.write_chart(check_up, key, tmp_path / name)


def test_without_kaleido_a_picture_says_what_to_install(
    check_up: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "find_spec", lambda name: None)

    with pytest.raises(ReportError, match=r"pip install 'rheoscope\[pictures\]'.*Download plot"):
        image.write_chart(check_up, "gradient-by-depth", tmp_path / "a.svg")


def test_without_a_browser_a_picture_says_so(
    check_up: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kaleido", reason="pip install 'rheoscope[pictures]'")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nothing"))

    with pytest.raises(ReportError, match=r"Expected a Chrome or Chromium.*apt install chromium"):
        image.write_chart(check_up, "gradient-by-depth", tmp_path / "a.svg")


def test_a_picture_is_drawn_and_replaces_only_pictures(check_up: Recording, tmp_path: Path) -> None:
    pytest.importorskip("kaleido", reason="pip install 'rheoscope[pictures]'")
    path = tmp_path / "chart.svg"
    try:
        image.write_chart(check_up, "gradient-by-depth", path)
    except ReportError as error:
        pytest.skip(str(error))

    text = path.read_text(encoding="utf-8")
    assert text.startswith("<svg")
    assert "Gradient RMS after the first block" in text
    path.write_text("my thesis")
    with pytest.raises(ReportError, match=r"not a picture"):
        image.write_chart(check_up, "gradient-by-depth", path)
    assert path.read_text() == "my thesis"
