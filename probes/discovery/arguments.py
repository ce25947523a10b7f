"""Read the arguments of a torch call: its numbers, its probability, what it does to another tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .vocabulary import CASTS, PARTS, VIEWS


def numbers_in(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[float, ...]:
    """Return the numbers among the arguments of a call."""
    found = [*args, *(kwargs[name] for name in ("alpha", "value", "other", "weight") if name in kwargs)]
    return tuple(float(a) for a in found if isinstance(a, int | float) and not isinstance(a, bool))


def replay_of(
    name: str, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> Callable[[Tensor], Any] | None:
    """Return what applies the call to another tensor in place of its first input; None unless it only moves elements."""
    if (name not in VIEWS and name not in PARTS) or name in CASTS or not args or not isinstance(args[0], Tensor):
        return None
    rest = tuple(args[1:])
    return lambda tensor: function(tensor, *rest, **kwargs)


def probability_in(args: Sequence[Any], kwargs: dict[str, Any]) -> float:
    """Return the probability of a call of a dropout."""
    given = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    return float(given) if isinstance(given, int | float) else 0.5
