"""Watch some of torch's functions while they run, with as little in the way of all others as a function mode can."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode

Seen = Callable[["WatchMode", Any, Sequence[Any], dict[str, Any]], Any]


class WatchMode(TorchFunctionMode):
    """Hands every call of a watched function to ``seen(mode, function, args, kwargs)``, which runs it."""

    def __init__(self, watched: set[Any], seen: Seen) -> None:
        """Prepare; entering puts the mode on the stack."""
        super().__init__()
        self._watched, self._seen = watched, seen

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func``; what is not watched, or runs inside a compiler's trace, is left alone."""
        if torch.compiler.is_compiling() or func not in self._watched:
            return func(*args, **kwargs) if kwargs else func(*args)
        return self._seen(self, func, args, kwargs or {})


def put_on(mode: TorchFunctionMode) -> None:
    """Put ``mode`` on top of the stack; ``take_off`` ends it."""
    _push_mode(mode)  # type: ignore[no-untyped-call]


def take_off(mode: TorchFunctionMode) -> None:
    """Take ``mode`` off the stack, wherever in it it is; modes that were entered later stay in their order."""
    above = []
    while torch._C._len_torch_function_stack():
        top = _pop_mode()  # type: ignore[no-untyped-call]
        if top is mode:
            break
        above.append(top)
    for other in reversed(above):
        _push_mode(other)  # type: ignore[no-untyped-call]


def opened(mode: TorchFunctionMode, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run one of torch's Python functions so that ``mode`` sees the calls inside it.

    Such a function asks ``has_torch_function`` once, at its start, and is then run with the mode off. The same code
    with another answer to that question runs with the mode on.
    """
    code = getattr(function, "__code__", None)
    if code is None or "has_torch_function" not in code.co_names:
        return function(*args, **kwargs)
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    same = types.FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)
    same.__kwdefaults__ = function.__kwdefaults__
    with mode:
        return same(*args, **kwargs)
