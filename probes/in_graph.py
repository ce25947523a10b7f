"""Show the tensors at chosen points of a compiled model from inside its graph, by an operator.

Dynamo traces a forward hook into the graph, where Python state of ours would break it or compile it anew at every step. So a
hook writes one operator into the graph and nothing else: when the graph runs, the operator hands the real tensor to whoever
looks. One switch is read while tracing, which makes exactly two graphs: one that is looked at, and one without a trace of us.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._higher_order_ops.effects import _EffectType, _register_effectful_op
from torch.compiler import is_compiling, is_exporting
from torch.utils.hooks import RemovableHandle

from .anatomy import Point
from .batches import at
from .hooked import Hook
from .wrappers import modules_of


class Look(Protocol):
    """Who looks at one point: at the tensor that passes, and at its gradient when that comes back."""

    def see(self, tensor: Tensor) -> None:
        """Look at a tensor outside of every graph, and at its gradient when that comes."""

    def see_passing(self, tensor: Tensor) -> None:
        """Look at the tensor; it is overwritten as soon as this returns."""

    def see_returning(self, gradient: Tensor) -> None:
        """Look at the gradient; it is overwritten as soon as this returns."""


class Switch:
    """Whether graphs are looked at; dynamo guards the value, so that there is a graph for each."""

    __slots__ = ("is_on",)

    def __init__(self) -> None:
        """Start with nobody looking."""
        self.is_on = False


class InGraph:
    """Hooks that write themselves into the graph of a model that is compiled while they are on it."""

    def __init__(self, model: nn.Module, points: Iterable[Point], view: Callable[[Point], Look]) -> None:
        """Register the hooks; they are silent until ``switch.is_on``.

        Args:
            model: the model, not the compiled wrapper around it.
            points: where to look; each of the first call of its module.
            view: called once a point, now; returns who looks there.
        """
        self.switch = Switch()
        self._numbers: list[int] = []
        self._handles: list[RemovableHandle] = []
        modules = modules_of(model)
        sides: dict[tuple[str, str], list[tuple[tuple[Any, ...], int]]] = {}
        for point in points:
            number = next(_numbers)
            _looks[number] = view(point)
            self._numbers.append(number)
            sides.setdefault((point.module_path, point.side), []).append((point.position, number))
        for (path, side), places in sides.items():
            if side == "input":
                hook = Hook(partial(_entering, self.switch, tuple(places)))
                self._handles.append(modules[path].register_forward_pre_hook(hook, with_kwargs=True))
            else:
                hook = Hook(partial(_leaving, self.switch, tuple(places)))
                self._handles.append(modules[path].register_forward_hook(hook))

    def remove(self) -> None:
        """Take the hooks off; a graph that holds them shows nothing any longer."""
        self.switch.is_on = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for number in self._numbers:
            _looks.pop(number, None)
        self._numbers.clear()


def serves(points: Iterable[Point]) -> bool:
    """Return whether graphs can show all of the points: a graph does not tell the calls of one module apart."""
    return all(point.call == 0 for point in points)


def _entering(switch: Switch, places: Any, module: Any, args: Any, kwargs: Any) -> None:  # noqa: ARG001
    if switch.is_on and not is_exporting():
        for position, number in places:
            _write(at(args if isinstance(position[0], int) else kwargs, position), number)


def _leaving(switch: Switch, places: Any, module: Any, args: Any, output: Any) -> None:  # noqa: ARG001
    if switch.is_on and not is_exporting():
        for position, number in places:
            _write(at(output, position) if position else output, number)


def _write(tensor: Any, number: int) -> None:
    """Write the operator into the graph that is traced, forward and backward; show the tensor where none is."""
    if not isinstance(tensor, Tensor):
        return
    if not is_compiling():
        # A part of the model that is not compiled.
        look = _looks.get(number)
        if look is not None:
            look.see(tensor)
    elif tensor.is_floating_point():
        torch.ops.rheoscope.passing(tensor.detach(), number)
        if tensor.requires_grad:
            tensor.register_hook(partial(_return, number))  # type: ignore[no-untyped-call]


def _return(number: int, gradient: Tensor) -> None:
    torch.ops.rheoscope.returning(gradient, number)


_numbers = itertools.count()
_looks: dict[int, Look] = {}  # what is traced into a graph is a number: who looks is found when the graph runs
_library = torch.library.Library("rheoscope", "DEF")  # type: ignore[no-untyped-call]


def _passing(tensor: Tensor, number: int) -> None:
    look = _looks.get(number)
    if look is not None:
        look.see_passing(tensor)


def _returning(gradient: Tensor, number: int) -> None:
    look = _looks.get(number)
    if look is not None:
        look.see_returning(gradient)


for _name, _function in (("passing", _passing), ("returning", _returning)):
    _library.define(f"{_name}(Tensor tensor, int number) -> ()")  # type: ignore[no-untyped-call]
    _library.impl(_name, _function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    _library.impl(_name, lambda *_: None, "Meta")  # type: ignore[no-untyped-call]
    _register_effectful_op(getattr(torch.ops.rheoscope, _name).default, _EffectType.ORDERED)
