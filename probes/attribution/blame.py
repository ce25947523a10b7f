"""Name the blocks whose update changed the loss: integrated gradients in the space of the weights, between two steps.

Along the straight line from the old weights to the new ones the loss changes by the integral of gradient times way; each
parameter has its share of it (Lan et al. 2019, "LCA: Loss Change Allocation for Neural Network Training"). One gate a parameter:
``weight = old + gate * (new - old)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.batches import Batch, call
from rheoscope.probes.discovery import discover
from rheoscope.probes.errors import ProbeError
from rheoscope.probes.losses import LossFunction
from rheoscope.probes.wrappers import bare, own_name
from torch import Tensor, nn

from .conditions import at_rest, loss_of, wide, widened
from .cost import Meter, OnProgress
from .memory import free_bytes
from .parts import Place, block_name, depths_of, parameter_parts, place_row, ranked
from .path_integral import LIMIT, SECONDS, Integral, integral, n_passes
from .result import Attribution
from .weights import WithWeights

Weights = Mapping[str, Tensor]
TOP = 3  # blocks looked at where memory is short
ROOM = 1.5  # times what is needed must be free
NOT_CAUSE = (
    "This is bookkeeping along the straight line between the two sets of weights, not causality: blocks that work together share "
    "what they do."
)


@dataclass(frozen=True)
class _Move:
    """How one parameter moved: its name in the model, its place, and where it came from and went to."""

    name: str
    place: Place
    before: Tensor
    after: Tensor

    @property
    def size(self) -> float:
        """How far it moved, beside its own size."""
        way = float((self.after.float() - self.before.float()).norm())
        return way / max(float(self.before.float().norm()), 1e-12)


def attribute_update(
    model: nn.Module,
    batch: Batch,
    before: Weights | nn.Module,
    after: Weights | nn.Module | None = None,
    *,
    previous_batch: Batch | None = None,
    loss_fn: LossFunction | None = None,
    anatomy: Anatomy | None = None,
    n_points: int | None = None,
    top: int | None = None,
    step: int | None = None,
    on_progress: OnProgress | None = None,
    seconds: float = SECONDS,
) -> Attribution:
    """Say which blocks' update changed the loss of a batch, and by how much.

    The loss of one fixed batch is taken from the old weights to the new ones in a straight line. What the values of the parts add
    up to is the change of that loss, up to ``error``; above 5 % no block is named. The model is left bit-identical.

    Args:
        model: the model; where ``after`` is not given its weights are those after the update.
        batch: the batch whose loss changed, as the training loop passes it.
        before: the weights before the update, by name, or a model that holds them.
        after: the weights after it.
        previous_batch: the batch of the step before: what the loss changes by going from it to ``batch``, at the old weights, is
            kept apart, as method ``batch``.
        loss_fn: ``loss_fn(output, batch)``; by default the output's own loss, or next-token cross-entropy.
        anatomy: what ``discover`` found, to skip discovery.
        n_points: of the integral; None for 16, and up to 64 where the error is above 1 %.
        top: look at so many blocks alone, those that moved furthest beside their size, and take the others together, by
            difference: a smaller copy of the weights. None for all; or for 3, where memory is short.
        step: of which training step, for the rows.
        on_progress: called with (passes done, passes in all, what it costs).
        seconds: what points beyond the first 16 may cost.

    Raises:
        ProbeError: the weights do not fit the model, or none of them moved.
        BatchError: the model rejects the batch, or no loss can be made of its output.
        DiscoveryError: the model has no residual stream.
    """
    model = bare(model)
    return update_between(
        model,
        [batch],
        before,
        model if after is None else after,
        previous=[] if previous_batch is None else [previous_batch],
        loss_fn=loss_fn,
        anatomy=discover(model, batch) if anatomy is None else anatomy,
        n_points=n_points,
        top=top,
        step=step,
        on_progress=on_progress,
        seconds=seconds,
    )


def update_between(
    model: nn.Module,
    batches: Sequence[Batch],
    before: Weights | nn.Module,
    after: Weights | nn.Module,
    *,
    previous: Sequence[Batch],
    anatomy: Anatomy,
    loss_fn: LossFunction | None = None,
    n_points: int | None = None,
    top: int | None = None,
    step: int | None = None,
    on_progress: OnProgress | None = None,
    seconds: float = SECONDS,
) -> Attribution:
    """Do what ``attribute_update`` does, for the mean loss of several micro-batches."""
    moves = _moves(model, anatomy, _named(before), _named(after))
    device = moves[0].after.device
    if top is None and _is_short(moves, device):
        top = TOP
    chosen, others = _chosen(moves, top)
    n_bytes = 4 * sum(move.after.numel() for move in chosen)
    n_extra = bool(previous) + bool(others)
    meter = Meter("attribution of an update", n_passes(n_points) + n_extra, n_bytes, on_progress)
    with at_rest(model):
        held = {move.name: wide(move.after) for move in moves}
        old = {move.name: wide(move.before) for move in moves}
        loss = _Loss(model, batches, loss_fn, chosen, held)
        whole = integral(loss, len(chosen), meter, n_points=n_points, device=device, seconds=seconds)
        with torch.no_grad():
            start = meter.run(lambda: float(loss.at(old))) if others else whole.closed
            other = _Loss(model, previous, loss_fn, [], {})
            switched = start - meter.run(lambda: float(other.at(old))) if previous else None
    return _told(whole, chosen, others, start, switched, step, depths_of(anatomy), meter)


class _Loss:
    """The mean loss of batches as a function of the gates of the moves."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        loss_fn: LossFunction | None,
        moves: list[_Move],
        held: dict[str, Tensor],
    ) -> None:
        self._model, self._moves, self._held = model, moves, held
        self._batches = [(each, loss_of(each, loss_fn)) for each in map(widened, batches)]

    def __call__(self, gates: Tensor) -> Tensor:
        """Return the loss with each weight so far on its way."""
        moved = {
            move.name: torch.lerp(wide(move.before), wide(move.after), gate.to(wide(move.after).dtype))
            for move, gate in zip(self._moves, gates, strict=True)
        }
        return self.at(self._held | moved)

    def at(self, weights: dict[str, Tensor]) -> Tensor:
        """Return the loss at these weights."""
        model = WithWeights(self._model, weights)
        return torch.stack([of(call(model, batch)) for batch, of in self._batches]).mean()


def _named(weights: Weights | nn.Module) -> dict[str, Tensor]:
    pairs = bare(weights).named_parameters() if isinstance(weights, nn.Module) else weights.items()
    return {own_name(name): value for name, value in pairs if isinstance(value, Tensor)}


def _moves(model: nn.Module, anatomy: Anatomy, before: dict[str, Tensor], after: dict[str, Tensor]) -> list[_Move]:
    """Return every parameter that moved.

    Raises:
        ProbeError: a weight is missing or of another shape, or none moved.
    """
    parts = parameter_parts(anatomy, [own_name(name) for name, _ in model.named_parameters()])
    moves = []
    for name, parameter in model.named_parameters():
        own = own_name(name)
        for words, weights in (("before", before), ("after", after)):
            shape = tuple(weights[own].shape) if own in weights else "nothing"
            if shape != tuple(parameter.shape):
                raise ProbeError(
                    f"Expected {words} to hold {own!r:.100} of shape {tuple(parameter.shape)}, got {shape}. Pass the "
                    "state_dict() of the same model, or the model itself."
                )
        old, new = (weights[own].detach().to(parameter.device) for weights in (before, after))
        if parameter.is_floating_point() and not torch.equal(old, new):
            moves.append(_Move(name, parts[own], old, new))
    if not moves:
        raise ProbeError(
            "Expected weights before and after an update, got two sets that are the same. Copy the weights before "
            "optimizer.step(): {name: p.detach().clone() for name, p in model.named_parameters()}."
        )
    return moves


def _is_short(moves: list[_Move], device: torch.device) -> bool:
    free = free_bytes(device)
    return free is not None and free < ROOM * 4 * sum(move.after.numel() for move in moves)


def _chosen(moves: list[_Move], top: int | None) -> tuple[list[_Move], list[_Move]]:
    """Return the moves to look at one by one, and those that are taken together."""
    if top is None:
        return moves, []
    furthest: dict[tuple[int, int], float] = {}
    for move in moves:
        place = move.place[:2]
        furthest[place] = max(furthest.get(place, 0.0), move.size)
    kept = set(sorted(furthest, key=lambda place: -furthest[place])[: max(top, 1)])
    return [m for m in moves if m.place[:2] in kept], [m for m in moves if m.place[:2] not in kept]


def _told(
    whole: Integral,
    chosen: list[_Move],
    others: list[_Move],
    start: float,
    switched: float | None,
    step: int | None,
    depths: Mapping[Place, int],
    meter: Meter,
) -> Attribution:
    total, error = whole.opened - start, whole.error
    by_place: dict[Place, float] = {}
    for move, value in zip(chosen, whole.values.tolist(), strict=True):
        by_place[move.place] = by_place.get(move.place, 0.0) + value
    shared = {"step": step, "total": total, "error": error}
    rows: list[dict[str, Any]] = [
        {"method": "update", **place_row(place), "depth": depths.get(place), "value": value, **shared}
        for place, value in by_place.items()
    ]
    if others:
        # By difference: what the others did before those looked at moved.
        rows.append({"method": "update", **place_row((0, -1, "others")), "value": whole.closed - start, **shared})
    rows.append({"method": "loss_after", **place_row((0, -1, "")), "value": whole.opened, "step": step})
    if switched is not None:
        rows.append({"method": "batch", **place_row((0, -1, "")), "value": switched, "step": step})
    blocks: dict[tuple[int, int], float] = {}
    for (stack, block, _), value in by_place.items():
        blocks[stack, block] = blocks.get((stack, block), 0.0) + value
    ranking = ranked(blocks, 1.0 if total >= 0 else -1.0) if whole.is_sound else ()
    sentences = _sentences(whole, total, blocks, ranking, switched)
    if others:
        n = len({move.place[:2] for move in chosen})
        sentences.append(
            f"Looked at one by one: what moved furthest beside its size, {n} of the model's parts. The others are taken "
            "together, by difference."
        )
    return Attribution("update", tuple(rows), total, error, ranking, tuple(sentences), meter.spent)


def _sentences(
    whole: Integral,
    total: float,
    blocks: dict[tuple[int, int], float],
    ranking: tuple[tuple[int, int], ...],
    switched: float | None,
) -> list[str]:
    verb = "raised" if total > 0 else "lowered"
    told = [f"The update {verb} the loss of this batch by {abs(total):.4g}."]
    if ranking:
        first = ranking[0]
        told.append(
            f"The largest part of that is booked to {block_name(first, ranking)}: {blocks[first]:+.4g} (the values add up to "
            f"within {whole.error:.2%}, {whole.n_points} points)."
        )
    elif whole.is_sound:
        told.append("No block of its own moved: what did is the embedding, the head, or shared by all blocks.")
    else:
        told.append(
            f"No block is named: the values miss the change by {whole.error:.1%} of it, above {LIMIT:.0%}, with {whole.n_points} "
            "points. Pass more n_points, or steps that are closer together."
        )
    if switched is not None:
        told.append(f"Going from the batch before to this one, at the old weights, changed the loss by {switched:.4g}.")
    return [*told, NOT_CAUSE]
