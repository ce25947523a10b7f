"""Judge: tables, theory, rules, comparison. Nothing here touches a model; everything is a pure function of recordings."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison import Comparison, compare
    from .diagnosis import Diagnosis, diagnose
    from .finding import Evidence, Finding

__all__ = ["Comparison", "Diagnosis", "Evidence", "Finding", "compare", "diagnose"]

_HOMES = {
    "Comparison": "comparison",
    "Diagnosis": "diagnosis",
    "Evidence": "finding",
    "Finding": "finding",
    "compare": "comparison",
    "diagnose": "diagnosis",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
