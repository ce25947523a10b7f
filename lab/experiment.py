"""What an experiment is: a question, a way to answer it, and the published answer to hold it against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from rheoscope.diagnostics.comparison import Comparison
from rheoscope.diagnostics.study import AGREES, DIFFERS, UNSETTLED, Study

from .intervals import Interval

OnProgress = Callable[[int, int, str], None]
_OF_RUNS = ("n_seeds", "cpu_seconds", "failed")


@dataclass(frozen=True)
class Setting:
    """How an experiment is carried out.

    Attributes:
        folder: where runs and recordings are written; one that was used before is gone on with.
        is_quick: one size smaller, fewer seeds and learning rates: for a look, and for checking that all works.
        seeds: of the weights and the batches.
        executor: of the training runs; None for a process a core.
        on_progress: called with (parts done, parts in all, what is next).
    """

    folder: Path
    is_quick: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)
    executor: Executor | None = None
    on_progress: OnProgress | None = None

    @property
    def seeds_at_init(self) -> tuple[int, ...]:
        """Seeds of what trains nothing: cheap, and so at least five."""
        return tuple(range(max(5, len(self.seeds))))

    def report(self, done: int, total: int, text: str) -> None:
        """Tell how far the experiment is, where somebody listens."""
        if self.on_progress:
            self.on_progress(done, total, text)


@dataclass(frozen=True)
class Claim:
    """One figure, measured here, beside the published one.

    Attributes:
        what: is measured, with its unit.
        measured: over seeds.
        published: the figure or the law, in words.
        source: where it is published, with equation, figure or section.
        agrees: the range in which the mean must lie; infinite where one side alone is claimed. None where this scale is known
            not to settle it.
    """

    what: str
    measured: Interval
    published: str
    source: str
    agrees: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """Whether the measurement agrees; an interval on both sides of the range's end settles nothing."""
        if self.agrees is None or not self.measured.n:
            return UNSETTLED
        low, high = self.agrees
        if low <= self.measured.low and self.measured.high <= high:
            return AGREES
        if self.measured.high < low or self.measured.low > high:
            return DIFFERS
        return UNSETTLED


@dataclass(frozen=True)
class Result:
    """What an experiment gave.

    Attributes:
        claims: measured beside published.
        variants: one row a variant, with what was measured of it; intervals as text, and plain numbers beside them.
        curves: tidy columns ``chart``, ``series``, ``x``, ``y``, ``low``, ``high``: what is drawn, one chart a value of
            ``chart``, which says what it shows: "vertical axis against horizontal axis".
        comparison: the recordings of the variants, where there are any.
        notes: what does not reproduce at this scale, and what was not measured, in sentences.
    """

    claims: tuple[Claim, ...]
    variants: pd.DataFrame
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()

    def claims_frame(self) -> pd.DataFrame:
        """Return one row a claim: what, measured, published, source, verdict."""
        rows = [(c.what, str(c.measured), c.published, c.source, c.verdict) for c in self.claims]
        return pd.DataFrame(rows, columns=["what", "measured", "published", "source", "verdict"])

    def shown_variants(self) -> pd.DataFrame:
        """Return the variants as a person reads them: without numbers that stand beside as text, and failures where none is."""
        frame = self.variants
        numbers = [name for name in frame.columns if name.endswith(("_mean", "_low", "_high")) or name in _OF_RUNS]
        return frame.drop(columns=[name for name in numbers if name != "failed" or not frame[name].any()])


@dataclass(frozen=True)
class Experiment:
    """One experiment of the lab.

    Attributes:
        name: by which it is called.
        question: that it answers, in one sentence.
        source: the paper that it is held against.
        minutes: it takes on two cores, at its full size and quick.
        carry_out: does it.
    """

    name: str
    question: str
    source: str
    minutes: tuple[float, float]
    carry_out: Callable[[Setting], Result]

    def study(self, setting: Setting) -> Study:
        """Carry it out, and return what a report shows of it."""
        result = self.carry_out(setting)
        how = [
            ("size", "quick" if setting.is_quick else "full"),
            ("seeds of training runs", ", ".join(map(str, setting.seeds))),
            ("published by", self.source),
            ("text", "bytes of the standard library's source, or tokens drawn by a rule; no network"),
            ("torch", torch.__version__),
        ]
        return Study(
            self.name,
            self.question,
            self.source,
            result.claims_frame(),
            result.shown_variants(),
            result.curves,
            result.notes,
            how,
            setting.is_quick,
        )


def at_least(value: float) -> tuple[float, float]:
    """Return the range of a claim that something is not below ``value``."""
    return value, math.inf


def at_most(value: float) -> tuple[float, float]:
    """Return the range of a claim that something is not above ``value``."""
    return -math.inf, value


def within(value: float, share: float) -> tuple[float, float]:
    """Return the range of a claim that something is ``value`` to a share of it."""
    return value - share * abs(value), value + share * abs(value)


def curve(chart: str, series: str, points: Sequence[tuple[float, Interval]]) -> pd.DataFrame:
    """Return rows of ``Result.curves``: one line of a chart."""
    rows = [(chart, series, x, each.mean, each.low, each.high) for x, each in points]
    return pd.DataFrame(rows, columns=["chart", "series", "x", "y", "low", "high"])


@contextmanager
def steps_of(setting: Setting, total: int) -> Iterator[Callable[[str], None]]:
    """Give a function to be called at the beginning of each of ``total`` parts with what it does."""
    done = 0

    def begin(text: str) -> None:
        nonlocal done
        setting.report(done, total, text)
        done += 1

    yield begin
    setting.report(total, total, "done")
