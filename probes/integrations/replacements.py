"""Put functions around those of a library while something is watched, and put the library's own back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Around = Callable[[Callable[..., Any]], Callable[..., Any]]


class Replacements:
    """What was put in the place of functions and methods."""

    def __init__(self) -> None:
        """Begin with none."""
        self._done: list[tuple[Any, str, Any, Any]] = []

    def put(self, owner: Any, name: str, around: Around) -> None:
        """Put ``around(original)`` in the place of ``owner.name``; where there is no such function nothing happens."""
        original = vars(owner).get(name)
        if not callable(original):
            return
        ours = functools.wraps(original)(around(original))
        setattr(owner, name, ours)
        self._done.append((owner, name, original, ours))

    def put_on(self, thing: Any, name: str, around: Around) -> None:
        """Put ``around(method)`` over a method of one object alone; where it has none nothing happens."""
        original = getattr(thing, name, None)
        if not callable(original):
            return
        ours = functools.wraps(original)(around(original))
        before = vars(thing).get(name)
        setattr(thing, name, ours)
        self._done.append((thing, name, before, ours))

    def put_back(self) -> None:
        """Put back what was there; where another has put its own in the meantime, it stays."""
        while self._done:
            owner, name, original, ours = self._done.pop()
            if vars(owner).get(name) is not ours:
                continue
            if original is None:
                delattr(owner, name)  # an object's own stands in front of its class's
            else:
                setattr(owner, name, original)
