"""Compare two things by CPU time in interleaved pairs, and print a table that names the machine.

Wall time on a shared machine says little. Each pair runs the plain thing and the other one right after each other, in
alternating order; the ratio of their CPU times is taken pair by pair, and its median is given with the quartiles.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import Progress

Action = Callable[[], None]


@dataclass(frozen=True)
class Pairs:
    """CPU seconds of a plain thing and of another, pair by pair."""

    plain: Sequence[float]
    other: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """The other over the plain, pair by pair."""
        return [other / plain for plain, other in zip(self.plain, self.other, strict=True)]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of the ratios."""
        low, middle, high = statistics.quantiles(self.ratios, n=4)
        return low, middle, high


def cpu_seconds(action: Action) -> float:
    """Return the CPU time of the whole process during ``action``."""
    start = time.process_time()
    action()
    return time.process_time() - start


def in_pairs(plain: Action, other: Action, n_pairs: int, progress: Progress, name: str) -> Pairs:
    """Run ``plain`` and ``other`` once each to warm up, then ``n_pairs`` times in alternating order."""
    plain()
    other()
    first: list[float] = []
    second: list[float] = []
    for index in progress.track(range(n_pairs), description=name):
        for action, times in ((plain, first), (other, second))[:: 1 if index % 2 else -1]:
            times.append(cpu_seconds(action))
    return Pairs(first, second)


def machine() -> str:
    """Return the processor, its number of cores, threads used, and the versions that matter."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        name = f"{len(lines)} x {lines[0].split(':')[1].strip()}" if lines else name
    return f"{name}, {torch.get_num_threads()} thread, Python {platform.python_version()}, torch {torch.__version__}"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    lines = [title, "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    sys.stdout.write("\n".join(lines) + "\n")
