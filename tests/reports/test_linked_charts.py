"""The step control, blocks that stand out everywhere at once, addresses and downloads, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import CHROMIUM, MISSING, bring_into_view, visit
from playwright.sync_api import Browser, Page
from rheoscope.diagnostics.comparison import Comparison
from rheoscope.probes.recording import Recording
from rheoscope.reports.report import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)

SHAPES = """() => Object.fromEntries([...document.querySelectorAll('.chart')].map(c => [c.dataset.figure,
  (c.layout?.shapes ?? []).filter(s => s.type === 'rect').map(s => [s.xref, s.yref, s.x0, s.x1, s.y0, s.y1])]))"""
BOLD = """key => { const c = document.querySelector(`[data-figure=${key}]`);
  const found = c.data.filter(t => t.name?.endsWith('(chosen)')); return found.map(t => [t.name, [...t.y]]); }"""
SETTLED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 150))))"


@pytest.fixture(scope="module")
def pages(run: Recording, comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {
        "run": write_report(run, folder / "run.html"),
        "comparison": write_report(comparison, folder / "comparison.html"),
    }


@pytest.fixture(scope="module")
def opened(pages: dict[str, Path], browser: Browser) -> Iterator[Page]:
    """The run's page with every chart drawn; tests leave no block chosen."""
    seen = visit(browser, pages["run"])
    yield seen.page
    assert seen.logged == []


@pytest.fixture(autouse=True)
def nothing_chosen(opened: Page) -> Iterator[None]:
    yield
    opened.keyboard.press("Escape")


def shapes(page: Page) -> dict[str, list[list[object]]]:
    """Return the frames around blocks, by chart, once each chart has come into sight."""
    for chart in page.query_selector_all(".chart"):
        bring_into_view(chart)
        page.evaluate(SETTLED)
    found: dict[str, list[list[object]]] = page.evaluate(SHAPES)
    return found


def profile(run: Recording, step: int, direction: str) -> list[float]:
    table = run.table("activations")
    rows = table[(table["site"] == "state") & (table["direction"] == direction) & (table["step"] == step)]
    return rows.sort_values("depth")["rms"].tolist()


def test_the_keyboard_moves_every_profile_to_another_step(opened: Page, run: Recording) -> None:
    opened.locator("#step").focus()
    opened.keyboard.press("Home")
    opened.keyboard.press("ArrowRight")
    opened.evaluate(SETTLED)

    assert opened.locator("#step-shown").inner_text() == "2"
    assert opened.locator("#step").get_attribute("aria-valuetext") == "step 2"
    for key, direction in (("gradient-by-depth", "backward"), ("state-by-depth", "forward")):
        bring_into_view(opened.locator(f"[data-figure={key}]").element_handle())
        opened.evaluate(SETTLED)
        [[name, values]] = opened.evaluate(BOLD, key)
        assert name == "step 2 (chosen)"
        assert values == pytest.approx(profile(run, 2, direction), rel=1e-3)
    assert "step=2" in opened.url


def test_a_block_chosen_in_the_column_stands_out_in_every_chart_and_table(opened: Page) -> None:
    opened.locator("[data-place='2'] .row").click()

    found = shapes(opened)

    # Block 2 of 4: depths 5 and 6 of the states 0 to 8, rows 5 and 6 of a heatmap of states.
    assert found["gradient-by-depth"] == [["x", "y domain", 4.5, 6.5, 0, 1]]
    assert found["gradient-heatmap"] == [["x domain", "y", 0, 1, 4.5, 6.5]]
    assert found["update-ratio"] == [["x domain", "y", 0, 1, 1.5, 2.5]]
    assert found["gradient-paths"] == [["x", "y domain", 3.5, 5.5, 0, 1]]
    over_blocks = set(found) - {"the-run", "log-z", "published-models"}
    assert [key for key in over_blocks if not found[key]] == []
    assert "block=2" in opened.url
    rows = opened.locator("#gradient-by-depth tr.chosen")
    assert rows.count() > 0
    assert rows.first.get_attribute("aria-current") == "true"
    assert opened.locator("[data-place='2']").get_attribute("aria-current") == "true"
    assert "Block 2 is framed" in opened.locator("#said").inner_text()


def test_escape_clears_the_block(opened: Page) -> None:
    opened.locator("#block").select_option("1")
    assert "block=1" in opened.url

    opened.keyboard.press("Escape")

    assert "block=" not in opened.url
    assert not any(shapes(opened).values())
    assert opened.locator("tr.chosen").count() == 0
    assert opened.locator("#clear").is_disabled()


def test_the_keyboard_chooses_a_block_in_the_column(opened: Page) -> None:
    opened.locator("[data-place='0']").focus()
    opened.keyboard.press("Enter")

    assert "block=0" in opened.url
    assert opened.locator("#block").input_value() == "0"


def test_a_click_on_a_heatmap_row_or_a_table_row_chooses_its_block(opened: Page) -> None:
    chart = opened.locator("[data-figure=update-ratio]")
    bring_into_view(chart.element_handle())
    box = chart.locator(".nsewdrag").first.bounding_box()
    assert box
    # Four blocks, block 0 at the bottom: the top quarter is block 3.
    opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 8)
    opened.wait_for_timeout(200)
    opened.mouse.down()
    opened.mouse.up()
    opened.wait_for_timeout(400)
    assert "block=3" in opened.url

    opened.locator("#update-ratio summary").click()
    row = opened.locator("#update-ratio tbody tr").nth(1)
    row.click()
    assert "block=1" in opened.url
    row.click()
    assert "block=" not in opened.url


def test_an_address_brings_back_section_block_and_step(pages: dict[str, Path], browser: Browser) -> None:
    page = browser.new_context(offline=True, viewport={"width": 1280, "height": 800}).new_page()
    page.goto(f"{pages['run'].as_uri()}#state-by-depth&block=3&step=2")
    page.wait_for_selector("[data-figure=state-by-depth][data-drawn=yes]")
    page.evaluate(SETTLED)

    top = page.evaluate("document.getElementById('state-by-depth').getBoundingClientRect().top")
    assert -50 < top < 800
    assert page.evaluate(BOLD, "state-by-depth")[0][0] == "step 2 (chosen)"
    assert page.evaluate(SHAPES)["state-by-depth"] == [["x", "y domain", 6.5, 8.5, 0, 1]]
    page.locator("nav a[href='#residual-stream']").click()
    page.wait_for_url("**#residual-stream&block=3&step=2")
    assert page.locator("tr.chosen").count() > 0


@pytest.mark.parametrize(
    "address", ["block=99", "block=%3Cimg%3E", "step=x", "&&&", "block=1.2.3&step=", "__proto__&block=0"]
)
def test_a_strange_address_does_no_harm(address: str, pages: dict[str, Path], browser: Browser) -> None:
    page = browser.new_context(offline=True).new_page()
    logged: list[str] = []
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.goto(f"{pages['run'].as_uri()}#{address}")
    page.wait_for_selector("html[data-ready=yes]")
    bring_into_view(page.locator(".chart").first.element_handle())
    page.wait_for_selector(".chart[data-drawn=yes]")

    assert logged == []


def test_a_comparison_frames_the_block_in_every_panel(pages: dict[str, Path], browser: Browser) -> None:
    seen = visit(browser, pages["comparison"], anchor="block=1")

    found = shapes(seen.page)

    assert found["gradient-rms"] == [["x", "y domain", 2.5, 4.5, 0, 1], ["x2", "y2 domain", 2.5, 4.5, 0, 1]]
    assert found["bias-gradient-share"] == [["x", "y domain", 0.5, 1.5, 0, 1], ["x2", "y2 domain", 0.5, 1.5, 0, 1]]
    assert found["losses"] == []
    assert seen.logged == []
    assert seen.page.locator("#steps").is_hidden()


@pytest.mark.parametrize(("button", "head"), [("PNG", b"\x89PNG"), ("SVG", b"<svg")])
def test_a_chart_is_saved_as_a_picture_with_its_title(button: str, head: bytes, opened: Page, tmp_path: Path) -> None:
    figure = opened.locator("figure#gradient-by-depth")

    with opened.expect_download() as caught:
        figure.locator(".downloads button", has_text=button).click()

    path = tmp_path / caught.value.suggested_filename
    caught.value.save_as(path)
    assert path.name == f"gradient-by-depth.{button.lower()}"
    assert path.read_bytes().startswith(head)
    if button == "SVG":
        assert "Gradient RMS after the first block" in path.read_text()


def test_a_printed_page_has_its_charts_and_not_its_controls(pages: dict[str, Path], browser: Browser) -> None:
    page = browser.new_context(offline=True).new_page()
    page.goto(pages["run"].as_uri())
    page.wait_for_selector("html[data-ready=yes]")

    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_selector(".chart:not([data-drawn=yes])", state="detached")
    page.emulate_media(media="print")

    assert page.locator("#controls").is_hidden()
    assert page.locator(".downloads:visible").count() == 0
    assert len(page.pdf(format="A4")) > 200_000


def test_a_check_up_has_no_step_to_choose_but_blocks(check_up: Recording, browser: Browser, page_path: Path) -> None:
    write_report(check_up, page_path)

    page = visit(browser, page_path).page

    assert page.locator("#steps").is_hidden()
    assert page.locator("#block").is_visible()


def test_a_page_without_a_model_has_no_controls(empty: Recording, browser: Browser, page_path: Path) -> None:
    write_report(empty, page_path)

    assert visit(browser, page_path).page.locator("#controls").is_hidden()
