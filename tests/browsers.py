"""Where a Chromium is on this machine, how it is started so that it asks nothing of any network, and how a page is visited."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ElementHandle, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "no Chromium on this machine: apt install chromium"
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@dataclass
class Visit:
    """A page that was opened, with what it logged and asked for."""

    page: Page
    logged: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def visit(browser: Browser, path: Path, *, scheme: str = "light", anchor: str = "") -> Visit:
    """Open ``path`` offline, scroll through it until every chart is drawn, and return what happened."""
    context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": 1200, "height": 900})  # type: ignore[arg-type]
    context.set_default_timeout(60_000)
    opened = Visit(context.new_page())
    opened.page.on("console", lambda message: opened.logged.append(message.text))
    opened.page.on("pageerror", lambda error: opened.logged.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(path.as_uri() + (f"#{anchor}" if anchor else ""))
    opened.page.wait_for_selector("html[data-ready=yes]")
    for chart in opened.page.query_selector_all(".chart"):
        bring_into_view(chart)
        opened.page.wait_for_function("chart => chart.dataset.drawn === 'yes'", arg=chart)
    return opened


def bring_into_view(element: ElementHandle | None) -> None:
    """Scroll to an element at once; Playwright's own way waits for frames in which nothing moves: a busy machine gives none."""
    assert element is not None
    element.evaluate("element => element.scrollIntoView({block: 'center', behavior: 'instant'})")
