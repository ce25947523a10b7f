"""Carry on with something else at chosen calls of a forward: torch's own calls, and what enters or leaves a module.

The mode is on the stack while the model's forward runs, and off while an action runs: what an action calls is not seen as a
call of the forward. Autograd runs through as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .discovery.places import CallPlace
from .errors import LabError
from .function_mode import put_on, take_off
from .hooked import is_recomputing
from .interventions import put
from .point import Point
from .wrappers import modules_of


class Action(Protocol):
    """Runs one call of a forward in its own way."""

    def __call__(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Return what the forward carries on with."""


class Rewriting:
    """Hooks on a model that run its forwards with some calls replaced; they are copied with the model."""

    def __init__(self) -> None:
        """Replace nothing yet."""
        self.calls: dict[CallPlace, Action] = {}
        self.points: dict[Point, Callable[[Tensor], Tensor]] = {}
        self._names: set[str] = set()
        self._n_reached = 0
        self._inside: list[_Frame] = []
        self._n_calls: dict[str, int] = {}
        self._mode: _Mode | None = None

    def install(self, model: nn.Module) -> None:
        """Put the hooks on, for as long as the model lives."""
        self._names = {place.name for place in self.calls}
        for path, module in modules_of(model, remove_duplicate=True).items():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            module.register_forward_pre_hook(_Enter(self, path), with_kwargs=True)
            module.register_forward_hook(_Leave(self, path), always_call=True)

    def enter(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module call begins: return its arguments where one is changed."""
        if not path:
            self._begin()
        elif self._mode is None:
            if is_recomputing():
                raise LabError(
                    "Expected a forward that runs once, got gradient checkpointing, which runs parts of it again in the "
                    "backward. Switch it off for the what-if."
                )
            return None
        nth = self._n_calls.get(path, 0)
        self._n_calls[path] = nth + 1
        self._inside.append(_Frame(path, nth))
        changed = None
        for point, change in self.points.items():
            if point.module_path == path and point.side == "input" and point.call == nth:
                self._n_reached += 1
                if isinstance(point.position[0], int):
                    args = tuple(put(args, point.position, change))
                else:
                    kwargs = put(kwargs, point.position, change)
                changed = args, kwargs
        return changed

    def leave(self, path: str, output: Any) -> Any:
        """A module call ends: return its output where it is changed."""
        while self._inside and self._inside.pop().path != path:
            pass
        nth, changed = self._n_calls.get(path, 0) - 1, None
        for point, change in self.points.items():
            if self._mode is not None and point.module_path == path and point.side == "output" and point.call == nth:
                self._n_reached += 1
                changed = put(output, point.position, change)
        if not path:
            n_reached, n_expected = self._n_reached, len(self.calls) + len(self.points)
            self._end()
            # A forward that raised has no output; its own error is to come out.
            if n_reached != n_expected and output is not None:
                raise LabError(
                    f"Expected a forward that passes all {n_expected} places that are to be changed, got {n_reached}: it takes "
                    "another way than the one that was traced. Pass batches like the first, to a model without such switches."
                )
        return changed

    def run(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run one torch call, or what stands in its place."""
        name = getattr(function, "__name__", "").strip("_")
        if name not in self._names or not self._inside:
            return function(*args, **kwargs)
        frame = self._inside[-1]
        order = frame.counts.get(name, 0)
        frame.counts[name] = order + 1
        action = self.calls.get(CallPlace(frame.path, frame.nth, name, order))
        if action is None:
            return function(*args, **kwargs)
        self._n_reached += 1
        return action(function, args, kwargs)

    def _begin(self) -> None:
        self._end()
        self._n_reached = 0
        self._mode = _Mode(self)
        put_on(self._mode)

    def _end(self) -> None:
        mode, self._mode = self._mode, None
        self._inside, self._n_calls = [], {}
        if mode is not None:
            take_off(mode)


class _Frame:
    """One running module call, and how many calls of each name it made."""

    __slots__ = ("counts", "nth", "path")

    def __init__(self, path: str, nth: int) -> None:
        self.path, self.nth = path, nth
        self.counts: dict[str, int] = {}


class _Mode(TorchFunctionMode):
    """Hands every call to the rewriting."""

    def __init__(self, rewriting: Rewriting) -> None:
        super().__init__()
        self._rewriting = rewriting

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._rewriting.run(func, args, kwargs or {})


class _Enter:
    """A forward pre-hook that is copied with its model."""

    def __init__(self, rewriting: Rewriting, path: str) -> None:
        self._rewriting, self._path = rewriting, path

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        return self._rewriting.enter(self._path, args, kwargs)


class _Leave:
    """A forward hook that is copied with its model."""

    def __init__(self, rewriting: Rewriting, path: str) -> None:
        self._rewriting, self._path = rewriting, path

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ARG002
        return self._rewriting.leave(self._path, output)
