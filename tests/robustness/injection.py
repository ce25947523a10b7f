"""Make any function of the probes raise, whoever calls it: its code is swapped, so that early imports are reached too."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType, FunctionType
from typing import Any

PACKAGE = "rheoscope.probes."


WORDS = "injected"


def _raising(*_: Any, **__: Any) -> Any:
    raise RuntimeError("injected")


def called_in(action: Callable[[], None]) -> set[CodeType]:
    """Return the code of every Python function that runs in ``action``."""
    seen: set[CodeType] = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            seen.add(frame.f_code)

    sys.setprofile(look)
    try:
        action()
    finally:
        sys.setprofile(None)
    return seen


def functions() -> dict[str, FunctionType]:
    """Return the functions, methods and properties of all modules of the probes that are loaded, by dotted name."""
    found: dict[str, FunctionType] = {}
    for name, module in sorted(sys.modules.items()):
        if not name.startswith(PACKAGE):
            continue
        for owner in (module, *(c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == name)):
            for value in vars(owner).values():
                inner = getattr(value, "fget", None) or getattr(value, "__func__", value)
                if isinstance(inner, FunctionType) and inner.__module__ == name:
                    found[f"{name.removeprefix(PACKAGE)}.{inner.__qualname__}"] = inner
    return found


@contextlib.contextmanager
def raising(function: FunctionType) -> Iterator[None]:
    """Let ``function`` raise while the block runs."""
    code = function.__code__
    function.__code__ = _raising.__code__.replace(co_freevars=code.co_freevars)
    try:
        yield
    finally:
        function.__code__ = code
