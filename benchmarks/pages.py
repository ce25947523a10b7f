"""Measure what the report of a recording costs to write and to look at, by its length and depth: python benchmarks/pages.py.

Each recording is made by the writer itself, with all that a page shows; its report is written in a process of its own, and
looked at in Chromium without a network.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from measuring import machine, show
from playwright.sync_api import CDPSession, Page, sync_playwright
from recordings import Plan, write

LENGTHS = (10, 1_000, 100_000)
MOST_SAMPLED = {2: 10_000, 48: 10_000, 1_000: 100}  # by number of blocks: what a recording of a gigabyte holds
COLUMNS = [
    "recorded",
    "sampled steps",
    "report written, CPU",
    "wall",
    "MB of page",
    "first chart, CPU",
    "wall",
    "slowest section, CPU",
    "wall",
    "which",
]
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
_WRITE = """
import sys, time
from rheoscope import Recording, write_report
recording = Recording.load(sys.argv[1])
cpu, wall = time.process_time(), time.perf_counter()
write_report(recording, sys.argv[2])
print(time.process_time() - cpu, time.perf_counter() - wall)
"""


def main() -> None:
    """Print the table."""
    rows = []
    for n_blocks, most in MOST_SAMPLED.items():
        for n_steps in LENGTHS:
            every = max(1, n_steps // most)
            plan = Plan(n_blocks, n_steps, every=every, is_whole=True)
            with tempfile.TemporaryDirectory() as folder:
                run, page = Path(folder) / "run", Path(folder) / "report.html"
                write(plan, run)
                command = [sys.executable, "-c", _WRITE, str(run), str(page)]
                told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                cpu, wall = map(float, told.split())
                first, slowest, name = looked_at(page)
                n_sampled = len(range(0, n_steps, every))
                size = page.stat().st_size / 1e6
            seen = [f"{cpu:.1f} s", f"{wall:.1f} s", f"{size:.1f}"]
            seen += [f"{seconds:.1f} s" for seconds in (first.cpu, first.wall, slowest.cpu, slowest.wall)] + [name]
            rows.append([f"{n_steps:,} steps x {n_blocks:,} blocks", f"{n_sampled:,}", *seen])
            sys.stderr.write(f"{' | '.join(rows[-1])}\n")
    about = (
        "Written: verdict and page, libraries imported on the way. First chart: from the address to the drawn chart, in headless "
        "Chromium, CPU of the page's own thread; the slowest section: all its charts, scrolled through from its beginning. Wall "
        "clocks are of a machine that did other work too."
    )
    show(f"{machine()}. {about}", COLUMNS, rows)


@dataclass(frozen=True)
class Cost:
    """Seconds: of the CPU in the page's own thread, and of the clock."""

    cpu: float
    wall: float


def looked_at(path: Path) -> tuple[Cost, Cost, str]:
    """Return what the first chart costs, what the slowest section does, and that section's name."""
    with sync_playwright() as playwright:
        chromium = next(found for name in ("chromium", "chromium-browser", "google-chrome") if (found := which(name)))
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)

        def visited(anchor: str) -> tuple[Page, Callable[[], Cost]]:
            context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
            page = context.new_page()
            session = context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            start = time.perf_counter()
            page.goto(f"{path.as_uri()}{anchor}")
            return page, lambda: Cost(_thread_seconds(session), time.perf_counter() - start)

        page, cost = visited("#gradient-flow")
        page.wait_for_selector("#gradient-flow .chart[data-drawn=yes]")
        first = cost()
        names = page.eval_on_selector_all("main section:has(.chart)", "found => found.map(section => section.id)")
        sections = {}
        for name in names:
            page, cost = visited("")
            page.wait_for_selector("html[data-ready=yes]")
            before = cost()
            for chart in page.query_selector_all(f"#{name} .chart"):
                chart.scroll_into_view_if_needed()
            page.wait_for_selector(f"#{name} .chart:not([data-drawn=yes])", state="detached")
            after = cost()
            sections[name] = Cost(after.cpu - before.cpu, after.wall - before.wall)
            page.context.close()
        browser.close()
    slowest = max(sections, key=lambda name: sections[name].cpu)
    return first, sections[slowest], slowest


def _thread_seconds(session: CDPSession) -> float:
    metrics = session.send("Performance.getMetrics")["metrics"]
    return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))


if __name__ == "__main__":
    main()
