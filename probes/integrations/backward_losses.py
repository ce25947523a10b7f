"""See the losses that a program calls backward on, and the loss scaler that multiplies them, without waiting for a device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler

from .replacements import Replacements

See = Callable[[Tensor, Any, Any], None]
Skipped = Callable[[Any, Callable[[], Any]], Any]
Guard = Callable[[Callable[[], None]], None]


class BackwardLosses:
    """Watches backward and gradient scalers."""

    def __init__(self, see: See, guard: Guard, replacements: Replacements) -> None:
        """Tell ``see(loss, graph, scaler)`` of every backward from a scalar, before it runs.

        ``loss`` is the value without the loss scale, ``graph`` the node that the backward starts from, ``scaler`` the scaler
        that multiplied it, None without one.
        """
        self._see, self._guard = see, guard
        self._scaled: tuple[weakref.ref[Tensor], Tensor, Any] | None = None
        replacements.put(torch.autograd, "backward", self._around_backward)
        replacements.put(GradScaler, "scale", self._around_scale)

    def _around_backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            self._guard(lambda: self._look(tensors))
            return original(tensors, *args, **kwargs)

        return backward

    def _around_scale(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def scale(scaler: GradScaler, outputs: Any) -> Any:
            scaled = original(scaler, outputs)
            if isinstance(outputs, Tensor) and isinstance(scaled, Tensor) and scaler.is_enabled():
                self._scaled = (weakref.ref(scaled), outputs.detach(), scaler)
            return scaled

        return scale

    def _look(self, tensors: Any) -> None:
        # One inside a backward is gradient checkpointing's.
        if torch._C._current_graph_task_id() != -1:
            return
        root: Any = tensors if isinstance(tensors, Tensor) else tensors[0] if len(tensors) == 1 else None
        if not isinstance(root, Tensor) or root.numel() != 1 or not root.is_floating_point():
            return
        scaled, self._scaled = self._scaled, None
        node, value, scaler = root.grad_fn, root.detach(), None
        if scaled is not None and scaled[0]() is root:
            _, value, scaler = scaled
        self._see(value.reshape(()), node, scaler)


def reached(node: Any, parameters: Collection[int]) -> set[int]:
    """Return which of the parameters, given by ``id``, a backward from ``node`` reaches."""
    found: set[int] = set()
    seen, left = {node}, [node]
    while left:
        at = left.pop()
        held = getattr(at, "variable", None)
        if held is not None and id(held) in parameters:
            found.add(id(held))
        for after, _ in getattr(at, "next_functions", ()):
            if after is not None and after not in seen:
                seen.add(after)
                left.append(after)
    return found
