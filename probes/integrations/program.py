"""Run a Python program as ``python`` itself would: its own ``__main__``, arguments and import path, its own traceback."""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType

from rheoscope.probes.errors import ProbeError


class Program:
    """A script, or a module as for ``python -m``, with its arguments.

    Attributes:
        name: what it is called, without its folder.
    """

    def __init__(self, target: str, arguments: Sequence[str] = (), *, is_module: bool = False) -> None:
        """Take what is to be run; nothing of it runs yet.

        Raises:
            ProbeError: there is no such script.
        """
        if not is_module and not Path(target).is_file():
            raise ProbeError(
                f"Expected a Python script, got {target!r}, which is no file. Pass its path, or -m MODULE."
            )
        self._target, self._arguments, self._is_module = target, list(arguments), is_module
        self.name = target if is_module else Path(target).name
        self._code: CodeType | None = None
        self._before: ModuleType | None = None

    def run(self) -> None:
        """Run it to its end; whatever it raises comes out, SystemExit too."""
        # Kept: the names of a module that nobody holds any more are taken from its functions.
        self._before = sys.modules["__main__"]
        main = self._module() if self._is_module else self._script()
        assert self._code is not None
        sys.modules["__main__"] = main
        _Compiled(self._code).exec_module(main)

    def own(self, trace: TracebackType | None) -> TracebackType | None:
        """Return the part of a traceback that is the program's, without the frames that led to it."""
        while trace is not None and trace.tb_frame.f_code is not self._code:
            trace = trace.tb_next
        return trace

    def _script(self) -> ModuleType:
        sys.argv = [self._target, *self._arguments]
        _first_path(str(Path(self._target).resolve().parent))
        path = os.path.abspath(self._target)  # noqa: PTH100 - as Python does: links stay links
        loader = SourceFileLoader("__main__", path)
        main = ModuleType("__main__")
        main.__dict__.update(__file__=path, __cached__=None, __loader__=loader, __spec__=None)
        self._code = loader.source_to_code(loader.get_data(path), path)
        return main

    def _module(self) -> ModuleType:
        # While the packages around it are imported there is no path yet.
        sys.argv = ["-m", *self._arguments]
        _first_path(str(Path.cwd()))
        spec = self._spec()
        code = spec.loader.get_code(spec.name) if isinstance(spec.loader, importlib.abc.InspectLoader) else None
        if code is None:
            raise ProbeError(f"Expected a module of Python code, got {self._target!r}. Pass one that python -m runs.")
        self._code = code
        sys.argv[0] = str(spec.origin)
        main = ModuleType("__main__")
        main.__dict__.update(
            __file__=spec.origin,
            __cached__=spec.cached,
            __loader__=spec.loader,
            __package__=spec.parent,
            __spec__=spec,
        )
        return main

    def _spec(self) -> ModuleSpec:
        name = self._target
        try:
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.submodule_search_locations is not None:
                name = f"{name}.__main__"
                spec = importlib.util.find_spec(name)
        except ModuleNotFoundError as error:
            # One that its package imports is the program's own error.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            spec = None
        if spec is None:
            raise ProbeError(f"Expected a module that can be imported, got {name!r}. Pass the name python -m takes.")
        return spec


class _Compiled(importlib.abc.InspectLoader):
    """Loads a module from code that was compiled before."""

    def __init__(self, code: CodeType) -> None:
        self._code = code

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002
        """Return the code."""
        return self._code

    def get_source(self, fullname: str) -> str:
        """Refuse."""
        raise ImportError(fullname)


def _first_path(folder: str) -> None:
    """Look for modules first in ``folder``, in place of where the command itself was started from."""
    if not sys.flags.safe_path:
        sys.path[0] = folder
