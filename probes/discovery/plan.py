"""Find, for every value of the stream, the module call at which a plain hook sees it at run time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from rheoscope.probes.anatomy import Point

from .dataflow import Dataflow
from .form import Form
from .routes import Route, Routes

MOST_VIEWS = 64  # views of views that are followed


@dataclass(frozen=True)
class Sighting:
    """One place where a value enters or leaves a module, in which form, and when.

    ``is_part`` tells that it is a view which not all that reads the value goes through: its gradient is a part.
    """

    point: Point
    moment: int
    is_input: bool
    form: Form
    is_part: bool = False

    @property
    def nesting(self) -> int:
        """How deep the module lies below the model."""
        return self.point.module_path.count(".")


class Plan:
    """Where each value can be seen.

    In eval mode a dropout returns its input, so that a value has sightings before and after it; in training only
    those after the dropout show what enters the add.
    """

    def __init__(self, flow: Dataflow) -> None:
        """Collect every sighting of ``flow``'s trace, the model's own arguments and results left out."""
        self._flow = flow
        self._sightings: dict[int, list[Sighting]] = defaultdict(list)
        for entry in flow.trace.calls:
            if not entry.path:
                continue
            for position, value in entry.inputs:
                point = Point(entry.path, "input", position, entry.nth)
                form = entry.forms["input", position]
                is_part = not self._is_read_through(value, entry.objects["input", position])
                self._sightings[value].append(Sighting(point, entry.entered_at, True, form, is_part))
            for position, value in entry.outputs:
                point = Point(entry.path, "output", position, entry.nth)
                form = entry.forms["output", position]
                is_part = not self._is_read_through(value, entry.objects["output", position])
                self._sightings[value].append(Sighting(point, entry.left_at, False, form, is_part))
        self._settled_routes = Routes(flow, lambda value: bool(self._settled(value)))
        self._all_routes = Routes(flow, lambda value: bool(self._sightings.get(value)))

    def of_state(self, value: int) -> Point | None:
        """Return where a state or a sum is seen: the outermost module, its output before another's input."""
        route = self._settled_routes.exact(value)
        found = self.state_sighting(route.value) if route else None
        return found.point if found else None

    def shows_whole_gradient(self, value: int, point: Point | None) -> bool:
        """Return whether the gradient at ``point`` is that of ``value``: not of a copy or view that only some calls read.

        The gradient of a value comes from all that reads it; a copy on the way to one reader knows of that one alone.
        """
        route = self._settled_routes.exact(value) or self._all_routes.exact(value)
        if route is None or point is None:
            return False
        seen = next((s for s in self._sightings[route.value] if s.point == point), None)
        if seen is None or seen.is_part:
            return False
        sources = [step.here if step.is_forward else step.there for step in route.steps]
        return all(len(self._flow.consumers.get(source, [])) <= 1 for source in sources)

    def of_branch(self, value: int) -> Point | None:
        """Return where a branch's write is seen: the last module that returns it before the add."""
        route = self._settled_routes.exact(value)
        found = self.branch_sighting(route.value) if route else None
        return found.point if found else None

    def of_output(self, value: int) -> Point | None:
        """Return where a value is seen as it is made: the first module that returns it, else the first that reads."""
        route = self._all_routes.exact(value)
        found = self._sightings.get(route.value, []) if route else []
        best = min(found, key=lambda s: (s.is_part, s.is_input, s.moment), default=None)
        return best.point if best else None

    def expression(self, value: int, *, through_adds: bool) -> list[Route]:
        """Return routes to seen tensors that add up to ``value`` in eval mode; in training too, where that can be."""
        settled = self._settled_routes.expression(value, through_adds=through_adds)
        return settled or self._all_routes.expression(value, through_adds=through_adds)

    def state_sighting(self, value: int) -> Sighting | None:
        """Return the preferred sighting of a value of the stream."""
        return min(self._best(value), key=lambda s: (s.is_part, s.nesting, s.is_input, s.moment), default=None)

    def branch_sighting(self, value: int) -> Sighting | None:
        """Return the preferred sighting of a value of a branch."""
        return max(self._best(value), key=lambda s: (not s.is_part, not s.is_input, s.moment), default=None)

    def dropout(self, value: int) -> float:
        """Return the probability of the dropout that all sightings of ``value`` come before, 0 without one."""
        return 0.0 if self._settled(value) else self._flow.trace.dropout.get(value, 0.0)

    def holder(self, values: list[int]) -> str:
        """Return the deepest module whose path is a prefix of every sighting of ``values``, ""  without one."""
        paths = [s.point.module_path.split(".") for value in values for s in self._sightings.get(value, [])[:1]]
        shared: list[str] = []
        for parts in zip(*paths, strict=False):
            if len(set(parts)) > 1:
                break
            shared.append(parts[0])
        return ".".join(shared)

    def _is_read_through(self, value: int, seen: int) -> bool:
        """Return whether all calls that read ``value`` read the tensor object ``seen`` or a view of it."""
        viewed = self._flow.trace.viewed
        for reader in self._flow.trace.readers.get(value, ()):
            current, steps = reader, 0
            while current != seen and current in viewed and steps < MOST_VIEWS:
                current, steps = viewed[current], steps + 1
            if current != seen:
                return False
        return True

    def _best(self, value: int) -> list[Sighting]:
        return self._settled(value) or self._sightings.get(value, [])

    def _settled(self, value: int) -> list[Sighting]:
        after = self._flow.trace.settled.get(value, -1)
        return [sighting for sighting in self._sightings.get(value, []) if sighting.moment > after]
