"""The page in a real browser with the network off: every chart draws, nothing else happens."""

from dataclasses import replace
from pathlib import Path

import pytest
from browsers import CHROMIUM, MISSING, bring_into_view, visit
from playwright.sync_api import Browser
from rheoscope.probes.recording import Recording
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
    page.reload()  # where charts were looked at, the next element by keyboard is beside them
    page.evaluate("scrollTo(0, 0)")
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


# Text in drawings: its fill against the page's ground, or against the cell or box that it stands in.
DRAWN_CONTRAST = """() => {
  const light = c => { const v = c / 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => .2126 * light(r) + .7152 * light(g) + .0722 * light(b);
  const page = parts(getComputedStyle(document.body).backgroundColor);
  const under = e => {
    const box = e.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
    const rects = [...e.closest('svg').querySelectorAll('rect')].filter(r => { const b = r.getBoundingClientRect();
      const fill = getComputedStyle(r).fill;
      return fill.startsWith('rgb(') && b.width > 4 && b.left <= x && b.right >= x && b.top <= y && b.bottom >= y; });
    return e.closest('.chart') || !rects.length ? page : parts(getComputedStyle(rects.at(-1)).fill);
  };
  const bad = [], seen = [...document.querySelectorAll('svg text')].filter(e => e.textContent.trim() && !e.closest('.hm'));
  for (const e of seen) {
    const [a, b] = [luminance(parts(getComputedStyle(e).fill)), luminance(under(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) bad.push(e.textContent.trim().slice(0, 40) + ' ' + getComputedStyle(e).fill);
  }
  return [seen.length, [...new Set(bad)]];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("subject", ["run", "comparison"])
def test_text_in_charts_and_sketches_stands_out_too(
    subject: str, scheme: str, browser: Browser, page_path: Path, request: pytest.FixtureRequest
) -> None:
    write_report(request.getfixturevalue(subject), page_path)
    page = visit(browser, page_path, scheme=scheme).page

    n_seen, faint = page.evaluate(DRAWN_CONTRAST)

    assert n_seen > 200
    assert faint == []


def test_a_name_from_right_to_left_stays_in_its_place(check_up: Recording, browser: Browser, page_path: Path) -> None:
    anatomy = check_up.anatomy
    stack = anatomy.stacks[0]
    branches = tuple(replace(branch, kind="\u0634\u0628\u0643\u0629") for branch in stack.branches)
    tables = {
        name: check_up.table(name) for name in ("steps", "activations", "gradient_paths", "parameters", "identities")
    }
    for frame in tables.values():
        if "branch" in frame:
            frame["branch"] = "\u0634\u0628\u0643\u0629"
    manifest = {**check_up.manifest, "label": "\u202e\u0645\u0633\u0627\u0628\u0642\u0629 1 2 3"}
    ill = Recording.from_tables(manifest, replace(anatomy, stacks=(replace(stack, branches=branches),)), tables)
    write_report(ill, page_path)

    opened = visit(browser, page_path)

    assert opened.logged == []
    heading = opened.page.locator("h1").inner_text()
    assert "\u0645\u0633\u0627\u0628\u0642\u0629" in heading
    assert "\u202e" not in opened.page.content()
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    opened.page.locator("#block").select_option("1")
    bring_into_view(opened.page.locator("[data-figure=gradient-heatmap]").element_handle())
    opened.page.wait_for_timeout(300)
    framed = opened.page.evaluate("document.querySelector('[data-figure=gradient-heatmap]').layout.shapes.length")
    assert framed == 1


def test_the_hover_says_what_was_recorded(run: object, browser: Browser, page_path: Path) -> None:
    write_report(run, page_path)  # type: ignore[arg-type]
    opened = visit(browser, page_path)

    said = opened.page.evaluate("document.querySelector('[data-figure=gradient-heatmap]').data[0].customdata")

    table = run.table("activations")  # type: ignore[attr-defined]
    states = table[(table["site"] == "state") & (table["direction"] == "backward")]
    expected = states.pivot_table(index="depth", columns="step", values="rms").to_numpy()
    assert [[float(word) for word in row] for row in said] == [pytest.approx(row, rel=0.01) for row in expected]
