"""Show the tensors at chosen points of a model while it runs, by plain forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .anatomy import Point
from .batches import at
from .errors import ProbeError

See = Callable[[Point, Tensor], None]


class Hook:
    """A callable for hooks, which stays with its model: in a copied or pickled model it does nothing.

    A plain closure would be shared with the copy, which would then be counted as if it were the model itself; and it
    would stop ``torch.save(model)``. Reading such a file back needs Rheoscope to be importable.
    """

    def __init__(self, action: Callable[..., None] | None = None) -> None:
        """Wrap ``action``; None does nothing."""
        self._action = action

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Run the action, and never change what passes."""
        if self._action is not None:
            self._action(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        """Return a hook that does nothing."""
        return Hook()

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        """Pickle as a hook that does nothing."""
        return Hook, ()


class Hooked:
    """Hooks that call ``see(point, tensor)`` whenever a forward passes a point.

    Which call of a module it is counts from the last ``restart``; the recomputation of gradient checkpointing repeats
    calls that were counted before.
    """

    def __init__(self, model: nn.Module, points: Iterable[Point], see: See) -> None:
        """Register the hooks; ``remove`` takes them off.

        Raises:
            ProbeError: the model has no module at one of the points; nothing is hooked.
        """
        self._see = see
        self._calls: dict[str, int] = {}
        self._handles: list[RemovableHandle] = []
        by_module: dict[str, list[Point]] = {}
        for point in points:
            by_module.setdefault(point.module_path, []).append(point)
        modules = dict(model.named_modules(remove_duplicate=False))
        strange = sorted(set(by_module) - set(modules))
        if strange:
            raise ProbeError(
                f"Expected an anatomy of this model, got one with {len(strange)} modules that {type(model).__name__} "
                f"does not have ({strange[0]!r:.100} is one). Pass the anatomy that discover(model, batch) returns, or "
                "none."
            )
        for path, mine in by_module.items():
            before, after = Hook(self._before(path, mine)), Hook(self._after(mine))
            self._handles.append(modules[path].register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(modules[path].register_forward_hook(after))

    def restart(self) -> None:
        """Count calls from 0 again: a new forward begins."""
        self._calls.clear()

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before(self, path: str, points: list[Point]) -> Callable[..., None]:
        entering = [point for point in points if point.side == "input"]

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
            if not is_recomputing():
                self._calls[path] = self._calls.get(path, -1) + 1
            for point in entering:
                if self._is_now(point):
                    # A module may be called with its argument by position here and by keyword there.
                    given = args if isinstance(point.position[0], int) else kwargs
                    tensor = at(given, point.position)
                    if tensor is not None:
                        self._see(point, tensor)

        return hook

    def _after(self, points: list[Point]) -> Callable[..., None]:
        leaving = [point for point in points if point.side == "output"]

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
            for point in leaving:
                if self._is_now(point):
                    tensor = at(output, point.position)
                    if tensor is not None:
                        self._see(point, tensor)

        return hook

    def _is_now(self, point: Point) -> bool:
        """Return whether the running call is the point's; a recomputed one of several calls tells not which it is."""
        latest = self._calls.get(point.module_path)
        return point.call == latest and not (latest and is_recomputing())


def is_recomputing() -> bool:
    """Return whether a forward runs inside a backward: gradient checkpointing computes activations again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
