"""Derive a value from tables once for each of its arguments, and keep it with them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar


class _Keeper(Protocol):
    @property
    def kept(self) -> dict[tuple[Hashable, ...], Any]:
        """What was derived, by name and arguments."""


K = TypeVar("K", bound=_Keeper)
P = ParamSpec("P")
V = TypeVar("V")


def once(derive: Callable[Concatenate[K, P], V]) -> Callable[Concatenate[K, P], V]:
    """Return ``derive`` such that it runs once for each of its arguments; what it returns is shared and never written to."""

    @wraps(derive)
    def derived(keeper: K, /, *args: P.args, **kwargs: P.kwargs) -> V:
        key = (derive.__qualname__, *args, *kwargs.items())
        if key not in keeper.kept:
            keeper.kept[key] = derive(keeper, *args, **kwargs)
        found: V = keeper.kept[key]
        return found

    return derived
