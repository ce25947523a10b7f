"""Tap the current: measure activations as they pass and gradients as they come back, with no host copy in between.

Gradients come from tensor hooks on the tapped tensors, never from full backward hooks, which break in-place adds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Point
from .biases import BiasTaps
from .compiled import EAGER, Compilation, uncompiled
from .hooked import Hooked, See
from .in_graph import InGraph, serves
from .padding import Unpadded, masks_of, meter
from .paths import Paths, PathSums
from .reading import Reading
from .relations import RelationTaps
from .rounding import Rounding
from .sites import Layout, layout
from .statistics import Sheet
from .tap import Tap

MOST_READINGS = 64  # forwards measured in one step; more are not
Fail = Callable[[str, Exception], None]


class Taps:
    """The hooks of one probe: attached for the steps that are sampled, silent for the others.

    ``fail(where, error)`` is told of every error of ours; it must not raise unless training is to stop.
    """

    def __init__(
        self,
        model: nn.Module,
        anatomy: Anatomy,
        fail: Fail,
        relations: RelationTaps | None = None,
        compilation: Compilation = "none",
    ) -> None:
        """Lay out the measurements; ``relations`` look at the same forwards. A model to be compiled is hooked at once."""
        self.anatomy = anatomy
        self.layout: Layout = layout(anatomy)
        self.readings: list[Reading] = []
        self.sheet: type[Sheet] = Sheet
        self.fail = fail
        self.relations = relations
        self.rows = {point: row for row, point in enumerate(self.layout.points)}
        stacks = {site.point: site.stack for site in reversed(self.layout.sites)}
        self._stacks = [stacks[point] for point in self.layout.points]
        self.current: Reading | None = None  # where the forward that runs is measured
        self.flowing: Reading | None = None  # whose gradient came last: what checkpointing recomputes belongs to it
        self._model = model
        self._hooked: Hooked | None = None
        self._graph: InGraph | None = None
        self._is_compiled = compilation != "none"
        self._stance: AbstractContextManager[Any] | None = None
        self.n_shown_in_graph = 0  # points, since the forward began
        self._is_graph_proven = False
        self._on_leaves: list[Any] = []
        self._paths = Paths(anatomy)
        self._biases = BiasTaps(model, anatomy)
        self._spare: list[Reading] = []
        self._views: dict[Point, See] = {}  # made once, for all the steps that are sampled
        if compilation == "whole" and serves(self.layout.points):
            self._graph = InGraph(model, self.layout.points, self._tap)

    @property
    def is_in_graph(self) -> bool:
        """Whether the graph of a compiled model shows its tensors."""
        return self._graph is not None

    @property
    def is_attached(self) -> bool:
        """Whether hooks are on the model."""
        return self._hooked is not None

    def attach(self) -> None:
        """Hook the model; in a graph the hooks are there already."""
        if self._hooked is None and self._graph is None:
            fail = partial(self.fail, "forward")
            self._hooked = Hooked(self._model, self.layout.points, self._view, fail)

    def detach(self) -> None:
        """Unhook the model; the operators stay in a graph, where they show nothing."""
        self.current = None
        hooked, self._hooked = self._hooked, None
        with contextlib.ExitStack() as rest:
            # Where one fails the others are done.
            rest.callback(self._release)
            if hooked is not None and self.relations is not None:
                rest.callback(self.relations.detach)
            if hooked is not None:
                rest.callback(hooked.remove)

    def begin(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> bool:
        """Start a micro-batch: the forward with these arguments gets a new reading; return whether there is room."""
        self.flowing = None
        if (self._hooked is None and self._graph is None) or len(self.readings) >= MOST_READINGS:
            return False
        self.current = self._spare.pop() if self._spare else self._new_reading()
        self.readings.append(self.current)
        self._biases.read(self.current.biases)
        self._leave_padding_out(self.current, kwargs or {})
        if self._graph is not None:
            self._graph.switch.is_on, self.n_shown_in_graph = True, 0
            return True
        if self._is_compiled and self._stance is None:
            self._stance = uncompiled()
        if self._hooked is not None:
            self._hooked.restart()
        if self.relations is not None:
            self.relations.begin(args, dict(kwargs or {}), len(self.readings) - 1)
        return True

    def _leave_padding_out(self, reading: Reading, kwargs: Mapping[str, Any]) -> None:
        masks = masks_of(self.anatomy, kwargs)
        reading.meter = meter(reading.sums, self._stacks, masks) if masks else reading.sums
        reading.rounding.unpadded = reading.meter if isinstance(reading.meter, Unpadded) else None

    def end(self, *, failed: bool = False) -> str | None:
        """End the forward: module calls until the next ``begin`` are somebody else's; one that failed is forgotten.

        Returns:
            Once, that a graph showed nothing and is not looked at any longer.
        """
        told = None
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None
        if self._graph is not None:
            self._graph.switch.is_on = False
            if self.current is not None and not failed and not self._is_graph_proven:
                self._is_graph_proven = self.n_shown_in_graph >= len(self.rows)
                if not self._is_graph_proven:
                    self.leave_graph()
                    told = EAGER
        elif self.relations is not None:
            self.relations.end(failed=failed)
        if failed and self.current is not None:
            self.give_back([self.readings.pop()])
        self.current = None
        if self.readings:
            self.readings[-1].rounding.release()
        return told

    def leave_graph(self) -> None:
        """Take the operators out of a graph that shows nothing; from the next ``attach`` on plain hooks are used."""
        if self._graph is not None:
            self._graph.remove()
            self._graph = None

    def take(self) -> list[Reading]:
        """Return the readings since the last call, and forget them; ``give_back`` them once they are read."""
        readings, self.readings = self.readings, []
        for reading in readings:
            reading.paths.release()
        self._release()
        return readings

    def give_back(self, readings: list[Reading]) -> None:
        """Use the readings' memory again."""
        for reading in readings[: MOST_READINGS - len(self._spare)]:
            reading.sums.clear()
            reading.paths.clear()
            reading.rounding.clear()
            reading.came_back.clear()
            reading.copies.clear()
            reading.writes.clear()
            reading.shown = None
            reading.is_repeated = False
            reading.meter, reading.rounding.unpadded = reading.sums, None
            self._spare.append(reading)

    def keep_leaf(self, handle: Any) -> None:
        """Remember a hook on a leaf: it lives as long as its parameter, unlike one on an activation."""
        self._on_leaves.append(handle)

    def recomputed(self) -> Reading | None:
        """Return the reading whose forward is computed again inside a backward."""
        reading = self.flowing or (self.readings[-1] if self.readings else None)
        # Before the first gradient of a backward the latest forward is meant, unless its gradients are all back.
        return reading if reading is not None and (self.flowing is not None or not reading.came_back) else None

    def _release(self) -> None:
        self.flowing = None
        for handle in self._on_leaves:
            handle.remove()
        self._on_leaves.clear()

    def _new_reading(self) -> Reading:
        device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        return Reading(
            self.sheet(2 * len(self.rows), device),
            PathSums(self._paths, device),
            Rounding(self.anatomy, self.layout, device),
            self._biases.room(device),
        )

    def _view(self, point: Point) -> See:
        if point not in self._views:
            self._views[point] = self._shown(point)
        return self._views[point]

    def _shown(self, point: Point) -> See:
        see = self._tap(point).see
        relate = None if self.relations is None else self.relations.view(point)

        def show(tensor: Tensor) -> None:
            # While a forward is watched every touch of a tensor would pass through the function mode.
            with torch._C.DisableTorchFunction():
                see(tensor)
                if relate is not None and self.current is not None:
                    relate(tensor)

        return show

    def _tap(self, point: Point) -> Tap:
        return Tap(self, self._paths, point, self.layout.flags[point])
