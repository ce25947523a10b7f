"""Train variants of one model from fresh weights, each at its own best learning rate, and say what that tells."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from rheoscope.probes.batches import Batch
from rheoscope.probes.errors import LabError
from rheoscope.probes.losses import LossFunction
from rheoscope.probes.recording import Recording
from torch import nn

from .intervals import over_seeds
from .short_run import MakeOptimizer, short_run

Build = Callable[[int], nn.Module]  # of a seed
OnProgress = Callable[[int, int, str], None]

RECORDED = 20  # steps of a run that are recorded
TAIL = 0.1  # of a run's steps, whose mean loss is its last loss


@dataclass(frozen=True)
class Training:
    """How every copy is trained.

    Attributes:
        batches: what the steps are made on, again from the first where they run out.
        n_steps: optimizer steps.
        rates: learning rates that are tried, in ascending order.
        seeds: of the weights; the first also chooses the learning rate.
        loss_fn: ``loss_fn(output, batch)`` returns a scalar; None as for ``examine``.
        make_optimizer: returns the optimizer of a model and a learning rate.
    """

    batches: Sequence[Batch]
    n_steps: int
    rates: Sequence[float]
    seeds: Sequence[int]
    loss_fn: LossFunction | None
    make_optimizer: MakeOptimizer

    def __post_init__(self) -> None:
        """Check what would fail later, in the middle of the work."""
        if self.n_steps < 1 or not self.rates or not self.seeds or not all(rate > 0 for rate in self.rates):
            raise LabError(
                f"Expected n_steps >= 0, learning rates > 0 and at least one seed, got {self.n_steps}, {list(self.rates)} and "
                f"{list(self.seeds)}. Pass n_steps=0 to train nothing."
            )
        if not self.batches:
            raise LabError("Expected batches to train on, got none. Pass an iterable of what the model is called with.")

    @property
    def n_runs(self) -> int:
        """How many runs a variant takes."""
        return len(self.rates) + len(self.seeds)

    def run(self, model: nn.Module, rate: float, seed: int, every: int = 0) -> tuple[float, Recording | None]:
        """Train ``model`` itself; return its last loss, infinite where it diverged, and the recording."""
        torch.manual_seed(seed)
        losses, recording = short_run(
            model,
            self._stream(),
            n_steps=self.n_steps,
            lr=rate,
            loss_fn=self.loss_fn,
            make_optimizer=self.make_optimizer,
            warm_up=max(1, self.n_steps // 10),
            every=every,
        )
        tail = losses[-max(1, round(TAIL * self.n_steps)) :]
        last = math.fsum(tail) / len(tail)
        return last if math.isfinite(last) else math.inf, recording

    def _stream(self) -> Iterator[Batch]:
        return islice(cycle(self.batches), self.n_steps)


@dataclass(frozen=True)
class Retrained:
    """What came of one variant.

    Attributes:
        rate: its best learning rate.
        last: last loss at that rate, one a seed; infinite where it diverged.
        by_rate: learning rate -> last loss of the first seed.
        recording: of the first seed's run at the best rate.
    """

    rate: float
    last: tuple[float, ...]
    by_rate: Mapping[float, float]
    recording: Recording


def retrained(builds: Mapping[str, Build], training: Training, on_progress: OnProgress | None) -> dict[str, Retrained]:
    """Train every variant: at all learning rates with the first seed, at the best one with the others, and once more recorded."""
    found, done, total = {}, 0, len(builds) * training.n_runs

    def step(text: str) -> None:
        nonlocal done
        if on_progress:
            on_progress(done, total, text)
        done += 1

    for label, build in builds.items():
        first, others = training.seeds[0], training.seeds[1:]
        by_rate = {}
        for rate in training.rates:
            step(f"{label}: learning rate {rate:g}")
            by_rate[rate] = training.run(build(first), rate, first)[0]
        best = min(by_rate, key=lambda rate: (by_rate[rate], rate))
        last = [by_rate[best]]
        for seed in others:
            step(f"{label}: seed {seed}")
            last.append(training.run(build(seed), best, seed)[0])
        step(f"{label}: recorded")
        recording = training.run(build(first), best, first, max(1, training.n_steps // RECORDED))[1]
        assert recording is not None
        found[label] = Retrained(best, tuple(last), by_rate, recording)
    return found


def told(found: Mapping[str, Retrained], training: Training) -> list[str]:
    """Return what the runs say of the two variants, in sentences: each by itself, then one against the other."""
    sentences = [_of_one(label, each, training) for label, each in found.items()]
    was, now = found.values()
    gaps = [b - a for a, b in zip(was.last, now.last, strict=True)]
    if any(not math.isfinite(gap) for gap in gaps):
        return sentences
    gap = over_seeds(gaps)
    if gap.n == 1:
        verdict = "one seed does not tell it from chance"
    elif gap.low <= 0 <= gap.high:
        verdict = "not settled: the interval holds 0"
    else:
        verdict = f"the changed model ends {'higher' if gap.mean > 0 else 'lower'} on this data at this size"
    sentences.append(
        f"Last loss of the retrained copies, changed less as it is, from the same fresh weights: {gap}; {verdict}."
    )
    return sentences


def _of_one(label: str, found: Retrained, training: Training) -> str:
    n_diverged = sum(not math.isfinite(loss) for loss in found.by_rate.values())
    diverged = f", {n_diverged} of {len(found.by_rate)} rates diverged" if n_diverged else ""
    if not math.isfinite(found.by_rate[found.rate]):
        return f"Retrained, {label}: diverged at every learning rate tried ({_listed(training.rates)})."
    lost = sum(not math.isfinite(loss) for loss in found.last)
    failing = f", {lost} of {len(found.last)} seeds diverged there" if lost else ""
    is_end = len(training.rates) > 1 and found.rate in (min(training.rates), max(training.rates))
    end = ", at the end of those tried: a better one may lie beyond" if is_end else ""
    return (
        f"Retrained, {label}: last loss {over_seeds(found.last)} at its best learning rate {found.rate:g} of "
        f"{_listed(training.rates)}{end}{diverged}{failing}."
    )


def _listed(rates: Iterable[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)
