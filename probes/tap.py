"""Measure one point: its tensor as it passes, and the gradient of the loss with respect to it as it comes back.

Gradients come from tensor hooks on the tapped tensors, never from full backward hooks, which break in-place adds.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor
from torch.compiler import is_compiling

from .anatomy import Point
from .hooked import is_recomputing
from .paths import Paths
from .reading import Reading
from .rounding import SHORT
from .versions import version_of
from .wrappers import here, is_summand

if TYPE_CHECKING:
    from .taps import Taps


class Tap:
    """One point: measures its tensor as it passes, and the gradient of the loss with respect to it as it comes back."""

    __slots__ = ("_arriving", "_back", "_flags", "_has_path", "_leaving", "_row", "_taps", "_write")

    def __init__(self, taps: Taps, paths: Paths, point: Point, flags: int) -> None:
        """Look up the point's rows; ``flags`` are the kernel's."""
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
            if reading is None or not tensor.is_floating_point() or is_summand(tensor):
                return
            if not again:
                taps.n_shown_in_graph += 1
                if not self._has_path and reading.shown is not None and self._is_shown(reading, tensor):
                    return
                reading.meter.measure(self._row, here(tensor), self._flags)
                if tensor.dtype in SHORT:
                    reading.rounding.see(self._row, here(tensor))
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
                taps.current.meter.measure(self._row, tensor, self._flags)
        except Exception as error:  # noqa: BLE001 - training goes on
            taps.fail("forward", error)

    def see_returning(self, gradient: Tensor) -> None:
        """Measure a gradient of a running graph: it belongs to the last forward whose gradient has not come yet."""
        try:
            readings = reversed(self._taps.readings)
            reading = next((reading for reading in readings if self._back not in reading.came_back), None)
            if reading is not None:
                self._see_gradient(reading, gradient if self._leaving is None else gradient.clone())
        except Exception as error:  # noqa: BLE001 - training goes on
            self._taps.fail("backward", error)

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
            reading.rounding.see(self._row, here(tensor))
        return True

    def _see_gradient(self, reading: Reading, gradient: Tensor) -> None:
        self._see_node(reading, 0, (gradient,))

    def _see_node(self, reading: Reading, output: int, gradients: tuple[Tensor | None, ...]) -> None:
        """Measure the gradient of one output of a node; the hook holds rows and buffers, never the activation."""
        try:
            gradient = gradients[output]
            if gradient is None or is_summand(gradient):
                return
            gradient = here(gradient)
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
                reading.paths.arrive(self._arriving, gradient, reading.meter, row)
            else:
                reading.meter.measure(row, gradient)
            if self._leaving is not None:
                reading.paths.leave(self._leaving[0], gradient)
        except Exception as error:  # noqa: BLE001 - training goes on
            self._taps.fail("backward", error)
