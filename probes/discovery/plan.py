"""Find, for every value of the stream, the module call at which a plain hook sees it at run time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from rheoscope.probes.anatomy import Point

from .dataflow import Dataflow


@dataclass(frozen=True)
class Sighting:
    """One place where a value enters or leaves a module, and when."""

    point: Point
    moment: int
    is_input: bool

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
                self._sightings[value].append(Sighting(point, entry.entered_at, is_input=True))
            for position, value in entry.outputs:
                point = Point(entry.path, "output", position, entry.nth)
                self._sightings[value].append(Sighting(point, entry.left_at, is_input=False))

    def of_state(self, value: int) -> Point | None:
        """Return where a state or a sum is seen: the outermost module, its output before another's input."""
        found = self._settled(value)
        best = min(found, key=lambda s: (s.nesting, s.is_input, s.moment), default=None)
        return best.point if best else None

    def of_branch(self, value: int) -> Point | None:
        """Return where a branch's write is seen: the last module that returns it before the add."""
        found = self._settled(value)
        best = max(found, key=lambda s: (not s.is_input, s.moment), default=None)
        return best.point if best else None

    def of_output(self, value: int) -> Point | None:
        """Return where a value is seen as it is made: the first module that returns it, else the first that reads."""
        found = self._sightings.get(value, [])
        best = min(found, key=lambda s: (s.is_input, s.moment), default=None)
        return best.point if best else None

    def holder(self, values: list[int]) -> str:
        """Return the deepest module whose path is a prefix of every sighting of ``values``, ""  without one."""
        paths = [s.point.module_path.split(".") for value in values for s in self._sightings.get(value, [])[:1]]
        shared: list[str] = []
        for parts in zip(*paths, strict=False):
            if len(set(parts)) > 1:
                break
            shared.append(parts[0])
        return ".".join(shared)

    def _settled(self, value: int) -> list[Sighting]:
        after = self._flow.trace.settled.get(value, -1)
        return [sighting for sighting in self._sightings.get(value, []) if sighting.moment > after]
