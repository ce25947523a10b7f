"""Write a value as a sum of tensors that plain hooks see, each with a layout and a constant factor.

A value may be hidden itself and yet be known: a hook sees it in another layout, or before it is scaled by a constant,
or sees the terms that it is the sum of. A *route* leads from the value to one such tensor; all routes of a value
together are its *expression*. Nothing is ever found by subtracting what is to be proven.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rheoscope.probes.anatomy import Point
from torch import Tensor

from .dataflow import Dataflow
from .form import Form
from .layouts import NOWHERE, broadcast, indices_at, moved_back, moved_on, positions
from .recorder import Operation
from .vocabulary import ADDS, QUOTIENTS, SUBTRACTIONS

DEEPEST = 12  # steps from a value to what is seen of it
MOST_TERMS = 16


@dataclass(frozen=True)
class Step:
    """One operation on a route.

    Attributes:
        operation: that was made by it, or that it was made into.
        here: the value on the side of what is wanted.
        there: the value on the side of what is seen.
        kind: view, part, dropout, scale or term.
        is_forward: whether ``there`` was made from ``here``.
        sign: -1 for the subtrahend of a difference.
    """

    operation: Operation
    here: int
    there: int
    kind: str
    is_forward: bool = False
    sign: int = 1


@dataclass(frozen=True)
class Route:
    """The way from a value to a tensor that a hook sees.

    Attributes:
        value: what is seen.
        steps: from the wanted value to it.
    """

    value: int
    steps: tuple[Step, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether the seen tensor is the wanted one up to its layout, in training too."""
        return all(step.kind == "view" for step in self.steps)


class Routes:
    """Finds routes in one graph, to the values for which ``is_seen`` holds."""

    def __init__(self, flow: Dataflow, is_seen: Callable[[int], bool]) -> None:
        """Keep the graph."""
        self._flow = flow
        self._is_seen = is_seen

    def exact(self, value: int) -> Route | None:
        """Return a route through views alone, the shortest; None where there is none."""
        waiting = deque([Route(value)])
        known = {value}
        while waiting:
            route = waiting.popleft()
            if self._is_seen(route.value):
                return route
            if len(route.steps) < DEEPEST:
                for step in self._views(route.value):
                    if step.there not in known:
                        known.add(step.there)
                        waiting.append(Route(step.there, (*route.steps, step)))
        return None

    def expression(self, value: int, *, through_adds: bool, depth: int = 0) -> list[Route]:
        """Return routes whose seen tensors add up to ``value``; empty where some part of it is hidden.

        Args:
            value: what is wanted.
            through_adds: whether a residual sum may stand for its terms: never where a sum of the stream is wanted,
                which would prove itself.
            depth: of the recursion.
        """
        route = self.exact(value)
        if route is not None:
            return [route]
        made = self._flow.producer.get(value)
        if made is None or depth > DEEPEST:
            return []
        parents = self._flow.light_parents.get(value, [])
        for parent, kind in parents:
            if kind in ("view", "dropout", "scale") or (kind == "part" and len(parents) == 1):
                step = Step(made, value, parent, kind)
                further = self.expression(parent, through_adds=through_adds, depth=depth + 1)
                return [Route(route.value, (step, *route.steps)) for route in further]
        found: list[Route] = []
        if value in self._flow.adds and not through_adds:
            return []
        if (made.name in ADDS or made.name in SUBTRACTIONS) and len(made.inputs) == 2:
            for index, term in enumerate(made.inputs):
                if self._flow.trace.n_elements(term) != self._flow.trace.n_elements(value):
                    return []
                sign = -1 if index and made.name in SUBTRACTIONS else 1
                more = self.expression(term, through_adds=through_adds, depth=depth + 1)
                if not more or len(found) + len(more) > MOST_TERMS:
                    return []
                step = Step(made, value, term, "term", sign=sign)
                found += [Route(route.value, (step, *route.steps)) for route in more]
        return found

    def _views(self, value: int) -> list[Step]:
        flow = self._flow
        steps = []
        made = flow.producer.get(value)
        if made is not None:
            steps += [Step(made, value, v, "view") for v, kind in flow.light_parents.get(value, []) if kind == "view"]
        for reader in flow.consumers.get(value, []):
            for output in reader.outputs:
                if (value, "view") in flow.light_parents.get(output, []) and flow.producer.get(output) is reader:
                    steps.append(Step(reader, value, output, "view", is_forward=True))
        return steps


@dataclass(frozen=True)
class Reading:
    """What to take from a seen tensor: ``factor * memory[positions]``.

    Attributes:
        point: where it is seen.
        form: the form in which it was seen in the trace; another form means another forward.
        positions: of the wanted elements.
        factor: one number, or one for each element.
    """

    point: Point
    form: Form
    positions: Tensor
    factor: Tensor


def reading(route: Route, point: Point, form: Form, wanted: Tensor) -> Reading | None:
    """Return how the elements at ``wanted`` positions are read off the seen tensor; None where one is not in it."""
    factor = torch.ones((), dtype=torch.float64)
    try:
        for step in route.steps:
            factor = factor * _factor(step, wanted) * step.sign
            move = moved_on if step.is_forward else moved_back
            one, other = (step.here, step.there) if step.is_forward else (step.there, step.here)
            wanted = move(_elementwise(step), one, other, wanted)
    except (KeyError, ValueError, RuntimeError, TypeError, IndexError):
        return None  # a form that was not recorded, or a call that cannot be replayed on positions
    return None if bool((wanted == NOWHERE).any()) else Reading(point, form, wanted, factor)


def _elementwise(step: Step) -> Operation:
    if step.kind in ("view", "part") or step.operation.replay is None:
        return step.operation
    made = step.operation
    return Operation(made.name, made.inputs, made.outputs, made.calls, forms=made.forms)


def _factor(step: Step, wanted: Tensor) -> Tensor:
    """Return what the elements at ``wanted`` positions of a product were multiplied by."""
    one = torch.ones((), dtype=torch.float64)
    if step.kind != "scale":
        return one
    made = step.operation
    others = [value for value in made.inputs if value != step.there]
    if others:
        tensor = made.factors[others[0]].detach().to("cpu", torch.float64)
        form = made.forms[step.here]
        given = broadcast(Form(tuple(tensor.shape), tuple(tensor.stride())), form.shape)
        memory = tensor.as_strided((given.span + 1,), (1,), tensor.storage_offset())
        factor = memory[positions(given, indices_at(form, wanted).clamp(min=0))]
    elif made.numbers:
        factor = one * made.numbers[0]
    else:
        raise ValueError("the factor is not known")
    return 1 / factor if made.name in QUOTIENTS else factor
