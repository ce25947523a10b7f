"""Show the tensors at chosen points of a model while it runs, by plain forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.utils.hooks import RemovableHandle

from .anatomy import Point
from .batches import at
from .errors import ProbeError
from .wrappers import modules_of

See = Callable[[Tensor], None]
View = Callable[[Point], See]
Fail = Callable[[Exception], None]


class Hook:
    """A callable for hooks, which stays with its model: in a copied or pickled model it does nothing.

    A plain closure would be shared with the copy, which would then be counted as if it were the model itself; and it
    would stop ``torch.save(model)``. Reading such a file back needs Rheoscope to be importable.
    """

    __slots__ = ("_action", "_fail")

    def __init__(self, action: Callable[..., None] | None = None, fail: Fail | None = None) -> None:
        """Wrap ``action``; None does nothing. ``fail(error)`` is told of its errors, which come out where there is none."""
        self._action, self._fail = action, fail

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Run the action, and never change what passes."""
        if self._action is None:
            return
        try:
            self._action(*args, **kwargs)
        except Exception as error:
            if self._fail is None:
                raise
            self._fail(error)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        """Return a hook that does nothing."""
        return Hook()

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        """Pickle as a hook that does nothing."""
        return Hook, ()


class Hooked:
    """Hooks that show each point's tensor to ``view(point)`` whenever a forward passes it.

    Which call of a module it is counts from the last ``restart``; the recomputation of gradient checkpointing repeats
    calls that were counted before.
    """

    def __init__(self, model: nn.Module, points: Iterable[Point], view: View, fail: Fail | None = None) -> None:
        """Register the hooks; ``remove`` takes them off.

        Args:
            model: the model.
            points: where to look.
            view: called once a point, now; returns what is called with every tensor that passes there.
            fail: told of errors while a forward runs; without it they come out.

        Raises:
            ProbeError: the model has no module at one of the points; nothing is hooked.
        """
        self._modules: list[_HookedModule] = []
        by_module: dict[str, list[Point]] = {}
        for point in points:
            by_module.setdefault(point.module_path, []).append(point)
        modules = modules_of(model)
        strange = sorted(set(by_module) - set(modules))
        if strange:
            raise ProbeError(
                f"Expected an anatomy of this model, got one with {len(strange)} modules that {type(model).__name__} "
                f"does not have ({strange[0]!r:.100} is one). Pass the anatomy that discover(model, batch) returns, or "
                "none."
            )
        # All of them before the first hook: one that raises leaves none behind.
        views = {path: [(point, view(point)) for point in mine] for path, mine in by_module.items()}
        for path, mine in views.items():
            self._modules.append(_HookedModule(modules[path], mine, fail))

    def restart(self) -> None:
        """Count calls from 0 again: a new forward begins."""
        for module in self._modules:
            module.n_calls = 0

    def remove(self) -> None:
        """Take the hooks off."""
        for module in self._modules:
            module.remove()
        self._modules.clear()


class _HookedModule:
    """The hooks of one module; the call that runs is number ``n_calls`` until it has ended."""

    def __init__(self, module: nn.Module, views: list[tuple[Point, See]], fail: Fail | None) -> None:
        self.n_calls = 0
        self._entering = [(p.call, p.position, see) for p, see in views if p.side == "input"]
        self._leaving = [(p.call, p.position, see) for p, see in views if p.side == "output"]
        # Counted where the call ends; without always_call a call that raises would be counted never, and all is over.
        # What a model returns is seen before hooks that were put on it earlier: a probe's own end the forward.
        is_model = any(not p.module_path for p, _ in views)
        self._handles: list[RemovableHandle] = [module.register_forward_hook(Hook(self._after, fail), prepend=is_model)]
        if self._entering:
            self._handles.append(module.register_forward_pre_hook(Hook(self._before, fail), with_kwargs=True))

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        if is_compiling():
            return
        again = _is_in_backward()
        for call, position, see in self._entering:
            if self._is_now(call, again):
                # A module may be called with its argument by position here and by keyword there.
                given = args if isinstance(position[0], int) else kwargs
                tensor = at(given, position)
                if tensor is not None:
                    see(tensor)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ARG002
        # What counts calls leaves a trace in a graph that is compiled or exported.
        if is_compiling():
            return
        again = _is_in_backward()
        for call, position, see in self._leaving:
            if call == self.n_calls if not again else self._is_now(call, again):
                tensor = output if not position and isinstance(output, Tensor) else at(output, position)
                if tensor is not None:
                    see(tensor)
        if not again:
            self.n_calls += 1

    def _is_now(self, call: int, again: bool) -> bool:
        """Return whether the running call is the point's; a recomputed one of several calls tells not which it is."""
        return self.n_calls == 1 and call == 0 if again else call == self.n_calls


def is_recomputing() -> bool:
    """Return whether a forward runs inside a backward: gradient checkpointing computes activations again."""
    # Asked first: dynamo cannot trace the other question.
    return not is_compiling() and _is_in_backward()


def _is_in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)
