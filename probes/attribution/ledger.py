"""Book a change of the loss to the embedding and the branches that write to the stream: their direct paths to the output.

Where no norm stands on the stream the last state is the sum of all writes. It goes in a straight line from what it is on a
baseline to what it is on the batch; the loss changes by the integral of its gradient at the last state times each write's way.
What a branch does by way of later branches is booked to those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rheoscope.probes.anatomy import Anatomy, Branch, Point, Stack
from rheoscope.probes.batches import Arguments, Batch, call
from rheoscope.probes.discovery import discover
from rheoscope.probes.errors import ProbeError
from rheoscope.probes.interventions import changed
from rheoscope.probes.losses import LossFunction
from rheoscope.probes.together import seen_in
from rheoscope.probes.wrappers import bare
from torch import Tensor, nn

from .baselines import MEAN, without_content
from .conditions import LossOf, at_rest, loss_of, widened
from .cost import Meter, OnProgress
from .cuts import N_POINTS, cut_totals, cuts_of
from .parts import block_name, place_row, ranked
from .path_integral import LIMIT, SECONDS, Integral, integral, n_passes
from .result import Attribution, Row

IDENTITY = 1e-3  # of the last state's way: what the writes may miss of it
SAME = 1e-3  # of the change of the loss: what the last state alone may miss of the baseline's loss
NOT_CAUSE = (
    "This is bookkeeping of direct paths, not causality: what a branch does by way of later branches is booked to those, and a "
    "write that the final norm shrinks is booked for that too."
)


@dataclass(frozen=True)
class _Entry:
    """One line of the ledger: its place, and how far its write goes from the baseline to the batch."""

    row: Mapping[str, Any]
    way: Tensor


def output_ledger(
    model: nn.Module,
    batch: Batch,
    baseline: Batch | None = None,
    *,
    loss_fn: LossFunction | None = None,
    anatomy: Anatomy | None = None,
    n_points: int | None = None,
    on_progress: OnProgress | None = None,
    seconds: float = SECONDS,
) -> Attribution:
    """Say what the embedding and each branch contribute to the loss of a batch, beside a baseline.

    Rows of method ``ledger`` add up to ``total``, the loss on the batch less that on the baseline, up to ``error``; above 5 % no
    block is named. Rows of method ``cut_total`` are captum's totals at cuts through the stream: each is the same change, found on
    another way. Where a norm stands on the stream (post-norm), or the skip is gated, the last state is no sum of the writes:
    there are only cut totals, and a sentence says so.

    Args:
        model: the model; it is left bit-identical.
        batch: the batch, as the training loop passes it.
        baseline: a batch of the same shapes; only its states are used, never its labels. None for the batch itself with every
            token's first state replaced by the mean of all.
        loss_fn: ``loss_fn(output, batch)``: anything that is to be decomposed, a logit for instance; by default the loss.
        anatomy: what ``discover`` found, to skip discovery.
        n_points: of the integral; None for 16, and up to 64 where the error is above 1 %.
        on_progress: called with (passes done, passes in all, what it costs).
        seconds: what points beyond the first 16, and cuts beyond the first, may cost.

    Raises:
        ProbeError: the stream's last or first state is not seen.
        BatchError: the model rejects a batch, or no loss can be made of its output.
        DiscoveryError: the model has no residual stream.
    """
    model = bare(model)
    found = discover(model, batch) if anatomy is None else anatomy
    stack = found.stacks[-1]
    last = stack.branches[-1].state
    if last is None or stack.start is None:
        raise ProbeError(
            "Expected a stream whose first and last state a hook sees, got one without. Ask for the anatomy's problems: "
            "discover(model, batch).problems."
        )
    with at_rest(model):
        wide = widened(batch)
        other = None if baseline is None else widened(baseline)
        of = loss_of(wide, loss_fn)
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        ends = _Ends(model, wide, other, found, of)
        why = _inapplicable(stack)
        entries, why = ([], why) if why else _entries(ends, stack, last)
        cuts = cuts_of(stack, 2 if entries else 3)
        n_bytes = 4 * sum(entry.way.numel() for entry in entries)
        n_expected = len(cuts) * (N_POINTS + 2) + (n_passes(n_points) if entries else 2)
        meter = Meter("ledger of the output", n_expected, n_bytes, on_progress)
        whole = None
        if entries:
            function = partial(_at, model, wide, of, last, ends.baseline[last], entries)
            whole = integral(function, len(entries), meter, n_points=n_points, device=device, seconds=seconds)
            why = ends.missed(whole)
        total = whole.total if whole is not None else ends.total(last)
        totals = cut_totals(model, cuts, ends.loss, meter, device, seconds)
    booked = [
        (entry.row, value) for entry, value in zip(entries, [] if whole is None else whole.values.tolist(), strict=True)
    ]
    return _told(
        [] if why else booked, whole, why, total, totals, stack, MEAN if baseline is None else "the batch given", meter
    )


class _Ends:
    """The two ends of the way: the model on the batch, and on the baseline."""

    def __init__(
        self, model: nn.Module, batch: Arguments, other: Arguments | None, anatomy: Anatomy, of: LossOf
    ) -> None:
        """Run both, and keep what is seen of states and writes."""
        self._model, self._batch, self._other, self._anatomy, self._of = model, batch, other, anatomy, of
        points = {p for s in anatomy.stacks for b in s.branches for p in (b.state, b.write, *b.terms) if p is not None}
        points |= {stack.start for stack in anatomy.stacks if stack.start is not None}
        self.batch = seen_in(model, batch, points)
        if other is not None:
            self.baseline = seen_in(model, other, points)
        else:
            # Changed before it is looked at: state 0 is seen as the mean that it was replaced by.
            with without_content(model, anatomy):
                self.baseline = seen_in(model, batch, points)

    def loss(self, is_batch: bool) -> Tensor:
        """Return the loss of the batch, or of the baseline."""
        if is_batch or self._other is not None:
            return self._of(call(self._model, self._batch if is_batch or self._other is None else self._other))
        with without_content(self._model, self._anatomy):
            return self._of(call(self._model, self._batch))

    def total(self, last: Point) -> float:
        """Return by how much the loss of the batch differs from the one that it has with the last state of the baseline."""
        with torch.no_grad(), changed(self._model, last, lambda tensor: self.baseline[last].reshape(tensor.shape)):
            closed = float(self._of(call(self._model, self._batch)))
        with torch.no_grad():
            return float(self.loss(True)) - closed

    def missed(self, whole: Integral) -> str:
        """Return why the last state does not stand for all that the loss knows; "" where it does, or a batch was given."""
        if self._other is not None:
            return ""
        with torch.no_grad():
            direct = float(self.loss(False))
        is_all = abs(direct - whole.closed) <= SAME * abs(whole.total) + 1e-6 * abs(direct)
        return "" if is_all else "the loss does not see the batch through the last state alone"


def _inapplicable(stack: Stack) -> str:
    """Return why the last state is no sum of the writes; "" where it is."""
    if any(branch.sum is not None for branch in stack.branches):
        return "norms stand on the stream (post-norm), so that the last state is not the sum of the writes"
    if any(branch.is_gated_skip for branch in stack.branches):
        return "the skip path is gated"
    return "it carries several streams" if stack.n_streams > 1 else ""


def _entries(ends: _Ends, stack: Stack, last: Point) -> tuple[list[_Entry], str]:
    """Return the lines of the ledger, or why there are none: what they add up to must be the way of the last state."""
    assert stack.start is not None

    def way(point: Point | None) -> Tensor | None:
        one, other = ends.batch.get(point), ends.baseline.get(point)  # type: ignore[arg-type]
        return None if one is None or other is None or one.shape != other.shape else one.double() - other.double()

    goal, start = way(last), way(stack.start)
    if goal is None or start is None:
        return [], "the baseline's states have other shapes than the batch's"
    entries: list[_Entry] = []
    below: Tensor | None = start
    for branch in stack.branches:
        entries = [_Entry(entry.row, entry.way * branch.scale) for entry in entries]
        terms = [way(term) for term in branch.terms] if len(branch.terms) > 1 else []
        state, write = way(branch.state), way(branch.write)
        if terms and all(term is not None for term in terms):
            entries += [
                _Entry(_term_row(branch, at), term)
                for at, term in zip(branch.terms, terms, strict=True)
                if term is not None
            ]
        elif write is not None:
            entries.append(_Entry(place_row(branch), write))
        elif state is not None and below is not None:
            entries.append(_Entry(place_row(branch), state - branch.scale * below.reshape(state.shape)))
        else:
            return [], f"no hook sees what the {branch.kind} branch of block {branch.block} writes"
        start, below = start * branch.scale, state
    first = {"stack": stack.index, "block": -1, "branch": "embedding", "depth": 0}
    entries = [_Entry(each.row, each.way.reshape(goal.shape)) for each in (_Entry(first, start), *entries)]
    off = float((sum((entry.way for entry in entries), -goal)).norm())
    if off > IDENTITY * float(goal.norm()):
        return [], f"the writes seen miss the last state by {off / float(goal.norm()):.1%}"
    return [_Entry(entry.row, entry.way.to(ends.baseline[last].dtype)) for entry in entries], ""


def _term_row(branch: Branch, at: Point) -> dict[str, Any]:
    """Return the place of one term of a branch that adds several: the MLP's is the one that holds the hidden layer."""
    hidden = None if branch.hidden is None else branch.hidden.point
    kind = branch.kind
    if hidden is not None and len(branch.terms) == 2:
        kind = "mlp" if _lies_in(hidden.module_path, at, branch.terms) else "attention"
    return {**place_row(branch), "branch": kind, "module_path": at.module_path}


def _lies_in(path: str, at: Point, terms: tuple[Point, ...]) -> bool:
    """Return whether ``path`` shares more of its beginning with one term's module than with any other's."""
    shares = {term: _shared(path, term.module_path) for term in terms}
    return shares[at] == max(shares.values())


def _shared(one: str, other: str) -> int:
    pairs = zip(one.split("."), other.split("."), strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(one.count("."), other.count(".")) + 1)


def _at(
    model: nn.Module, batch: Batch, of: LossOf, last: Point, base: Tensor, entries: list[_Entry], gates: Tensor
) -> Tensor:
    """Return the loss with the last state so far on its way."""
    state = base
    for entry, gate in zip(entries, gates, strict=True):
        state = state + gate.to(entry.way.dtype) * entry.way
    with changed(model, last, lambda tensor: state.reshape(tensor.shape)):
        return of(call(model, batch))


def _told(
    booked: list[tuple[Mapping[str, Any], float]],
    whole: Integral | None,
    why: str,
    total: float,
    totals: Mapping[int, float],
    stack: Stack,
    baseline: str,
    meter: Meter,
) -> Attribution:
    error = whole.error if booked and whole is not None else None
    shared = {"total": total, "error": error, "note": f"baseline: {baseline}"}
    rows: list[Row] = [{"method": "ledger", **row, "value": value, **shared} for row, value in booked]
    at = {branch.depth: place_row(branch) for branch in stack.branches}
    start = {"stack": stack.index, "block": -1, "branch": "embedding", "depth": 0}
    for depth, value in totals.items():
        off = abs(value - total) / abs(total) if total else None
        rows.append(
            {
                "method": "cut_total",
                **at.get(depth, start),
                "value": value,
                "total": total,
                "error": off,
                "note": shared["note"],
            }
        )
    blocks: dict[tuple[int, int], float] = {}
    for row, value in booked:
        blocks[row["stack"], row["block"]] = blocks.get((row["stack"], row["block"]), 0.0) + value
    sound = bool(booked) and whole is not None and whole.is_sound
    ranking = ranked(blocks, 1.0 if total >= 0 else -1.0) if sound else ()
    told = [f"On the batch the loss differs from that on the baseline ({baseline}) by {total:+.4g}."]
    if ranking and whole is not None:
        first = ranking[0]
        told.append(
            f"The largest part of that is booked to {block_name(first, ranking)}: {blocks[first]:+.4g} (the values add up to "
            f"within {whole.error:.2%}, {whole.n_points} points)."
        )
    elif booked and whole is not None:
        told.append(
            f"No block is named: the values miss the change by {whole.error:.1%} of it, above {LIMIT:.0%}. Pass more n_points."
        )
    else:
        told.append(f"The ledger by branch does not apply: {why}.")
    if totals:
        worst = max(abs(value - total) for value in totals.values())
        told.append(
            f"captum's integrated gradients at {len(totals)} cuts through the stream give the same change up to "
            f"{worst / abs(total) if total else worst:.2%}; that they agree is forced, and ranks nothing."
        )
    return Attribution("ledger", tuple(rows), total, error, ranking, (*told, NOT_CAUSE), meter.spent)
