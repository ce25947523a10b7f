"""Act as soon as a program has imported a module, and not before: what it sets up before the import must still count."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def after_import(name: str, action: Callable[[], None]) -> Callable[[], None]:
    """Call ``action`` once, when the module ``name`` has been imported; at once where it is already.

    Returns:
        What takes it back, if the module was not imported.
    """
    if name in sys.modules:
        action()
        return lambda: None
    finder = _Finder(name, action)
    sys.meta_path.insert(0, finder)
    return finder.leave


class _Finder:
    """Finds a module as the others do, and has its loader tell when it is done; finds it once."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self._name, self._action = name, action

    def leave(self) -> None:
        """Find nothing any more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Return where the module is; None of every other."""
        if fullname != self._name:
            return None
        self.leave()
        spec = find_spec(fullname)
        loader = None if spec is None else spec.loader
        if loader is None or not hasattr(loader, "__dict__"):
            return spec
        execute, action = loader.exec_module, self._action

        def executed(module: ModuleType) -> None:
            # The module keeps its loader: it must be as it was.
            del loader.exec_module
            execute(module)
            action()

        loader.exec_module = executed  # type: ignore[method-assign]  # of this one object, for one call
        return spec
