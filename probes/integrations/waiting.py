"""Let an action come at the first training forward of a model, inside of it, and go on with what it puts there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rheoscope.probes.door import Door
from rheoscope.probes.hooked import Fail
from rheoscope.probes.wrappers import shell
from torch import nn


class Waiting:
    """A model whose first training forward is awaited."""

    def __init__(self, model: nn.Module, begin: Callable[[], Door | None], fail: Fail) -> None:
        """Call ``begin`` there, once; the door that it returns takes in the forward that runs."""
        self.model = model
        self._begin = begin
        self._inner: Door | None = None
        self._is_over = False
        self._door = Door(shell(model), self._begins, self._ends, fail)

    def is_around(self, module: nn.Module) -> bool:
        """Return whether a forward of ``module`` itself is what is awaited."""
        return shell(self.model) is module

    def enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take in a forward that had begun when the waiting began."""
        self._door.enter(args, kwargs)

    def close(self) -> None:
        """Wait no longer."""
        self._is_over = True
        self._door.close()

    def _begins(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._inner = self._begin()
        if self._inner is not None:
            # Hooks that come while a module's hooks run are not run themselves.
            self._inner.enter(args, kwargs)

    def _ends(self, has_failed: bool) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.leave(has_failed=has_failed)
        if self._is_over:
            self._door.close()
