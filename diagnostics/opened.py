"""Open a recording's tables once for all who look at them at the same time."""

from __future__ import annotations

from weakref import WeakValueDictionary

from rheoscope.probes.recording import Recording

from .tables import Tables

_open: WeakValueDictionary[int, Tables] = WeakValueDictionary()


def opened(recording: Recording) -> Tables:
    """Return the tables of ``recording``: the same as long as someone holds them, read anew when nobody does any more."""
    found = _open.get(id(recording))
    if found is None or found.recording is not recording:
        found = _open[id(recording)] = Tables(recording)
    return found
