"""Show the tensors at chosen points of a model while it runs, by plain forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .anatomy import Point
from .batches import at

See = Callable[[Point, Tensor], None]


class Hooked:
    """Hooks that call ``see(point, tensor)`` whenever a forward passes a point.

    Which call of a module it is counts from the last ``restart``; the recomputation of gradient checkpointing repeats
    calls that were counted before.
    """

    def __init__(self, model: nn.Module, points: Iterable[Point], see: See) -> None:
        """Register the hooks; ``remove`` takes them off."""
        self._see = see
        self._calls: dict[str, int] = {}
        self._handles: list[RemovableHandle] = []
        by_module: dict[str, list[Point]] = {}
        for point in points:
            by_module.setdefault(point.module_path, []).append(point)
        modules = dict(model.named_modules(remove_duplicate=False))
        for path, mine in by_module.items():
            before, after = self._before(path, mine), self._after(path, mine)
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
                if point.call == self._calls.get(path):
                    # A module may be called with its argument by position here and by keyword there.
                    given = args if isinstance(point.position[0], int) else kwargs
                    tensor = at(given, point.position)
                    if tensor is not None:
                        self._see(point, tensor)

        return hook

    def _after(self, path: str, points: list[Point]) -> Callable[..., None]:
        leaving = [point for point in points if point.side == "output"]

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
            for point in leaving:
                if point.call == self._calls.get(path):
                    tensor = at(output, point.position)
                    if tensor is not None:
                        self._see(point, tensor)

        return hook


def is_recomputing() -> bool:
    """Return whether a forward runs inside a backward: gradient checkpointing computes activations again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
