"""The page in a real browser with the network off: every chart draws, nothing else happens."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from rheoscope.reports.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt install chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@dataclass
class Visit:
    """A page that was opened, with what it logged and asked for."""

    page: Page
    logged: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One headless Chromium for all tests of this file."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


def visit(browser: Browser, path: Path, *, scheme: str = "light") -> Visit:
    """Open ``path`` offline, scroll through it until every chart is drawn, and return what happened."""
    context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": 1200, "height": 900})  # type: ignore[arg-type]
    opened = Visit(context.new_page())
    opened.page.on("console", lambda message: opened.logged.append(message.text))
    opened.page.on("pageerror", lambda error: opened.logged.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(path.as_uri())
    opened.page.wait_for_selector("html[data-ready=yes]")
    for chart in opened.page.query_selector_all(".chart"):
        chart.scroll_into_view_if_needed()
    opened.page.wait_for_function("[...document.querySelectorAll('.chart')].every(c => c.dataset.drawn === 'yes')")
    return opened


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
    assert titles == {"Download plot", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}


def test_hostile_names_run_nothing_and_make_no_link(hostile: object, browser: Browser, page_path: Path) -> None:
    write_report(hostile, page_path)  # type: ignore[arg-type]

    opened = visit(browser, page_path)

    assert opened.page.evaluate("window.PWN") is None
    assert opened.page.locator("main a").count() == 0
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
