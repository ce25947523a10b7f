"""Change a tensor where a forward passes it: at a point of the anatomy, before whoever reads it there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batch, arguments
from .hooked import Hooked
from .point import Point
from .wrappers import module_of

Change = Callable[[Tensor], Tensor]
Position = tuple[int | str, ...]


class _Enough(Exception):  # noqa: N818 - no error: it ends a forward of which the rest is not needed
    pass


def seen_after(model: nn.Module, batch: Batch, changed_at: Point, change: Change, seen_at: Point) -> Tensor | None:
    """Return what a forward shows at one point when a tensor is changed at another; None where it does not come by.

    The forward ends there: what follows is not computed. No gradient is kept.
    """
    seen: list[Tensor] = []

    def see(tensor: Tensor) -> None:
        seen.append(tensor.detach().clone())
        raise _Enough

    positional, keywords = arguments(batch)
    with torch.no_grad(), changed(model, changed_at, change):
        hooks = Hooked(model, [seen_at], lambda _: see)
        with suppress(_Enough):
            try:
                model(*positional, **keywords)
            finally:
                hooks.remove()
    return seen[0] if seen else None


@contextmanager
def changed(model: nn.Module, point: Point, change: Change) -> Iterator[None]:
    """Run a block in which every forward carries on with ``change(tensor)`` in place of the tensor at ``point``.

    Where a module's input is changed, only that module reads the changed tensor; where an output is, everything after it does.

    Args:
        model: the model; nothing of it is written to.
        point: where; which of the module's calls counts from the block's begin.
        change: returns a tensor of the same shape; it must not write to the one it is given.
    """
    module = module_of(model, point.module_path)
    n_calls = 0

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if n_calls != point.call or point.side != "input":
            return None
        key = point.position[0]
        if isinstance(key, int):
            return tuple(put(args, point.position, change)), kwargs
        return args, put(kwargs, point.position, change)

    def leave(_: nn.Module, __: Any, output: Any) -> Any:
        nonlocal n_calls
        is_now, n_calls = n_calls == point.call, n_calls + 1
        return put(output, point.position, change) if is_now and point.side == "output" else None

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def put(value: Any, position: Position, change: Change) -> Any:
    """Return a nested value with ``change`` applied at ``position``; what is around it is copied, not written to."""
    if not position:
        return change(value)
    key, rest = position[0], position[1:]
    if isinstance(value, Mapping):
        items = {name: put(item, rest, change) if name == key else item for name, item in value.items()}
        return items if type(value) is dict else type(value)(**items)
    if isinstance(value, tuple | list):
        found = [put(item, rest, change) if index == key else item for index, item in enumerate(value)]
        return type(value)(*found) if hasattr(value, "_fields") else type(value)(found)
    if is_dataclass(value) and not isinstance(value, type) and key in {field.name for field in fields(value)}:
        return replace(value, **{str(key): put(getattr(value, str(key)), rest, change)})
    return value
