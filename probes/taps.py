"""Tap the current: measure activations as they pass and gradients as they come back, with no host copy in between.

Gradients come from tensor hooks on the tapped tensors, never from full backward hooks, which break in-place adds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from .anatomy import Anatomy, Point
from .biases import BiasTaps
from .hooked import Hooked, is_recomputing
from .in_graph import InGraph, serves
from .paths import Paths, PathSums
from .relations import RelationTaps
from .rounding import SHORT, Rounding
from .sites import Layout, layout
from .statistics import Sheet
from .versions import version_of

MOST_READINGS = 64  # forwards measured in one step; more are not
Fail = Callable[[str, Exception], None]


@dataclass
class Reading:
    """What one forward and its backward gave.

    Attributes:
        sums: rows of points forward, then of the same backward.
        paths: the two paths by which each add's gradient reaches the state before.
        rounding: what each add rounded away.
        biases: sums of squares of the branches' output biases.
        came_back: rows whose gradient has been seen.
        copies: rows that hold what another row was measured to be, as (row, source).
        writes: row of a gradient that is a write's under another name -> its add, and the row of the sum's gradient.
        shown: the tensor measured last in the forward (a weak reference), its version, row and flags.
        is_repeated: whether some gradient came back twice; the last one counts.
    """

    sums: Sheet
    paths: PathSums
    rounding: Rounding
    biases: Tensor
    came_back: set[int] = field(default_factory=set)
    copies: list[tuple[int, int]] = field(default_factory=list)
    writes: dict[int, tuple[int, int]] = field(default_factory=dict)
    shown: tuple[Any, int, int, int] | None = None
    is_repeated: bool = False


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
        *,
        is_compiled: bool = False,
    ) -> None:
        """Lay out the measurements; ``relations`` look at the same forwards. A model to be compiled is hooked at once."""
        self.anatomy = anatomy
        self.layout: Layout = layout(anatomy)
        self.readings: list[Reading] = []
        self.fail = fail
        self.relations = relations
        self.rows = {point: row for row, point in enumerate(self.layout.points)}
        self.current: Reading | None = None  # where the forward that runs is measured
        self.flowing: Reading | None = None  # whose gradient came last: what checkpointing recomputes belongs to it
        self._model = model
        self._hooked: Hooked | None = None
        self._graph: InGraph | None = None
        self.n_shown_in_graph = 0
        self._on_leaves: list[Any] = []
        self._paths = Paths(anatomy)
        self._biases = BiasTaps(model, anatomy)
        self._spare: list[Reading] = []
        if is_compiled and serves(self.layout.points):
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
            self._hooked = Hooked(self._model, self.layout.points, lambda point: self._tap(point).see)

    def detach(self) -> None:
        """Unhook the model; the operators stay in a graph, where they show nothing."""
        if self._hooked is not None:
            self._hooked.remove()
            self._hooked = None
            if self.relations is not None:
                self.relations.detach()
        self.current = None
        self._release()

    def begin(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> bool:
        """Start a micro-batch: the forward with these arguments gets a new reading; return whether there is room."""
        self.flowing = None
        if (self._hooked is None and self._graph is None) or len(self.readings) >= MOST_READINGS:
            return False
        self.current = self._spare.pop() if self._spare else self._new_reading()
        self.readings.append(self.current)
        self._biases.read(self.current.biases)
        if self._graph is not None:
            self._graph.switch.is_on = True
            return True
        if self._hooked is not None:
            self._hooked.restart()
        if self.relations is not None:
            self.relations.begin(args, dict(kwargs or {}), len(self.readings) - 1)
        return True

    def end(self, *, failed: bool = False) -> None:
        """End the forward: module calls until the next ``begin`` are somebody else's; one that failed is forgotten."""
        if self._graph is not None:
            self._graph.switch.is_on = False
        elif self.relations is not None:
            self.relations.end(failed=failed)
        if failed and self.current is not None:
            self.give_back([self.readings.pop()])
        self.current = None
        if self.readings:
            self.readings[-1].rounding.release()

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
            Sheet(2 * len(self.rows), device),
            PathSums(self._paths, device),
            Rounding(self.anatomy, self.layout, device),
            self._biases.room(device),
        )

    def _tap(self, point: Point) -> _Tap:
        return _Tap(self, self._paths, point, self.layout.flags[point])


class _Tap:
    """One point: measures its tensor as it passes, and the gradient of the loss with respect to it as it comes back."""

    __slots__ = ("_arriving", "_back", "_flags", "_has_path", "_leaving", "_row", "_taps", "_write")

    def __init__(self, taps: Taps, paths: Paths, point: Point, flags: int) -> None:
        self._taps, self._flags = taps, flags
        self._row = taps.rows[point]
        self._back = self._row + len(taps.rows)
        self._arriving, self._leaving = paths.arriving.get(point), paths.leaving.get(point)
        self._has_path = self._arriving is not None or self._leaving is not None
        self._write = self._add_of(paths, point)

    def _add_of(self, paths: Paths, point: Point) -> tuple[int, int] | None:
        """Return, where the point is the write of an add, the add's index and the row of its sum's gradient."""
        index = paths.write_of.get(point, -1)
        source = next((where for where, (add, _) in paths.leaving.items() if add == index), None)
        return None if source is None else (index, self._taps.rows[source] + len(self._taps.rows))

    def see(self, tensor: Tensor) -> None:
        """Measure ``tensor``, and its gradient when that comes."""
        taps = self._taps
        try:
            again = is_recomputing()
            reading = taps.recomputed() if again else taps.current
            if reading is None or not tensor.is_floating_point():
                return
            if not again:
                if not self._has_path and reading.shown is not None and self._is_shown(reading, tensor):
                    return
                reading.sums.measure(self._row, tensor, self._flags)
                if tensor.dtype in SHORT:
                    reading.rounding.see(self._row, tensor)
                reading.shown = (weakref.ref(tensor), version_of(tensor), self._row, self._flags)
            node = tensor.grad_fn
            if node is not None and not is_compiling():
                # Half the price of a hook on the tensor, and the same gradient.
                node.register_prehook(partial(self._see_node, reading, tensor.output_nr))
            elif tensor.requires_grad:
                handle = tensor.register_hook(partial(self._see_gradient, reading))  # type: ignore[no-untyped-call]
                if tensor.is_leaf:
                    taps.keep_leaf(handle)
        except Exception as error:  # noqa: BLE001 - training goes on
            taps.fail("forward", error)

    def see_passing(self, tensor: Tensor) -> None:
        """Measure a tensor of a running graph, whose memory is used again afterwards."""
        taps = self._taps
        try:
            taps.n_shown_in_graph += 1
            if taps.current is not None:
                taps.current.sums.measure(self._row, tensor, self._flags)
        except Exception as error:  # noqa: BLE001 - training goes on
            taps.fail("forward", error)

    def see_returning(self, gradient: Tensor) -> None:
        """Measure a gradient of a running graph: it belongs to the last forward whose gradient has not come yet."""
        readings = reversed(self._taps.readings)
        reading = next((reading for reading in readings if self._back not in reading.came_back), None)
        if reading is not None:
            self._see_gradient(reading, gradient if self._leaving is None else gradient.clone())

    def _is_shown(self, reading: Reading, tensor: Tensor) -> bool:
        """Return whether this very tensor was measured at the point before (a dropout of 0 hands on what it is given)."""
        assert reading.shown is not None
        seen, version, row, flags = reading.shown
        if seen() is not tensor or version != version_of(tensor) or flags != self._flags:
            return False
        n = len(self._taps.rows)
        reading.copies += [(self._row, row), (self._back, n + row)]
        if self._write is not None:
            reading.writes[n + row] = self._write
        if tensor.dtype in SHORT:
            reading.rounding.see(self._row, tensor)
        return True

    def _see_gradient(self, reading: Reading, gradient: Tensor) -> None:
        self._see_node(reading, 0, (gradient,))

    def _see_node(self, reading: Reading, output: int, gradients: tuple[Tensor | None, ...]) -> None:
        """Measure the gradient of one output of a node; the hook holds rows and buffers, never the activation."""
        try:
            gradient = gradients[output]
            if gradient is None:
                return
            self._taps.flowing = reading
            row = self._back
            if row in reading.came_back:
                reading.is_repeated = True
            reading.came_back.add(row)
            write = self._write or (reading.writes.get(row) if reading.writes else None)
            if write is not None and reading.paths.is_held(write[0], gradient):
                # An add hands one and the same gradient to both of its operands: it was measured at the sum.
                reading.copies.append((row, write[1]))
            elif self._arriving is not None:
                reading.paths.arrive(self._arriving, gradient, reading.sums, row)
            else:
                reading.sums.measure(row, gradient)
            if self._leaving is not None:
                reading.paths.leave(self._leaving[0], gradient)
        except Exception as error:  # noqa: BLE001 - training goes on
            self._taps.fail("backward", error)
