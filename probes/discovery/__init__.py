"""Find the residual stream of any model from its dataflow: trace, classify, chain, plan, certify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dissect import discover

__all__ = ["discover"]


def __getattr__(name: str) -> Any:
    if name == "discover":
        from .dissect import discover

        return discover
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
