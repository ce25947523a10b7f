"""Measure: discovery, hooks, statistics, storage, active checks.

The values (``anatomy``, ``errors``, ``recording``) import without torch; the instruments load when asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .anatomy import Anatomy
    from .check_up import examine
    from .discovery import discover
    from .recorder import Cycle, Probe, attach
    from .recording import Recording

__all__ = ["Anatomy", "Cycle", "Probe", "Recording", "attach", "discover", "examine"]

_HOMES = {
    "Anatomy": "anatomy",
    "Cycle": "recorder",
    "Probe": "recorder",
    "Recording": "recording",
    "attach": "recorder",
    "discover": "discovery",
    "examine": "check_up",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
