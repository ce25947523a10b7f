"""Measure what recordings of many steps and many blocks cost to open, judge and report: python benchmarks/scale.py [small].

One axis at a time. Each is written through the writer itself and read in a process of its own, whose peak resident
memory is what reading took, libraries included.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measuring import machine, show
from recordings import Plan, written
from rheoscope import Recording, diagnose, write_report

PLANS = {
    "10 steps x 48 blocks": Plan(48, 10),
    "1,000 x 48": Plan(48, 1_000),
    "100,000 x 48, every 10th sampled": Plan(48, 100_000, every=10),
    "100,000 x 96, every 100th sampled": Plan(96, 100_000, every=100),
    "1,000 x 2": Plan(2, 1_000),
    "1,000,000 x 2, every 100th sampled": Plan(2, 1_000_000, every=100),
    "10 x 1,000": Plan(1_000, 10),
    "100 x 1,000": Plan(1_000, 100),
}
COLUMNS = [
    "recorded",
    "written",
    "closed",
    "MB on disk",
    "load",
    "one step",
    "summary",
    "diagnose",
    "report",
    "MB of page",
    "peak MB",
]


def main(size: str = "full") -> None:
    """Print the table, or with ``small`` its quick rows alone."""
    plans = {name: plan for name, plan in PLANS.items() if size == "full" or plan.n_steps * plan.n_blocks <= 50_000}
    rows = []
    for name, plan in plans.items():
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            seconds, closing = _write(plan, run)
            megabytes = sum(path.stat().st_size for path in run.iterdir()) / 1e6
            command = [sys.executable, __file__, "read", str(run)]
            read = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split("\n")
            rows.append([name, f"{seconds:.1f} s", f"{closing:.1f} s", f"{megabytes:.1f}", *read])
            sys.stderr.write(f"{' | '.join(rows[-1])}\n")
    show(f"{machine()}; CPU seconds; peak: resident memory of a process that does all the reading.", COLUMNS, rows)


def _write(plan: Plan, folder: Path) -> tuple[float, float]:
    """Return the CPU seconds of writing and of closing."""
    start = time.process_time()
    writer = written(plan, folder)
    middle = time.process_time()
    writer.close()
    return middle - start, time.process_time() - middle


def read(folder: str) -> None:
    """Print what reading the recording in ``folder`` takes, in the order of the columns."""
    recording: list[Recording] = []
    page = Path(folder).parent / "report.html"
    actions: list[Callable[[], object]] = [
        lambda: recording.append(Recording.load(folder)),
        lambda: recording[0].table("activations", steps=0),
        lambda: recording[0].summary("activations", columns=["rms"]),
        lambda: diagnose(Recording.load(folder)),
        lambda: write_report(Recording.load(folder), page),
    ]
    found = [f"{_seconds(action):.2f} s" for action in actions]
    size = page.stat().st_size / 1e6
    sys.stdout.write("\n".join([*found, f"{size:.1f}", f"{_resident():.0f}"]))


def _seconds(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def _resident() -> float:
    """Return the most memory, in MB, that this process ever kept resident; rusage would count its parent's too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


if __name__ == "__main__":
    read(sys.argv[2]) if sys.argv[1:2] == ["read"] else main(*sys.argv[1:2])
