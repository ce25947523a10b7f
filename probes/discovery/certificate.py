"""Certify every add by plain hooks: ``sum = scale * skip operand + write``, each captured on its own.

Each of the three is read off tensors that hooks see, brought into the layout of the add and multiplied by the constants
on its way (routes.py). Up to SAMPLE elements spread over the whole tensor are compared.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial

import torch
from rheoscope.probes.anatomy import Point
from rheoscope.probes.batches import Batch, call
from rheoscope.probes.hooked import Hooked
from rheoscope.probes.wrappers import here
from torch import Tensor, nn

from .dataflow import Add, Dataflow
from .form import Form, form_of
from .layouts import broadcast, positions, sample
from .plan import Plan, Sighting
from .routes import Reading, Route, reading

SAMPLE = 16_384  # elements of each add that are compared


@dataclass(frozen=True)
class Entry:
    """One line of the ledger: how to read its three terms; None for a term that no hook shows."""

    total: tuple[Reading, ...] | None
    skip: tuple[Reading, ...] | None
    write: tuple[Reading, ...] | None

    @property
    def hidden(self) -> list[str]:
        """Names of the terms that no hook shows."""
        terms = (("sum", self.total), ("skip operand", self.skip), ("write", self.write))
        return [name for name, found in terms if found is None]

    @property
    def readings(self) -> list[Reading]:
        """Everything to be read."""
        return [item for found in (self.total, self.skip, self.write) for item in found or ()]


@dataclass(frozen=True)
class Outcome:
    """What the ledger says of one add: its relative error, None where it could not be checked, and the skip's scale."""

    error: float | None
    scale: float = 1.0
    hidden: tuple[str, ...] = ()
    is_trivial: bool = False


def entry(flow: Dataflow, plan: Plan, add: Add, operands: list[int]) -> Entry:
    """Lay out how the add is read at the points of ``plan``.

    Args:
        flow: the graph.
        plan: where values are seen.
        add: the residual add.
        operands: what is added: the branch operand, or those of several adds that were joined.
    """
    made = add.operation
    forms = made.forms
    shape = forms.get(add.result)
    if shape is None or (not shape.strides and shape.shape):
        return Entry(None, None, None)
    indices = sample(shape, SAMPLE)

    def read(value: int, sighting: str, sign: int = 1) -> tuple[Reading, ...] | None:
        form = forms.get(value) or _form(flow, value)
        if form is None or len(form.strides) != len(form.shape) or len(form.shape) > len(shape.shape):
            return None
        wanted = positions(broadcast(form, shape.shape), indices)
        routes = plan.expression(value, through_adds=sighting == "branch")
        return _readings(plan, routes, wanted, sighting, sign)

    total, skip = read(add.result, "state"), read(add.skip, "state")
    writes = [read(operand, "branch", add.sign) for operand in operands]
    write = tuple(item for found in writes for item in found or ()) if None not in writes else None
    return Entry(total, skip, write)


def _form(flow: Dataflow, value: int) -> Form | None:
    made = flow.producer.get(value)
    return made.forms.get(value) if made is not None else None


def _readings(plan: Plan, routes: list[Route], wanted: Tensor, side: str, sign: int) -> tuple[Reading, ...] | None:
    found = []
    for route in routes:
        sighting = plan.state_sighting(route.value) if side == "state" else plan.branch_sighting(route.value)
        item = reading(route, sighting.point, sighting.form, wanted) if sighting is not None else None
        if item is None:
            return None
        found.append(item if sign == 1 else Reading(item.point, item.form, item.positions, item.factor * sign))
    return tuple(found) or None


def captured(model: nn.Module, batch: Batch, entries: list[Entry]) -> dict[int, Tensor]:
    """Return what plain hooks see of each reading in one forward, by the reading's identity: float64, on the CPU.

    Call it inside ``untouched(model, training=False)``.
    """
    wanted: dict[Point, list[Reading]] = defaultdict(list)
    for line in entries:
        for item in line.readings:
            wanted[item.point].append(item)
    seen: dict[int, Tensor] = {}

    def see(point: Point, tensor: Tensor) -> None:
        tensor = here(tensor)
        for item in wanted[point]:
            if form_of(tensor) == item.form:
                seen[id(item)] = _taken(tensor, item)

    hooks = Hooked(model, wanted, lambda point: partial(see, point))
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            call(model, batch)
    finally:
        hooks.remove()
    return seen


def _taken(tensor: Tensor, item: Reading) -> Tensor:
    memory = tensor.detach().as_strided((item.form.span + 1,), (1,), tensor.storage_offset())
    values = memory[item.positions.to(tensor.device)].to("cpu", torch.float64)
    return values * item.factor


def outcome(line: Entry, seen: dict[int, Tensor]) -> Outcome:
    """Return the relative error of one line and the scale of its skip operand.

    The error is None where a term is hidden, was seen in another form, or is not finite.
    """
    total, skip, write = (_summed(found, seen) for found in (line.total, line.skip, line.write))
    hidden = [name for name, found in (("sum", total), ("skip operand", skip), ("write", write)) if found is None]
    if total is None or skip is None or write is None:
        return Outcome(None, hidden=tuple(hidden))
    if not bool(torch.isfinite(total).all()):
        return Outcome(None)
    size = float(total.norm())
    error = float((total - skip - write).norm())
    return Outcome(error / size if size else float(error > 0), is_trivial=not bool(write.any()))


def _summed(found: tuple[Reading, ...] | None, seen: dict[int, Tensor]) -> Tensor | None:
    tensors = [seen.get(id(item)) for item in found or ()]
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present).sum(0) if present and len(present) == len(tensors) else None


__all__ = ["Entry", "Outcome", "Sighting", "captured", "entry", "outcome"]
