"""Change one thing at a time in the steps before a spike, and name the smallest change that removes it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.discovery import discover
from rheoscope.probes.losses import LossFunction
from torch import nn

from .bundle import Bundle, KeptStep, bundles_in
from .rerun import Change, End, MakeOptimizer, Rerun

if TYPE_CHECKING:
    import pandas as pd

LEFT = 1 / 3  # of the spike's height: what a change that removes it may leave
ALIKE = 0.02  # of the loss: further apart the steps did not run as they did
N_OTHERS = 3  # batches that are tried in a step's place: one may be ill too
RATE_APART = 2.0  # times the median group's learning rate
SLOWER = 0.1
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Trial:
    """One change that was tried.

    Attributes:
        kind: precision, batch, parameter group, block, clipping or learning rate.
        what: the change, in words.
        rank: of several that remove a spike the lowest is the cause: 0 what leaves the recipe alone, 1 the data of one step, 2 a
            learning rate that stands apart from the others or from what it was, 3 anything else, by size.
        loss: mean loss of the bundle's other batches where the steps end, of the spike's own where those were never high.
        left: share of the spike's height that is left.
        size: distance of the weights from those of the steps as they were, over how far these moved; 0 where none is changed.
        is_removed: whether the spike is gone.
    """

    kind: str
    what: str
    rank: int
    loss: float
    left: float
    size: float
    is_removed: bool


@dataclass(frozen=True)
class Bisection:
    """What was tried on one spike, and what removed it.

    Attributes:
        step: of the spike.
        usual_loss: the median loss before.
        loss: of the spike's step.
        is_reproduced: whether the steps run again gave that loss.
        trials: in the order in which they were tried.
        cause: the smallest change that removes the spike; None where none does, or the spike is not reproduced.
    """

    step: int
    usual_loss: float
    loss: float
    is_reproduced: bool
    trials: tuple[Trial, ...] = field(default=())
    cause: Trial | None = None

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        begin = f"At step {self.step} the loss was {self.loss:.4g}, usually {self.usual_loss:.4g}. "
        if not self.is_reproduced:
            return (
                begin
                + "Run again, the steps before it did not give that loss: no cause is named. Pass the loop's loss as loss_fn."
            )
        if self.cause is None:
            return begin + f"None of {len(self.trials)} changes of the steps before removes the spike."
        others = [trial for trial in self.trials if trial.is_removed and trial is not self.cause]
        also = f" {len(others)} larger changes remove it too." if others else ""
        return begin + f"It is gone with {self.cause.what}; {self.cause.left:.0%} of its height is left.{also}"

    def to_frame(self) -> pd.DataFrame:
        """Return one row a change that was tried: the change, the loss, what is left of the spike, the change's size."""
        import pandas as pd

        columns = ["change", "loss", "left of the spike", "size", "removes it"]
        rows = [(each.what, each.loss, each.left, each.size, each.is_removed) for each in self.trials]
        return pd.DataFrame(rows, columns=columns)


def bisect(
    bundle: Bundle | str | Path,
    model: nn.Module,
    *,
    optimizer: MakeOptimizer | None = None,
    loss_fn: LossFunction | None = None,
    anatomy: Anatomy | None = None,
    on_progress: Progress | None = None,
) -> Bisection:
    """Run the steps before a spike again and again, each time with one thing changed, and name the smallest that removes it.

    Tried are: 32 bits in place of autocast; another batch in a step's place, where that of the step has a loss unlike the
    others', and three in its place each have to remove the spike; the learning rate of the other parameter groups for one that
    stands apart, that of the steps before where all rose; one block that is not updated; gradients clipped to their usual norm;
    every learning rate a tenth. A change that removes the spike is a cause of it in these steps: why the run had come so far is
    another question.

    Args:
        bundle: of the spike, its folder, or the run's, of which the first bundle is taken.
        model: built as for the run, on any device; it is left bit-identical.
        optimizer: makes the optimizer from parameter groups, where it is none of torch.optim's.
        loss_fn: ``loss_fn(output, batch)`` as for ``examine``.
        anatomy: what ``discover`` found on the model; otherwise it is discovered here.
        on_progress: is told how many of how many runs are done, and what is tried.

    Raises:
        RecordingError: there is no bundle, or a damaged one.
        ProbeError: the model is not that of the run.
    """
    if not isinstance(bundle, Bundle):
        folders = bundles_in(bundle)
        bundle = Bundle.load(folders[0] if folders else bundle)
    tell = on_progress or (lambda *_: None)
    rerun = Rerun(model, bundle, optimizer, loss_fn)
    tell(0, 1, "as it was")
    base = rerun.base()
    own = bundle.spike.loss
    is_reproduced = own is not None and _is_alike(own, base.own)
    if not is_reproduced or base.own <= bundle.usual_loss:
        return Bisection(bundle.step, bundle.usual_loss, base.own if own is None else own, is_reproduced=False)
    is_of_update = _left(base.others, base.own, bundle.usual_loss) > LEFT
    judge = _Judge(bundle, base, is_of_update=is_of_update)
    trials = [] if is_of_update else [judge.own_batch()]
    plan = list(_plan(bundle, _parts(model, bundle, anatomy), rerun.ill, is_of_update=is_of_update))
    n_runs, n_done = 1 + sum(len(changes) for *_, changes in plan), 1
    for kind, what, rank, changes in plan:
        ends = []
        for change in changes:
            tell(n_done, n_runs, what)
            ends.append(rerun.run(change))
            n_done += 1
        trials.append(judge.trial(kind, what, rank, ends))
    tell(n_runs, n_runs, "done")
    removing = [trial for trial in trials if trial.is_removed]
    if sum(trial.kind == "block" for trial in removing) > 1:
        # Where each of several blocks would have to be held still, what they share is the cause.
        removing = [trial for trial in removing if trial.kind != "block"] or removing
    cause = min(removing, key=lambda trial: (trial.rank, trial.size), default=None)
    return Bisection(bundle.step, bundle.usual_loss, base.own, is_reproduced, tuple(trials), cause)


def _is_alike(one: float, other: float) -> bool:
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.isfinite(one) == math.isfinite(other)
    return abs(one - other) <= ALIKE * abs(one)


class _Judge:
    """Says what is left of a spike, by the batches that were high."""

    def __init__(self, bundle: Bundle, base: End, *, is_of_update: bool) -> None:
        self._usual, self._base, self._is_of_update = bundle.usual_loss, base, is_of_update
        self._step = bundle.step

    def own_batch(self) -> Trial:
        """Return the trial that was made without a run: all batches but the spike's own are as low as ever."""
        left = _left(self._base.others, self._base.own, self._usual)
        return Trial(
            "batch", f"another batch at step {self._step} itself", 1, self._base.others, left, 0.0, left <= LEFT
        )

    def trial(self, kind: str, what: str, rank: int, ends: list[End]) -> Trial:
        """Return what came of a change: the worst of its runs."""
        losses = [end.others if self._is_of_update else end.own for end in ends]
        high = self._base.others if self._is_of_update else self._base.own
        worst = max(losses, key=lambda loss: math.inf if math.isnan(loss) else loss)
        left = _left(worst, high, self._usual)
        return Trial(kind, what, rank, worst, left, statistics.fmean(map(self._size, ends)), left <= LEFT)

    def _size(self, end: End) -> float:
        squares = (float((w.double() - self._base.weights[n].double()).square().sum()) for n, w in end.weights.items())
        return math.sqrt(sum(squares)) / self._base.moved if self._base.moved > 0 else 0.0


def _left(loss: float, high: float, usual: float) -> float:
    """Return what a loss leaves of a spike's height."""
    if not math.isfinite(loss):
        return math.inf
    # A spike that is not finite is as high as four times the usual loss, so that twice that is no spike.
    height = high - usual if math.isfinite(high) else 3 * abs(usual)
    return max(0.0, (loss - usual) / height)


def _parts(model: nn.Module, bundle: Bundle, anatomy: Anatomy | None) -> dict[str, frozenset[str]]:
    """Return the names of the parameters of every block, and of what is in none."""
    if anatomy is None:
        anatomy = discover(model, bundle.spike.forwards[0].batch)
    found: dict[str, set[str]] = {}
    for branch in anatomy.branches:
        name = f"block {branch.block}" + (f" of stack {branch.stack}" if len(anatomy.stacks) > 1 else "")
        found.setdefault(name, set()).update(branch.parameters)
    rest = {name for name, _ in model.named_parameters()} - set().union(*found.values())
    return {name: frozenset(names) for name, names in (*found.items(), ("embeddings and head", rest)) if names}


Plan = tuple[str, str, int, list[Change]]


def _plan(bundle: Bundle, parts: dict[str, frozenset[str]], ill: set[int], *, is_of_update: bool) -> Iterator[Plan]:
    """Yield what is to be tried: kind, words, and the runs of each, all of which are to remove the spike."""
    if any(forward.autocast for each in bundle.steps for forward in each.forwards):
        yield "precision", "32 bits in place of autocast", 0, [Change(is_float32=True)]
    if not is_of_update:
        return
    others = [each.step for each in bundle.steps if each.step != bundle.step and each.forwards]
    for step in sorted(ill, reverse=True):
        near = sorted((k for k in others if k not in ill), key=lambda k: abs(k - step))[:N_OTHERS]
        if near:
            yield "batch", f"another batch at step {step}", 1, [Change(batches={step: other}) for other in near]
    yield from _odd_groups(bundle)
    yield from _risen_rate(bundle)
    for name, names in parts.items():
        yield "block", f"no update of {name}", 3, [Change(frozen=names)]
    norms = [each.gradient_norm for each in bundle.before if each.gradient_norm is not None]
    if norms and all(math.isfinite(norm) for norm in norms):
        usual = min(norms)
        yield "clipping", f"gradients clipped to {usual:.3g}, the least norm of these steps", 3, [Change(clip=usual)]
    yield "learning rate", f"every learning rate times {SLOWER:g}", 3, [Change(rates={-1: SLOWER})]


def _odd_groups(bundle: Bundle) -> Iterator[Plan]:
    """Yield, for each parameter group whose learning rate stands apart, the steps with that of the others."""
    rates = _rates(bundle.before[-1])
    for number, rate in enumerate(rates):
        rest = [other for k, other in enumerate(rates) if k != number]
        usual = statistics.median(rest) if rest else 0.0
        if usual > 0 and rate > RATE_APART * usual:
            first = bundle.names[number][0] if bundle.names[number] else "no parameter"
            what = f"the learning rate of the other groups, {usual:.3g} in place of {rate:.3g}, for group {number} ({first}, ...)"
            yield "parameter group", what, 2, [Change(rates={number: usual / rate})]


def _rates(step: KeptStep) -> list[float]:
    found = (group.get("lr") for group in step.groups)
    return [float(rate) if isinstance(rate, int | float) else 0.0 for rate in found]


def _risen_rate(bundle: Bundle) -> Iterator[Plan]:
    """Yield the steps with the usual learning rate, or that of the first of them, where every group's rose since."""
    last, first = _rates(bundle.before[-1]), _rates(bundle.before[0])
    for earlier, words in ((bundle.usual_rates, "the usual learning rate"), (first, "the learning rate before")):
        rises = [now / before for before, now in zip(earlier, last, strict=False) if before > 0]
        if rises and min(rises) > RATE_APART:
            what = f"{words}, {max(earlier):.3g} in place of {max(last):.3g}"
            yield "learning rate", what, 2, [Change(rates={-1: 1 / max(rises)})]
            return


__all__ = ["Bisection", "Trial", "bisect"]
