"""Say which steps are sampled in full: by a stride, a cycle in the profiler's words, any function, or because of a spike."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ProbeError
from .host_copies import ScalarCopies

Schedule = Callable[[int], Any]

WATCHED = ("loss", "gradient_norm", "unclipped_gradient_norm")
WINDOW = 64  # values that a new one is compared with: enough for a median, short beside a learning rate schedule
FEWEST = 16  # of them before anything is called a spike
# Median absolute deviations times 1.4826 estimate a standard deviation (Rousseeuw and Croux 1993). Losses and gradient norms
# have heavy tails: 5 of them would fire every few hundred steps of a sound run, 10 once in a run.
MANY = 10.0
FLOOR = 0.01  # of the median: a quantity that hardly varies does not spike by less
MOST_TRIGGERS = 20  # in one run: what happens more often is not an event


@dataclass(frozen=True)
class Cycle:
    """A schedule in the words of ``torch.profiler.schedule``.

    After ``skip_first`` steps, ``repeat`` times (0: for ever) ``wait`` steps idle, ``warmup`` steps idle too (a probe needs none;
    the word is kept so that a profiler's numbers can be used again), and ``active`` steps in full.

    Example:
        >>> [step for step in range(20) if Cycle(skip_first=2, wait=3, warmup=1, active=2, repeat=2)(step)]
        [6, 7, 12, 13]
    """

    wait: int = 0
    warmup: int = 0
    active: int = 1
    repeat: int = 0
    skip_first: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that make no cycle.

        Raises:
            ProbeError: a number is negative, or ``active`` is 0.
        """
        if min(self.wait, self.warmup, self.repeat, self.skip_first) < 0 or self.active < 1:
            raise ProbeError(f"Expected numbers of steps of 0 or more, and active >= 1, got {self}. Pass such numbers.")

    def __call__(self, step: int) -> bool:
        """Return whether ``step`` is sampled in full."""
        length = self.wait + self.warmup + self.active
        turn, place = divmod(step - self.skip_first, length)
        return turn >= 0 and place >= self.wait + self.warmup and (self.repeat == 0 or turn < self.repeat)


@dataclass(frozen=True)
class Stride:
    """Every so many steps one is sampled in full, from step 0 on."""

    every: int

    def __call__(self, step: int) -> bool:
        """Return whether ``step`` is sampled in full."""
        return step % self.every == 0


def is_sampled(schedule: Schedule, step: int) -> bool:
    """Ask any schedule; what ``torch.profiler.schedule`` returns is understood."""
    answer = schedule(step)
    name = getattr(answer, "name", None)  # a ProfilerAction, of which every member is true
    return name in ("RECORD", "RECORD_AND_SAVE") if isinstance(name, str) else bool(answer)


class Trigger:
    """Watches scalars of steps, late as they may come, and says when something happened that is worth looking at."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self.quantity = ""  # of which something was told last
        self._seen: dict[str, deque[float]] = {}
        self._ill: set[str] = set()
        self._n = 0

    def see(self, step: int, scalars: Mapping[str, float | None]) -> str | None:
        """Take in one step's scalars; return what happened, None where nothing did."""
        found = [(name, self._look(name, value)) for name, value in scalars.items() if value is not None]
        self.quantity, told = next(((name, text) for name, text in found if text), ("", None))
        if told is None or self._n >= MOST_TRIGGERS:
            return None
        self._n += 1
        return f"At step {step} {told}"

    def _look(self, name: str, value: float) -> str | None:
        words = name.replace("_", " ")
        if not math.isfinite(value):
            was_ill = name in self._ill
            self._ill.add(name)  # a run that stays ill is told once
            return None if was_ill else f"the {words} was {value}"
        self._ill.discard(name)
        seen = self._seen.setdefault(name, deque(maxlen=WINDOW))
        told = None
        if len(seen) >= FEWEST:
            middle = statistics.median(seen)
            spread = 1.4826 * statistics.median(abs(old - middle) for old in seen)
            limit = middle + max(MANY * spread, FLOOR * abs(middle))
            # Each of a row of high values is the same spike.
            if value > limit and seen[-1] <= limit:
                told = (
                    f"the {words} was {value:.4g}; the {len(seen)} before it had a median of {middle:.4g} and a limit of "
                    f"{limit:.4g} for spikes"
                )
        seen.append(value)
        return told


class Sampler:
    """Decides for each step whether it is sampled in full: by the schedule, or because something happened shortly before.

    Attributes:
        is_on: whether the step chosen last is sampled.
        until: the last step that is sampled because of an event.
        nonfinite: the step whose loss or gradient norm was the first that is not finite; whoever reads it takes it away.
        spiked: the step whose loss was the last that was finite and spiked; None before the first.
    """

    def __init__(self, schedule: Schedule, n_triggered: int) -> None:
        """Sample by ``schedule``, and ``n_triggered`` steps after each event."""
        self.is_on = False
        self._schedule, self._n_triggered = schedule, n_triggered
        self._trigger, self.until = Trigger(), -1
        self.nonfinite: int | None = None
        self.spiked: int | None = None
        self._on_their_way: deque[tuple[int, ScalarCopies]] = deque()

    def choose(self, step: int, until: int | None = None) -> None:
        """Decide about ``step``; where ranks decide together, ``until`` takes the place of this one's own."""
        last = self.until if until is None else until
        self.is_on = step <= last or is_sampled(self._schedule, step)

    def look(self, step: int, scalars: ScalarCopies, *, now: int | None = None) -> str | None:
        """Take in the scalars of ``step``; return what happened, in a sentence, None where nothing did.

        ``now`` is the last step for which nothing can be decided any more; ``step`` itself where it is not given.

        Scalars that are still on their way from a device are looked at when a later step is taken in: nobody waits.
        """
        if not self._n_triggered:
            return None
        self._on_their_way.append((step, scalars))
        told = None
        while self._on_their_way and self._on_their_way[0][1].is_here:
            number, copies = self._on_their_way.popleft()
            values = copies.values()
            # A step that the loss scaler left out is its search for a scale.
            seen = None if values.get("is_skipped") else self._trigger.see(number, {k: values.get(k) for k in WATCHED})
            if seen and any(not math.isfinite(value) for k in WATCHED if (value := values.get(k)) is not None):
                self.nonfinite = number
            elif seen and self._trigger.quantity == "loss":
                self.spiked = number
            if seen:
                self.until = (step if now is None else now) + self._n_triggered
                told = f"{seen}: the next {self._n_triggered} steps are sampled in full."
        return told
