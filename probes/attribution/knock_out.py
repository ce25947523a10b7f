"""Tell which blocks matter to the loss and which are idle: what it costs to take each out.

Three readings of every branch and block, from cheap to exact. Gradient times activation, to first order, of all branches in one
forward and backward. Knock-out: the loss without what it writes, less the loss. Angular distance between the states before and
after a block: how far it turns the tokens (Gromov et al. 2024, "The Unreasonable Ineffectiveness of the Deeper Layers"; Sun et
al. 2025, "The Curse of Depth in Large Language Models").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from rheoscope.probes.anatomy import Anatomy, Point
from rheoscope.probes.batches import Batch, call
from rheoscope.probes.discovery import discover
from rheoscope.probes.errors import ProbeError
from rheoscope.probes.interventions import changed
from rheoscope.probes.losses import LossFunction
from rheoscope.probes.together import seen_in
from rheoscope.probes.wrappers import bare
from torch import Tensor, nn

from .baselines import mean_state
from .conditions import at_rest, loss_of, widened
from .cost import Meter, OnProgress
from .examples import examples
from .gates import Gate, gated, gates_of
from .parts import block_name, place_row, ranked
from .result import Attribution, Row

Unit = tuple[tuple[int, int], list[int]]  # a block, and which gates are its own
CERTAIN = 3.0  # standard errors over the examples: a rise of the loss by less could be chance
NOT_WORTH = (
    "A knock-out takes one part from a model that was trained with all of them: what it costs is not what a model without it, "
    "trained anew, would lack, and parts that replace each other all look idle."
)


def usefulness(
    model: nn.Module,
    batch: Batch,
    *,
    loss_fn: LossFunction | None = None,
    anatomy: Anatomy | None = None,
    on_progress: OnProgress | None = None,
) -> Attribution:
    """Say which blocks matter to the loss of a batch and which are idle.

    ``ranking`` orders the blocks by how much the loss changes when all that a block writes is taken out, the largest first. Where
    the examples of the batch can be told apart each is asked alone, and the standard error over them says what could be chance.
    The model is left bit-identical.

    Args:
        model: the model.
        batch: the batch, as the training loop passes it.
        loss_fn: ``loss_fn(output, batch)``; by default the output's own loss, or next-token cross-entropy.
        anatomy: what ``discover`` found, to skip discovery.
        on_progress: called with (passes done, passes in all, what it costs).

    Raises:
        ProbeError: no branch's write can be taken out.
        BatchError: the model rejects the batch, or no loss can be made of its output.
        DiscoveryError: the model has no residual stream.
    """
    model = bare(model)
    found = discover(model, batch) if anatomy is None else anatomy
    with at_rest(model):
        wide = widened(batch)
        gates, missing = gates_of(model, wide, found)
        if not gates:
            raise ProbeError(
                "Expected a branch whose write a hook can take out, got none. "
                + " ".join(missing[:2])
                + " Ask for the anatomy's "
                "problems: discover(model, batch).problems."
            )
        units = _units(gates)
        parts: Sequence[Batch] = examples(model, wide) or [wide]
        blind = _blind_point(found)
        n_passes = len(parts) * (5 + len(gates) + len(units)) + 1
        n_bytes = 4 * sum(t.numel() for t in seen_in(model, wide, [p for gate in gates for p in gate.points]).values())
        meter = Meter("usefulness of blocks", n_passes, n_bytes, on_progress)
        readings = [_read(model, part, loss_fn, gates, units, blind, meter) for part in parts]
        turns = meter.run(lambda: _turns(model, wide, found))
    rows, loss = _rows(readings, gates, units, turns)
    return _told(rows, loss, missing, len(readings), meter)


def _read(
    model: nn.Module,
    batch: Batch,
    loss_fn: LossFunction | None,
    gates: Sequence[Gate],
    units: Sequence[Unit],
    blind: Point | None,
    meter: Meter,
) -> Tensor:
    """Return of one example loss and gain, of every branch gradient times activation and knock-out, of every block knock-out."""
    from captum.attr import FeatureAblation, InputXGradient

    of = loss_of(batch, loss_fn)

    def loss(values: Tensor) -> Tensor:
        def run() -> Tensor:
            with gated(model, gates, values[0]):
                return of(call(model, batch)).reshape(1)

        return meter.run(run)

    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    opened = torch.ones(1, len(gates), device=device)
    block_of = torch.tensor([[index for index, (_, members) in enumerate(units) for _ in members]], device=device)
    with torch.enable_grad():
        slopes = InputXGradient(loss).attribute(opened.clone().requires_grad_())[0].detach()
    with torch.no_grad():
        now = loss(opened)
        with nullcontext() if blind is None else changed(model, blind, mean_state):
            gain = loss(opened) - now
        # captum takes the ablated loss from the loss; what a part is worth is the other way round.
        branches = -FeatureAblation(loss).attribute(opened)[0]
        blocks = -FeatureAblation(loss).attribute(opened, feature_mask=block_of)[0]
    firsts = [members[0] for _, members in units]
    return torch.cat([now, gain, slopes, branches, blocks[firsts]]).double().cpu()


def _units(gates: Sequence[Gate]) -> list[Unit]:
    """Return the blocks, each with the numbers of its gates."""
    found: dict[tuple[int, int], list[int]] = {}
    for index, gate in enumerate(gates):
        found.setdefault((gate.branch.stack, gate.branch.block), []).append(index)
    return list(found.items())


def _turns(model: nn.Module, batch: Batch, anatomy: Anatomy) -> dict[tuple[int, int], float]:
    """Return of every block the angle between the states before and after it, over pi, the mean over tokens."""
    ends = {}
    for stack in anatomy.stacks:
        before = stack.start
        for branch, following in zip(stack.branches, [*stack.branches[1:], None], strict=True):
            if following is None or following.block != branch.block:
                ends[stack.index, branch.block] = (before, branch.state)
                before = branch.state
    seen = seen_in(model, batch, {point for pair in ends.values() for point in pair if point is not None})
    found = {}
    for place, (before, after) in ends.items():
        if before in seen and after in seen and seen[before].numel() == seen[after].numel():
            one = seen[before].double().flatten(0, -2)
            cosine = torch.nn.functional.cosine_similarity(one, seen[after].double().reshape(one.shape), dim=-1)
            found[place] = float(cosine.clamp(-1, 1).arccos().mean()) / math.pi
    return found


def _rows(
    readings: Sequence[Tensor], gates: Sequence[Gate], units: Sequence[Unit], turns: dict[tuple[int, int], float]
) -> tuple[list[Row], float]:
    """Return the rows, and the loss."""
    table = torch.stack(list(readings))
    mean = table.mean(0).tolist()
    n = len(table)
    spread = (table.std(0) / n**0.5).tolist() if n > 1 else [None] * table.shape[1]
    places: list[dict[str, Any]] = [{"method": each, **place_row((0, -1, ""))} for each in ("loss", "gain")]
    for method in ("gradient_x_activation", "knock_out"):
        places += [{"method": method, **place_row(gate.branch)} for gate in gates]
    places += [{"method": "block_knock_out", "stack": stack, "block": block} for (stack, block), _ in units]
    rows: list[Row] = [
        {**place, "value": value, "standard_error": error}
        for place, value, error in zip(places, mean, spread, strict=True)
    ]
    rows += [
        {"method": "angular_distance", "stack": stack, "block": block, "value": value}
        for (stack, block), value in turns.items()
    ]
    return rows, mean[0]


def _told(rows: list[Row], loss: float, missing: Sequence[str], n: int, meter: Meter) -> Attribution:
    outs = {(row["stack"], row["block"]): row for row in rows if row["method"] == "block_knock_out"}
    # A block whose absence lowers the loss is not idle either.
    ranking = ranked({place: abs(row["value"]) for place, row in outs.items()})
    gain = next(row for row in rows if row["method"] == "gain")
    useful = [place for place in ranking if _is_certain(outs[place])] if _is_certain(gain) else []
    first, last = ranking[0], ranking[-1]
    told = [
        f"Taking out {block_name(first, ranking)} changes the loss of {loss:.4g} most, by {outs[first]['value']:+.4g}; "
        f"{block_name(last, ranking)} least, by {outs[last]['value']:+.4g}."
    ]
    if n > 1 and not _is_certain(gain):
        told.append(
            "No block is of use on this batch: the loss is not certainly lower than the one of the mean of the model's own "
            f"predictions ({gain['value']:+.4g}, standard error {gain['standard_error']:.2g}); knock-outs then change noise."
        )
    elif n > 1:
        told.append(
            f"{len(useful)} of {len(ranking)} blocks raise it by more than {CERTAIN:g} standard errors over the {n} examples; "
            f"all that the model's predictions gain over their own mean is {gain['value']:.4g}."
        )
    else:
        told.append("The examples of this batch were not told apart: what could be chance is not known.")
    return Attribution("usefulness", tuple(rows), None, None, ranking, (*told, *missing[:3], NOT_WORTH), meter.spent)


def _blind_point(anatomy: Anatomy) -> Point | None:
    """Return where predictions are seen, to put their mean over tokens in their place; else the last state.

    Logits that know nothing of the labels have a loss no lower than that of their mean, because cross-entropy is convex.
    """
    outlet, last = anatomy.stacks[-1].outlet, anatomy.stacks[-1].branches[-1].state
    return last if outlet is None or outlet.logits is None else outlet.logits


def _is_certain(row: Row) -> bool:
    """Return whether the loss is raised by more than chance."""
    error = row.get("standard_error")
    return error is not None and row["value"] > CERTAIN * error
