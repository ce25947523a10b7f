"""The page in a real browser with the network off: every chart draws, nothing else happens."""

from pathlib import Path

import pytest
from browsers import CHROMIUM, MISSING, visit
from playwright.sync_api import Browser
from rheoscope.reports.report import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("subject", ["run", "comparison", "not_finite"])
def test_every_chart_draws_in_silence_without_a_network(
    subject: str, scheme: str, browser: Browser, page_path: Path, request: pytest.FixtureRequest
) -> None:
    write_report(request.getfixturevalue(subject), page_path)

    opened = visit(browser, page_path, scheme=scheme)

    charts = opened.page.locator(".chart")
    assert charts.count() >= 3
    assert all(charts.nth(index).locator(".main-svg").count() for index in range(charts.count()))
    assert opened.logged == []
    assert opened.requests == [page_path.as_uri()]


def test_no_button_sends_a_chart_anywhere(run: object, browser: Browser, page_path: Path) -> None:
    write_report(run, page_path)  # type: ignore[arg-type]

    opened = visit(browser, page_path)

    buttons = opened.page.locator(".modebar-btn")
    titles = {buttons.nth(index).get_attribute("data-title") for index in range(buttons.count())}
    assert titles == {"Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}


def test_hostile_names_run_nothing_and_make_no_link(hostile: object, browser: Browser, page_path: Path) -> None:
    write_report(hostile, page_path)  # type: ignore[arg-type]

    opened = visit(browser, page_path)

    assert opened.page.evaluate("window.PWN") is None
    assert opened.page.locator("main a:not([data-place])").count() == 0
    assert opened.page.locator("img").count() == 0
    assert opened.logged == []


def test_an_injected_script_is_blocked(run: object, browser: Browser, page_path: Path) -> None:
    write_report(run, page_path)  # type: ignore[arg-type]
    page_path.write_text(page_path.read_text().replace("</main>", "<script>window.PWN=1</script></main>"))

    opened = visit(browser, page_path)

    assert opened.page.evaluate("window.PWN") is None


def test_every_section_is_reached_by_its_link(run: object, browser: Browser, page_path: Path) -> None:
    write_report(run, page_path)  # type: ignore[arg-type]

    opened = visit(browser, page_path)

    links = opened.page.locator("nav a")
    for index in range(links.count()):
        target = links.nth(index).get_attribute("href")
        assert target
        assert opened.page.locator(target).count() == 1


def test_every_chart_has_its_table_and_a_name(run: object, browser: Browser, page_path: Path) -> None:
    write_report(run, page_path)  # type: ignore[arg-type]

    opened = visit(browser, page_path)

    charts = opened.page.locator("figure:has(.chart)")
    assert charts.count() >= 15
    for index in range(charts.count()):
        chart = charts.nth(index)
        told = chart.locator("table tbody tr").count() or "table of the chart above" in chart.inner_text()
        assert told, chart.get_attribute("id")
        assert chart.locator(".chart").get_attribute("aria-label")
    nameless = """() => [...document.querySelectorAll('a, button, input, select, summary, [role]:not([role=status])')]
        .filter(e => !e.closest('.chart *') && !e.labels?.length
        && !(e.textContent.trim() || e.getAttribute('aria-label'))).length"""
    assert opened.page.evaluate(nameless) == 0


def test_the_keyboard_alone_reaches_every_section_and_opens_its_numbers(
    run: object, browser: Browser, page_path: Path
) -> None:
    write_report(run, page_path)  # type: ignore[arg-type]
    opened = visit(browser, page_path)
    page = opened.page
    page.evaluate("scrollTo(0, 0); document.activeElement.blur()")
    targets = page.eval_on_selector_all("nav a", "links => links.map(a => a.getAttribute('href'))")

    reached = []
    for _ in range(len(targets) + 1):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.getAttribute('href')"))
        width = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert width != "0px", "the focus is not seen"
        page.keyboard.press("Enter")
        page.evaluate("href => document.querySelector(`a[href='${href}']`).focus()", reached[-1])

    assert reached == ["#content", *targets]
    page.locator("figure summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("figure details[open]").count() == 1


def test_a_link_to_a_finding_or_a_chart_shows_it(run: object, browser: Browser, page_path: Path) -> None:
    write_report(run, page_path)  # type: ignore[arg-type]
    page = browser.new_context(offline=True, viewport={"width": 1280, "height": 800}).new_page()

    for anchor in ("gradient-by-depth", "finding-1"):
        page.goto(f"{page_path.as_uri()}#{anchor}")
        page.wait_for_selector("html[data-ready=yes]")
        page.wait_for_timeout(1_000)
        top, bottom = page.evaluate(
            "id => { const box = document.getElementById(id).getBoundingClientRect(); return [box.top, box.bottom]; }",
            anchor,
        )
        assert -50 < top < 800, anchor
        assert bottom > 0, anchor
        assert page.locator(f"[id={anchor}]").count() == 1


def test_printed_it_holds_its_sections_and_nothing_is_cut(run: object, browser: Browser, page_path: Path) -> None:
    write_report(run, page_path)  # type: ignore[arg-type]
    opened = visit(browser, page_path)

    printed = opened.page.pdf(format="A4")

    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") >= 5
    opened.page.emulate_media(media="print")
    assert opened.page.locator("nav").is_hidden()


CONTRAST = """() => {
  const light = c => { const v = c / 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => .2126 * light(r) + .7152 * light(g) + .0722 * light(b);
  const ground = e => { for (; e; e = e.parentElement) {
    const c = parts(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
  const bad = [];
  for (const e of document.querySelectorAll('h1, h2, h3, p, a, li, dt, dd, th, td, summary, span, strong, caption, footer')) {
    if (e.closest('svg') || e.closest('.chart') || !e.textContent.trim()) continue;
    const [a, b] = [luminance(parts(getComputedStyle(e).color)), luminance(ground(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) bad.push(e.tagName + '.' + e.className + ': ' + e.textContent.trim().slice(0, 40));
  }
  return [...new Set(bad)];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("subject", ["not_finite", "comparison"])
def test_every_text_stands_out_from_its_ground(
    subject: str, scheme: str, browser: Browser, page_path: Path, request: pytest.FixtureRequest
) -> None:
    write_report(request.getfixturevalue(subject), page_path)
    page = browser.new_context(offline=True, color_scheme=scheme).new_page()  # type: ignore[arg-type]
    page.goto(page_path.as_uri())

    assert page.evaluate(CONTRAST) == []


def test_the_hover_says_what_was_recorded(run: object, browser: Browser, page_path: Path) -> None:
    write_report(run, page_path)  # type: ignore[arg-type]
    opened = visit(browser, page_path)

    said = opened.page.evaluate("document.querySelector('[data-figure=gradient-heatmap]').data[0].customdata")

    table = run.table("activations")  # type: ignore[attr-defined]
    states = table[(table["site"] == "state") & (table["direction"] == "backward")]
    expected = states.pivot_table(index="depth", columns="step", values="rms").to_numpy()
    assert [[float(word) for word in row] for row in said] == [pytest.approx(row, rel=0.01) for row in expected]
