"""Say what an attribution will cost before it starts, and how far it has come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
OnProgress = Callable[[int, int, str], None]  # passes done, passes in all, what is going on


@dataclass(frozen=True)
class Cost:
    """What an attribution costs.

    Attributes:
        n_passes: forwards, with or without a backward.
        seconds: foretold from the first pass; once it is over, what it took.
        n_bytes: of memory beside the model and one pass.
    """

    n_passes: int
    seconds: float
    n_bytes: int

    def __str__(self) -> str:
        """Say it in words."""
        return f"{self.n_passes} passes, about {self.seconds:.2g} s, {self.n_bytes / 1e6:.3g} MB"


class Meter:
    """Counts passes, and tells ``on_progress`` of each: the first one with what all will cost."""

    def __init__(self, what: str, n_passes: int, n_bytes: int, on_progress: OnProgress | None = None) -> None:
        """Expect ``n_passes``."""
        self._what, self._n_bytes, self._on_progress = what, n_bytes, on_progress
        self._started = time.perf_counter()
        self.n_expected, self.n_done = n_passes, 0
        self.slowest = 0.0  # seconds of one pass
        self._tell(f"{what}: {n_passes} passes, {n_bytes / 1e6:.3g} MB; timing the first")

    def run(self, one_pass: Callable[[], T], times: int = 1) -> T:
        """Run one pass, or several in one."""
        began = time.perf_counter()
        found = one_pass()
        took = (time.perf_counter() - began) / times
        self.slowest = max(self.slowest, took) if self.n_done else took
        self.n_done += times
        self._tell(f"{self._what}: {Cost(self.n_expected, took * self.n_expected, self._n_bytes)}")
        return found

    def expect(self, n_more: int) -> None:
        """Expect so many passes more."""
        self.n_expected += n_more

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._started

    @property
    def spent(self) -> Cost:
        """What was spent until now."""
        return Cost(self.n_done, self.seconds, self._n_bytes)

    def _tell(self, text: str) -> None:
        if self._on_progress is not None:
            self._on_progress(self.n_done, max(self.n_expected, self.n_done), text)
